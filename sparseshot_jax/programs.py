"""Config to compiled programs: what is compiled, what is shared, and what every step is told."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.losses import Loss, form
from sparseshot_jax.models import Model
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer, rate_schedule
from sparseshot_jax.training.step import init_state, make_eval_step, make_train_step
from sparseshot_jax.types import Hyper, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """All of a config that the compiled step depends on. What is not here is traced."""

    model: Model
    loss: Loss
    augment: AugmentSpec
    optimizer: OptimizerSpec
    micro_batches: int
    classes: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Programs:
    """Jitted functions that every config of one form shares."""

    train_step: Callable[..., Any]
    eval_step: Callable[..., Any]


def form_of(config: ExperimentConfig) -> Form:
    """Equal for two configs that differ in traced numbers alone: they share one compilation."""
    defaults = OptimizerSpec()
    return Form(
        model=_without_traced(config.model),
        loss=form(config.loss),
        augment=config.augment,
        optimizer=dataclasses.replace(
            config.optimizer,
            learning_rate=defaults.learning_rate,
            warmup=defaults.warmup,
            final_share=defaults.final_share,
        ),
        micro_batches=config.train.micro_batches,
        classes=len(config.labels.names),
    )


def _without_traced(spec: Any) -> Any:
    """The spec with those fields at their defaults that change numbers and no program."""
    traced = [f for f in dataclasses.fields(spec) if f.metadata.get("traced")]
    return dataclasses.replace(spec, **{f.name: f.default for f in traced})


_STEPS: list[Any] = []  # every train step made, to count compilations


@functools.cache
def programs(shape: Form) -> Programs:
    """The compiled programs of a form; a second trial of the form compiles nothing."""
    model = shape.model.build(classes=shape.classes, rngs=nnx.Rngs(0))
    graphdef = nnx.split(model, nnx.Param, ...)[0]
    step = make_train_step(
        graphdef=graphdef,
        terms=shape.loss.terms,
        optimizer=make_optimizer(shape.optimizer),
        augmentation=shape.augment,
        micro_batches=shape.micro_batches,
    )
    train_step = jax.jit(step, donate_argnames=("state",))
    _STEPS.append(train_step)
    return Programs(train_step=train_step, eval_step=jax.jit(make_eval_step(graphdef)))


def fresh_state(config: ExperimentConfig) -> TrainState:
    """The state that training starts from, decided by the config's seed."""
    model = config.model.build(classes=len(config.labels.names), rngs=nnx.Rngs(config.seed))
    return init_state(model, make_optimizer(config.optimizer), ema=config.train.ema_decay > 0)[1]


def hyper_schedule(config: ExperimentConfig) -> Callable[[int], Hyper]:
    """step -> the traced numbers of that step, evaluated on the host."""
    total = config.train.steps
    rate = rate_schedule(config.optimizer, total)
    shares = np.asarray(jax.vmap(rate)(np.arange(total)), np.float32)

    def hyper_at(step: int) -> Hyper:
        # A young average follows closely, or it would remember the random start.
        decay = min(config.train.ema_decay, (1 + step) / (10 + step))
        return Hyper(
            loss={k: np.float32(v) for k, v in config.loss.hyper(step / total).items()},
            learning_rate=np.float32(config.optimizer.learning_rate * shares[step]),
            ema_decay=np.float32(decay),
            seed=np.uint32(config.seed),
        )

    return hyper_at


def compilations() -> int:
    """Training steps that this process has compiled so far."""
    return sum(step._cache_size() for step in _STEPS)

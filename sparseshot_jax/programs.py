"""Config to compiled programs: what is compiled, what is shared, and what every step is told."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float64

from sparseshot_jax.config import ExperimentConfig
from sparseshot_jax.losses import Loss, Remembers, form
from sparseshot_jax.models import HasAnchors, Model
from sparseshot_jax.models.decode import DecodeSpec, detect
from sparseshot_jax.training.augment import AugmentSpec
from sparseshot_jax.training.memory import blank_memory
from sparseshot_jax.training.optimizer import OptimizerSpec, make_optimizer, rate_schedule
from sparseshot_jax.training.sharding import Layout
from sparseshot_jax.training.step import init_state, make_eval_step, make_train_step
from sparseshot_jax.training.tasks import TASKS
from sparseshot_jax.training.trials import Step, TrialLayout
from sparseshot_jax.types import Batch, Detections, Hyper, Measures, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """All of a config that the compiled step depends on. What is not here is traced."""

    model: Model
    loss: Loss
    augment: AugmentSpec
    optimizer: OptimizerSpec
    micro_batches: int
    remat: str
    classes: int


def form_of(config: ExperimentConfig) -> Form:
    """Equal for two configs that differ in traced numbers alone: they share one compilation."""
    defaults = OptimizerSpec()
    return Form(
        model=without_traced(config.model),
        loss=form(config.loss),
        augment=config.augment,
        optimizer=dataclasses.replace(
            config.optimizer,
            learning_rate=defaults.learning_rate,
            warmup=defaults.warmup,
            final_share=defaults.final_share,
        ),
        micro_batches=config.train.micro_batches,
        remat=config.train.remat,
        classes=len(config.labels.names),
    )


def without_traced(spec: Any) -> Any:
    """The spec with those fields at their defaults that change numbers and no program."""
    return dataclasses.replace(spec, **{f.name: f.default for f in _traced_fields(spec)})


def _traced_fields(spec: Any) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(spec) if f.metadata.get("traced")]


_STEPS: list[Any] = []  # every train step made, to count compilations


@functools.cache
def _graphdef(shape: Form) -> nnx.GraphDef:
    return nnx.split(shape.model.build(classes=shape.classes, rngs=nnx.Rngs(0)), nnx.Param, ...)[0]


def plain_step_of(shape: Form, **options: Any) -> Step:
    """The pure function of one step of a form; `options` as of `make_train_step`."""
    return make_train_step(
        graphdef=_graphdef(shape),
        objective=TASKS[shape.model.task].objective(shape.model, shape.loss.terms),
        optimizer=make_optimizer(shape.optimizer),
        augmentation=shape.augment,
        micro_batches=shape.micro_batches,
        remat=shape.remat,
        **options,
    )


def suited(shape: Form, layout: Layout) -> Form:
    """Where the operations' form is left open: the one for the layout's devices, JAX's default or not."""
    model: Any = shape.model
    if getattr(model, "form", "") != "auto" or layout.platform == "cpu":
        return shape
    named = "split" if layout.splits_rows else "textbook"
    return dataclasses.replace(shape, model=dataclasses.replace(model, form=named))


def step_of(shape: Form, layout: Layout) -> Step:
    """The pure function of one step of a form, its state kept where the layout says."""
    step = plain_step_of(suited(shape, layout), whole=layout.whole, spread=layout.spread)

    def train_step(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Measures]:
        state, measures = step(state, batch, hyper)
        return layout.constrain(state), jax.lax.with_sharding_constraint(measures, layout.replicated)

    return train_step


@functools.cache
def train_program(shape: Form, layout: Layout) -> Callable[..., Any]:
    """Jitted (state, batch, hyper) -> (state, measures); the state is donated.

    A second trial of the form on the same devices compiles nothing.
    """
    program = jax.jit(step_of(shape, layout), donate_argnames=("state",))
    _STEPS.append(program)
    return program


@functools.cache
def trials_program(shape: Form, layout: TrialLayout) -> Callable[..., Any]:
    """Jitted (states, batches, hypers) -> (states, measures), a trial a device; the states are donated."""
    program = layout.program(plain_step_of(shape))
    _STEPS.append(program)
    return program


@functools.cache
def eval_program(shape: Form) -> Callable[..., Any]:
    """Jitted (variables, images) -> what the task infers; see `make_eval_step`."""
    return jax.jit(make_eval_step(_graphdef(shape), TASKS[shape.model.task].infer(shape.model)))


@functools.cache
def detector(shape: Form, decode: DecodeSpec) -> Callable[..., Detections]:
    """Jitted (variables, images, limits) -> `Detections`; `limits` (`DecodeSpec.limits`) are traced."""
    eval_step = eval_program(shape)
    stride = shape.model.multiple

    def step(variables: Any, images: Any, limits: Mapping[str, Any]) -> Detections:
        return detect(eval_step(variables, images), decode, stride_px=stride, **limits)[0]

    return jax.jit(step)


def fresh_state(
    config: ExperimentConfig,
    sizes_px: Float64[np.ndarray, "n 2"] | None = None,
    canvas_px: tuple[int, int] | None = None,
) -> TrainState:
    """The state that training starts from, decided by the config's seed.

    Args:
        config: of the run.
        sizes_px: height and width of the training set's objects, from which a detector takes its anchors.
        canvas_px: `CutTiles.canvas_px`, for a loss that remembers pixels; without it the state can only be
            evaluated.

    Raises:
        InputError: more pixels than can be remembered.
    """
    model = config.model.build(classes=len(config.labels.names), rngs=nnx.Rngs(config.seed))
    if sizes_px is not None and isinstance(model, HasAnchors):
        model.fit_anchors(sizes_px)
    state = init_state(model, make_optimizer(config.optimizer), ema=config.train.ema_decay > 0)[1]
    if canvas_px is None or not isinstance(config.loss, Remembers):
        return state
    numbers = TASKS[config.model.task].elements(config.model)
    memory = blank_memory(numbers, canvas_px, value=config.loss.first_average)
    return dataclasses.replace(state, memory=memory)


def abstract_state(config: ExperimentConfig) -> TrainState:
    """`fresh_state` as shapes and types alone: nothing is computed."""
    return jax.eval_shape(lambda: fresh_state(config))


def hyper_schedule(config: ExperimentConfig) -> Callable[[int], Hyper]:
    """step -> the traced numbers of that step, evaluated on the host."""
    total = config.train.steps
    rate = rate_schedule(config.optimizer, total)
    shares = np.asarray(jax.vmap(rate)(np.arange(total)), np.float32)

    numbers = {f.name: np.float32(getattr(config.model, f.name)) for f in _traced_fields(config.model)}

    def hyper_at(step: int) -> Hyper:
        # A young average follows closely, or it would remember the random start.
        decay = min(config.train.ema_decay, (1 + step) / (10 + step))
        return Hyper(
            loss={k: np.float32(v) for k, v in config.loss.hyper(step / total).items()},
            model=numbers,
            learning_rate=np.float32(config.optimizer.learning_rate * shares[step]),
            ema_decay=np.float32(decay),
            seed=np.uint32(config.seed),
        )

    return hyper_at


def compilations() -> int:
    """Training steps that this process has compiled so far."""
    return sum(step._cache_size() for step in _STEPS)

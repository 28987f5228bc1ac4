"""One training step and one evaluation step: pure functions, no host in the loop.

    step = jax.jit(make_train_step(...), donate_argnames=("state",))
    state, measures = step(state, batch, hyper)

Everything a user tunes is in `Hyper`, a pytree of traced numbers that the loop evaluates on the host:
one compilation serves every threshold, schedule, weight, learning rate and seed.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from sparseshot_jax import models
from sparseshot_jax.losses import reduce
from sparseshot_jax.models.layers import BLOCK, CONVOLUTION
from sparseshot_jax.training.augment import AugmentSpec, augment, put_back
from sparseshot_jax.training.memory import recalled, remembered
from sparseshot_jax.training.objective import Objective
from sparseshot_jax.types import Batch, Hyper, Measures, TrainState

# What the backward pass finds computed, by the names that models give it; the rest it computes again.
REMAT: dict[str, tuple[str, ...]] = {
    "none": (),  # all is kept
    "convolutions": (CONVOLUTION, BLOCK),
    "blocks": (BLOCK,),
}


def init_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, *, ema: bool
) -> tuple[nnx.GraphDef, TrainState]:
    """The static half of a model and the state that training starts from."""
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, (params, stats)) if ema else None,
    )
    return graphdef, state


def make_train_step(
    *,
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    augmentation: AugmentSpec,
    micro_batches: int = 1,
    remat: str = "none",
    whole: Callable[[Any], Any] = lambda params: params,
    spread: Callable[[Any], Any] = lambda batch: batch,
) -> Callable[[TrainState, Batch, Hyper], tuple[TrainState, Measures]]:
    """The pure function of one step.

    With `micro_batches` > 1 the gradient is accumulated over that many parts of the batch; numerators
    and denominators are summed before the one division, so that the parts weigh by their elements.
    `remat` names what the backward pass finds computed (`REMAT`). `whole` gathers parameters that are split
    over devices, where they are used; `spread` keeps a batch split over them as it came.
    """

    def apply(params: Any, stats: Any, image: Array, valid: Array) -> tuple[Any, Any]:
        model = nnx.merge(graphdef, whole(params), stats, copy=True)
        output = model(image, valid=valid, train=True)
        return output, nnx.split(model, nnx.Param, ...)[2]

    if names := REMAT[remat]:
        apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.save_only_these_names(*names))

    def summed_loss(
        params: Any, stats: Any, batch: Batch, hyper: Hyper, key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], tuple[Any, Measures, Any]]:
        augment_key, loss_key = jax.random.split(key)
        image, batch = augment(augment_key, batch, augmentation, spread=spread)
        output, stats = apply(params, stats, image, batch.valid)
        measures = objective(output, batch, hyper, loss_key)
        average = measures.average
        if average is not None:
            average = put_back(augment_key, average, augmentation)
        return measures.loss, (stats, dataclasses.replace(measures, average=None), average)

    gradient = jax.grad(summed_loss, has_aux=True)

    def train_step(state: TrainState, batch: Batch, hyper: Hyper) -> tuple[TrainState, Measures]:
        key = jax.random.fold_in(jax.random.key(hyper.seed), state.step)
        batch = recalled(state.memory, batch)
        if micro_batches == 1:
            grads, (stats, measures, average) = gradient(state.params, state.stats, batch, hyper, key)
        else:
            grads, stats, measures, average = _accumulate(gradient, state, batch, hyper, key, micro_batches)
        denominator = reduce.denominator(measures.weight)
        grads = jax.tree.map(lambda g: g / denominator, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda u: -hyper.learning_rate * u, updates))
        ema = None
        if state.ema is not None:
            ema = optax.incremental_update((params, stats), state.ema, 1.0 - hyper.ema_decay)
        after = TrainState(
            step=state.step + 1,
            params=params,
            stats=stats,
            opt_state=opt_state,
            ema=ema,
            memory=remembered(state.memory, batch, average),
        )
        return after, measures

    return train_step


def _accumulate(
    gradient: Callable[..., Any],
    state: TrainState,
    batch: Batch,
    hyper: Hyper,
    key: Key[Array, ""],
    parts: int,
) -> tuple[Any, Any, Measures, Any]:
    """Sums of gradients and measures over `parts` micro-batches, running statistics passed along; and of
    each tile what the loss remembers."""

    def body(carry: tuple, part: tuple[Batch, Array]) -> tuple[tuple, Any]:
        grads, stats, measures = carry
        micro, index = part
        new_grads, (stats, new, average) = gradient(
            state.params, stats, micro, hyper, jax.random.fold_in(key, index)
        )
        return (
            jax.tree.map(jnp.add, grads, new_grads),
            stats,
            jax.tree.map(jnp.add, measures, new),
        ), average

    # Every part takes examples from every device: element i of the batch goes to part i mod parts.
    split = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0), batch
    )
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    one = jax.tree.map(lambda x: x[0], split)
    sums = jax.eval_shape(lambda: gradient(state.params, state.stats, one, hyper, key)[1][1])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), sums)
    carry, averages = jax.lax.scan(body, (zeros, state.stats, nothing), (split, jnp.arange(parts)))
    together = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), averages)
    return *carry, together


def make_eval_step(
    graphdef: nnx.GraphDef, infer: Callable[[Any], Any]
) -> Callable[[Any, UInt8[Array, "b h w 3"]], Any]:
    """(variables, images) -> what the task infers from the model's output.

    `variables` is the pair (params, stats), of the last step or of its exponential average.
    """

    def eval_step(variables: tuple[Any, Any], image: UInt8[Array, "b h w 3"]) -> Any:
        model = nnx.merge(graphdef, *variables, copy=True)
        return infer(model(models.scale_image(image)))

    return eval_step

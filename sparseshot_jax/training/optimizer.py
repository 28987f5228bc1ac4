"""AdamW with clipping, a linear warm-up and a cosine decay: an optax chain."""

import dataclasses

import jax
import optax

from sparseshot_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How gradients become updates. The peak learning rate is traced: changing it compiles nothing."""

    learning_rate: float = 2e-3  # at the end of the warm-up, > 0
    warmup: float = 0.05  # share of all steps that the learning rate rises from 0, [0, 1)
    final_share: float = 0.01  # last learning rate over the peak, [0, 1]
    weight_decay: float = 1e-4  # decoupled, on kernels alone, >= 0
    clip_norm: float = 1.0  # global norm above which a gradient is scaled down, > 0

    def __post_init__(self) -> None:
        for name, usual in (("learning_rate", 2e-3), ("clip_norm", 1.0)):
            if not getattr(self, name) > 0.0:
                raise InputError(f"optimizer.{name} must be above 0; got {getattr(self, name)}. Try {usual}.")
        if not 0.0 <= self.warmup < 1.0:
            raise InputError(f"optimizer.warmup must be a share in [0, 1); got {self.warmup}. Try 0.05.")
        if not 0.0 <= self.final_share <= 1.0:
            raise InputError(f"optimizer.final_share must be in [0, 1]; got {self.final_share}. Try 0.01.")
        if not self.weight_decay >= 0.0:
            raise InputError(f"optimizer.weight_decay must be at least 0; got {self.weight_decay}.")


def make_optimizer(spec: OptimizerSpec) -> optax.GradientTransformation:
    """The chain up to, and without, the learning rate: the train step multiplies by it."""
    return optax.chain(
        optax.clip_by_global_norm(spec.clip_norm),
        optax.scale_by_adam(),
        optax.add_decayed_weights(
            spec.weight_decay, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
        ),
    )


def rate_schedule(spec: OptimizerSpec, total_steps: int) -> optax.Schedule:
    """step -> learning rate as a share of its peak."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if spec.warmup else 1.0,
        peak_value=1.0,
        warmup_steps=min(round(spec.warmup * total_steps), total_steps - 1),
        decay_steps=total_steps,
        end_value=spec.final_share,
    )

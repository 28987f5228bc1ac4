"""How a score grows with the number of annotated objects: the fit, its uncertainty, its words."""

from sparseshot_jax.efficiency.fitted import FAR, LEAST, LEVELS, Curve, Estimate, fit_curve
from sparseshot_jax.efficiency.forecast import answers, doubling, sentences
from sparseshot_jax.efficiency.power import Powers, fit_power, fit_powers
from sparseshot_jax.efficiency.steps import Steps, fit_steps

__all__ = [
    "FAR",
    "LEAST",
    "LEVELS",
    "Curve",
    "Estimate",
    "Powers",
    "Steps",
    "answers",
    "doubling",
    "fit_curve",
    "fit_power",
    "fit_powers",
    "fit_steps",
    "sentences",
]

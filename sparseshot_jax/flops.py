"""How many operations a program asks for, counted from its equations: no compiler is asked.

Convolutions and matrix products alone count: two operations for every product and sum that does not fall
on padding. In the networks here they are 98 % and more of all, and the utilisation of a chip is measured by
them (as in Chowdhery et al. 2022, appendix B, https://arxiv.org/abs/2204.02311).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """FLOPs of one call of a function that JAX can trace, over all devices.

    `arguments`: arrays, or `jax.ShapeDtypeStruct`s in their place. What is computed again in the backward
    pass (`jax.checkpoint`) counts again; a loop of unknown length counts once, a choice as its dearest arm.

    >>> import jax.numpy as jnp
    >>> flops(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4)))
    48
    """
    return _of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _of(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "cond":
        return max(_of(branch.jaxpr) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    return times * sum(_of(inner) for value in parameters.values() for inner in _programs(value))


def _programs(value: Any) -> Iterator[Jaxpr]:
    """The programs that a parameter of an equation holds: bodies of loops, of calls, of checkpoints."""
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, ClosedJaxpr):
            yield item.jaxpr
        elif isinstance(item, Jaxpr):
            yield item


def _product(equation: Any) -> int:
    ((contracted, _), _) = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    given = equation.params
    image, kernel = (v.aval.shape for v in equation.invars)
    result = equation.outvars[0].aval.shape
    axes = given["dimension_numbers"]
    pairs = 1
    for k, (at, of, to) in enumerate(zip(axes.lhs_spec[2:], axes.rhs_spec[2:], axes.out_spec[2:])):
        pairs *= _pairs(
            image[at],
            kernel[of],
            result[to],
            stride=given["window_strides"][k],
            before=given["padding"][k][0],
            spread=given["lhs_dilation"][k],
            spread_kernel=given["rhs_dilation"][k],
        )
    channels = result[axes.out_spec[1]] * kernel[axes.rhs_spec[1]]
    return 2 * result[axes.out_spec[0]] * channels * pairs


def _pairs(
    image: int, kernel: int, result: int, *, stride: int, before: int, spread: int, spread_kernel: int
) -> int:
    """How often along one axis an element of the kernel meets one of the image, and not padding or a gap."""
    at = np.arange(result)[:, None] * stride - before + np.arange(kernel) * spread_kernel
    return int(((at >= 0) & (at <= (image - 1) * spread) & (at % spread == 0)).sum())

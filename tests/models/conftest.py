"""Models compiled as training compiles them: state in, state out, one `jax.jit`."""

import functools

import jax
import pytest
from flax import nnx


@functools.partial(jax.jit, static_argnames=("graphdef", "train"))
def _call(graphdef, state, x, valid, *, train):
    model = nnx.merge(graphdef, state, copy=True)
    return model(x, valid=valid, train=train), nnx.state(model)


@pytest.fixture
def call():
    """call(model, x, valid=None, train=False): the result; the model's state moves as it should."""

    def call(model, x, valid=None, *, train=False):
        graphdef, state = nnx.split(model)
        result, state = _call(graphdef, state, x, valid, train=train)
        nnx.update(model, state)
        return result

    return call

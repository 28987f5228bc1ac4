import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sparseshot_jax.losses import reduce
from sparseshot_jax.types import Terms


def terms(values, weights):
    values, weights = jnp.asarray(values, jnp.float32), jnp.asarray(weights, jnp.float32)
    return Terms(values=values, weights=weights, kept=values > 0, capped=values)


def test_mean_divides_by_valid_elements_kept_or_dropped():
    # Three valid elements, one of them dropped; one ignored.
    assert reduce.mean(terms([1.0, 5.0, 0.0, 0.0], [1, 1, 1, 0])) == 2.0


def test_an_empty_batch_is_zero_with_zero_gradient():
    def loss(x):
        return reduce.mean(terms([0.0, 0.0], [0, 0])) + 0.0 * x

    assert loss(1.0) == 0.0
    assert jax.grad(lambda v: reduce.mean(terms(v * 0, [0, 0])))(jnp.ones(2)).tolist() == [0, 0]


def test_micro_batches_add_up_to_the_whole():
    values, weights = [1.0, 2.0, 3.0, 0.0], [1, 1, 1, 0]
    parts = [reduce.totals(terms(values[i : i + 2], weights[i : i + 2])) for i in (0, 2)]
    total, count = (sum(column) for column in zip(*parts))
    assert total / count == reduce.mean(terms(values, weights)) == 2.0


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 7.0])
def test_both_forms_divide_by_the_same(weight):
    one = terms([3.0], [weight])
    assert reduce.denominator(weight) == max(weight, 1.0)
    assert reduce.mean(one) == reduce.per_object(one, weight) == 3.0 / reduce.denominator(weight)


def test_per_object_divides_by_objects_and_survives_none():
    assert reduce.per_object(terms([1.0, 5.0], [1, 1]), 3) == 2.0
    assert reduce.per_object(terms([1.0, 5.0], [1, 1]), 0) == 6.0
    assert jax.jit(reduce.per_object)(terms([1.0, 5.0], [1, 1]), jnp.float32(4)) == 1.5


def test_a_sharded_batch_divides_by_the_global_count():
    devices = jax.devices()
    if len(devices) < 2:
        pytest.skip("needs several devices")
    mesh = jax.make_mesh((len(devices),), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    values = np.arange(len(devices) * 2, dtype=np.float32)
    weights = np.zeros_like(values)
    weights[:3] = 1  # uneven: most devices hold nothing valid
    batch = jax.device_put(terms(values * weights, weights), sharding)
    assert jax.jit(reduce.mean)(batch) == 1.0  # (0 + 1 + 2) / 3

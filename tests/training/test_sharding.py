import jax
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.sharding import (
    AXES,
    check_batch_size,
    make_mesh,
    over_batch,
    place_batch,
    replicated,
)


def test_a_mesh_of_all_or_of_some_devices():
    assert make_mesh().shape == {"data": 8, "fsdp": 1, "space": 1}
    assert make_mesh(3).shape["data"] == 3
    assert make_mesh(1).axis_names == AXES


@pytest.mark.parametrize("wrong", [0, -2, 9])
def test_more_devices_than_there_are(wrong):
    with pytest.raises(InputError, match="between 1 and 8"):
        make_mesh(wrong)


def test_a_batch_lies_over_the_devices_in_order(batch):
    placed = place_batch(batch, make_mesh())
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    for shard in placed.image.addressable_shards:
        assert shard.data.shape[0] == 1
        np.testing.assert_array_equal(shard.data[0], batch.image[shard.device.id])
    assert placed.ground.sharding == over_batch(make_mesh())


def test_replicated_is_on_every_device():
    placed = jax.device_put(np.arange(3), replicated(make_mesh(4)))
    assert [shard.data.shape for shard in placed.addressable_shards] == [(3,)] * 4


@pytest.mark.parametrize(
    ("size", "accumulate", "sizes"), [(12, 1, "8 or 16"), (8, 2, "16"), (40, 3, "24 or 48")]
)
def test_a_batch_that_does_not_split_names_sizes_that_do(size, accumulate, sizes):
    with pytest.raises(InputError, match=f"Try {sizes}"):
        check_batch_size(size, make_mesh(), accumulate)


def test_a_batch_that_splits():
    check_batch_size(16, make_mesh(), 2)
    check_batch_size(7, make_mesh(1), 1)

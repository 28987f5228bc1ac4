"""Meshes, and where arrays lie on them. What a step computes on them: test_meshes.py."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseshot_jax.errors import InputError
from sparseshot_jax.training.sharding import (
    AXES,
    Layout,
    MeshSpec,
    check_batch_size,
    check_height,
    local_copy,
    make_layout,
    make_mesh,
)
from sparseshot_jax.types import Objects


def layout_of(data, fsdp, space, **options):
    return make_layout(MeshSpec(data=data, fsdp=fsdp, space=space, **options))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"data": 3}, (3, 1, 1)),  # some of the devices
        ({"data": 1}, (1, 1, 1)),
        ({"fsdp": 2}, (4, 2, 1)),
        ({"data": 2, "space": -1}, (2, 1, 4)),
        ({"data": 1, "fsdp": -1, "space": 2}, (1, 4, 2)),
        ({"data": 2, "fsdp": 1, "space": 2}, (2, 1, 2)),
        ({"slices": 1, "space": 8}, (1, 1, 8)),
    ],
)
def test_a_mesh_of_all_or_of_some_devices(sizes, shape):
    mesh = make_mesh(MeshSpec(**sizes))
    assert mesh.axis_names == AXES
    assert mesh.devices.shape == shape
    assert [device.id for device in mesh.devices.flat] == list(range(mesh.size))
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_a_mesh_of_given_devices():
    devices = jax.devices()[5:7]
    assert make_mesh(MeshSpec(), devices).devices.ravel().tolist() == devices


@pytest.mark.parametrize(
    "wrong", [{"data": 0}, {"fsdp": -2}, {"fsdp": -1}, {"slices": 0}, {"shard_from": -1}]
)
def test_sizes_that_mean_nothing(wrong):
    with pytest.raises(InputError, match="Try"):
        MeshSpec(**wrong)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"data": 9}, "must be at most 8"),
        ({"fsdp": 3}, "must divide 8"),
        ({"fsdp": 16}, "must divide 8"),
        ({"data": 4, "fsdp": 2, "space": 2}, "must be at most 8"),
        ({"data": 3, "slices": 2}, "divisible by mesh.slices"),
        ({"slices": 2}, "are of one slice"),
    ],
)
def test_sizes_that_the_devices_do_not_make_up(wrong, why):
    with pytest.raises(InputError, match=why):
        make_mesh(MeshSpec(**wrong))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh asks of a device."""

    id: int
    process_index: int = 0
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "chip"


def test_data_spans_the_slices_and_the_other_axes_stay_inside():
    chips = [Chip(id=k, process_index=k // 4, slice_index=k // 8) for k in range(16)]
    mesh = make_mesh(MeshSpec(fsdp=2, space=2, slices=2), chips)
    assert mesh.devices.shape == (4, 2, 2)
    for k in range(4):
        assert {chip.slice_index for chip in mesh.devices[k].flat} == {k // 2}
    # Where devices know of no slices, processes are the islands.
    chips = [dataclasses.replace(chip, slice_index=0, process_index=chip.id // 8) for chip in chips]
    mesh = make_mesh(MeshSpec(space=4, slices=2), chips)
    for k in range(4):
        assert {chip.process_index for chip in mesh.devices[k].flat} == {k // 2}


def test_tiles_lie_over_data_and_fsdp_in_order_and_rows_over_space(batch):
    layout = layout_of(2, 2, 2)
    placed = layout.place(batch)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    assert layout.batch_parts == 4
    for name in ("image", "ground", "label"):
        whole = getattr(batch, name)
        for shard in getattr(placed, name).addressable_shards:
            part, half = divmod(shard.device.id, 2)
            expected = whole[2 * part : 2 * part + 2, 8 * half : 8 * half + 8]
            np.testing.assert_array_equal(shard.data, expected)
    assert {shard.data.shape for shard in placed.valid.addressable_shards} == {(2,)}
    assert jax.tree.map(lambda leaf: leaf.sharding, placed) == layout.batch(batch)


def test_boxes_and_depths_are_split_like_their_tiles(batch):
    boxes = np.arange(8 * 3 * 4, dtype=np.float32).reshape(8, 3, 4)
    objects = Objects(
        boxes_yxyx_px=boxes,
        label=np.ones((8, 3), np.uint8),
        present=np.ones((8, 3), bool),
        left_out=np.zeros(8, np.int32),
    )
    batch = dataclasses.replace(batch, objects=objects, distance=batch.label)
    placed = layout_of(2, 1, 4).place(batch)
    jax.tree.map(np.testing.assert_array_equal, placed, batch)
    assert placed.objects.boxes_yxyx_px.sharding.shard_shape((8, 3, 4)) == (4, 3, 4)
    assert placed.distance.sharding.shard_shape((8, 16, 16)) == (4, 4, 16)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((3, 3, 64, 128), (3, 3, 64, 32)),  # the longest
        ((3, 3, 128, 64), (3, 3, 32, 64)),
        ((64, 64), (64, 16)),  # of equal ones the last
        ((1026, 64), (1026, 16)),  # the longest that divides
        ((63, 65), (63, 65)),  # none does
        ((1000,), (1000,)),  # small
        ((), ()),
    ],
)
def test_large_arrays_of_the_state_are_split_over_fsdp(shape, part):
    layout = layout_of(2, 4, 1, shard_from=1024)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    placed = layout.place_state({"a": values})["a"]
    assert placed.sharding.shard_shape(shape) == part
    np.testing.assert_array_equal(placed, values)
    assert placed.sharding == layout.state({"a": jax.ShapeDtypeStruct(shape, jnp.float32)})["a"]


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 1, 8)])
def test_without_fsdp_the_state_is_everywhere(sizes):
    layout = layout_of(*sizes, shard_from=0)
    assert layout.place_state(np.ones((64, 64))).sharding.is_fully_replicated
    parameters = {"a": jnp.ones(3)}
    assert layout.whole(parameters) is parameters


def test_parameters_are_gathered_where_they_are_used_and_their_gradients_split():
    layout = layout_of(1, 8, 1, shard_from=64)
    kernel = layout.place_state(np.arange(64.0, dtype=np.float32).reshape(8, 8))
    x = jax.device_put(np.ones((8, 8), np.float32), layout.tiles)

    @jax.jit
    def gradient(kernel, x):
        return jax.grad(lambda k: jnp.sum(jnp.square(x @ layout.whole(k))))(kernel)

    found = gradient(kernel, x)
    assert found.sharding.is_equivalent_to(kernel.sharding, 2)
    expected = jax.grad(lambda k: jnp.sum(jnp.square(np.ones((8, 8)) @ k)))(np.asarray(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_local_copy_is_whole_and_on_one_device():
    layout = layout_of(1, 8, 1, shard_from=64)
    values = {"split": np.arange(64.0).reshape(8, 8), "small": np.arange(3)}
    copy = local_copy(layout.place_state(values))
    jax.tree.map(np.testing.assert_array_equal, copy, values)
    assert all(leaf.sharding.device_set == {jax.devices()[0]} for leaf in jax.tree.leaves(copy))


def test_layouts_of_the_same_devices_share_a_program():
    assert hash(layout_of(2, 2, 2)) == hash(layout_of(2, 2, 2))
    assert layout_of(2, 2, 2) == layout_of(2, 2, 2) != layout_of(2, 1, 4)
    assert layout_of(2, 2, 2) != layout_of(2, 2, 2, shard_from=1)


def shares(sizes, processes, each):
    """`Layout.share` of every process of a job, or why there is none."""
    chips = [Chip(id=k, process_index=k // each) for k in range(processes * each)]
    layout = Layout(make_mesh(MeshSpec(**dict(zip(AXES, sizes))), chips))
    layout._check_shares()
    found = []
    for process in range(processes):
        with mock.patch.object(jax, "process_index", return_value=process):
            found.append(layout.share)
    return found


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((8, 1, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 4, 1), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((4, 1, 2), [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ((2, 1, 4), [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes hold rows of the same tiles
        ((1, 1, 8), [(0, 1)] * 4),
    ],
)
def test_processes_that_hold_rows_of_the_same_tiles_read_them_both(sizes, expected):
    assert shares(sizes, processes=4, each=2) == expected


def test_shares_that_overlap_in_part_are_refused():
    with pytest.raises(InputError, match="unevenly"):
        shares((2, 1, 3), processes=3, each=2)


@pytest.mark.parametrize(
    ("size", "micro_batches", "sizes"), [(12, 1, "8 or 16"), (8, 2, "16"), (40, 3, "24 or 48")]
)
def test_a_batch_that_does_not_split_names_sizes_that_do(size, micro_batches, sizes):
    with pytest.raises(InputError, match=f"Try {sizes}"):
        check_batch_size(size, layout_of(4, 2, 1), micro_batches)


def test_a_batch_that_splits():
    check_batch_size(16, layout_of(8, 1, 1), 2)
    check_batch_size(7, layout_of(1, 1, 8), 1)


def test_rows_that_do_not_split_name_sizes_that_do():
    with pytest.raises(InputError, match="Try 192 or 256"):
        check_height(200, layout_of(2, 1, 4), 16)
    check_height(256, layout_of(2, 1, 4), 16)
    check_height(200, layout_of(8, 1, 1), 16)  # the model says what is wrong with that

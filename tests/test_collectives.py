# ruff: noqa: E501, lines of the compiler
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sparseshot_jax.collectives import collectives, gathered_activations

# Shortened from what the TPU compiler wrote for a step on v5e:2x2.
TPU = """HloModule jit_train_step, is_scheduled=true

FileNames
1 "/home/user/sparseshot_jax/training/step.py"
2 "/home/user/sparseshot_jax/models/layers.py"

FunctionNames
1 "train_step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=43 end_line=43 column=4 end_column=4}
2 {file_name_id=2 function_name_id=1 line=44 end_line=44 column=11 end_column=87}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%region_9.13.clone (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.2 (input: f32[64,128]) -> f32[16,128] {
  %input = f32[64,128]{1,0} parameter(0)
  %all-reduce.8 = f32[64,128]{1,0} all-reduce(%input), channel_id=7, replica_groups=[4,4]<=[16], to_apply=%region_9.13.clone
  ROOT %cut = f32[16,128]{1,0} dynamic-slice(%all-reduce.8, %i, %j), dynamic_slice_sizes={16,128}
}

%body.1 (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %all-gather.7 = f32[8]{0} all-gather(%part), replica_groups={{0,1},{2,3}}, dimensions={0}
  ROOT %next = (s32[], f32[8]) tuple(%i, %all-gather.7)
}

ENTRY %main.1 (state: f32[3]) -> f32[3] {
  %collective-permute-start.2 = (bf16[1,256,1,3]{1,3,2,0:T(4,128)(2,1)S(1)}, bf16[1,256,1,3]{1,3,2,0:T(4,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%get-tuple-element.379), channel_id=6, source_target_pairs={{0,1},{1,2},{2,3}}, metadata={op_name="jit(train_step)/jvp()/conv_general_dilated" stack_frame_id=2}
  %collective-permute-done.2 = bf16[1,256,1,3]{1,3,2,0} collective-permute-done(%collective-permute-start.2)
  %all-reduce.79 = (f32[16]{0:T(128)S(1)}, f32[4,2]{1,0:T(128)S(1)}) all-reduce(%get-tuple-element.25, %get-tuple-element.24), channel_id=21, replica_groups=mesh['data'=2,'fsdp'=1,'space'=2] {'data','space'}, use_global_device_ids=true, to_apply=%region_9.13.clone, metadata={op_name="jit(train_step)/jvp()/reduce_sum" stack_frame_id=1}
  %all-gather-start.1 = ((f32[4,16]{1,0}), (f32[16,16]{1,0})) all-gather-start(%w), replica_groups=[1,4]<=[4], dimensions={0}
  %all-gather-done.1 = f32[16,16]{1,0} all-gather-done(%all-gather-start.1)
  %fusion.5 = f32[16,128]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.2
  %reduce-scatter.1 = f32[2,8]{1,0} reduce-scatter(%g2), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%region_9.13.clone
  %while.1 = (s32[], f32[8]) while(%start), condition=%cond.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %result = f32[3]{0} copy(%state)
}
"""


@pytest.fixture(scope="module")
def found():
    return {one.kind + str(one.shapes[0]): one for one in collectives(TPU)}


def test_every_exchange_once(found):
    assert len(collectives(TPU)) == len(found) == 6
    assert [one.kind for one in collectives(TPU)].count("collective-permute") == 1


def test_a_pair_of_start_and_done(found):
    permuted = found["collective-permute(1, 256, 1, 3)"]
    assert permuted.bytes == permuted.sent == 256 * 3 * 2
    assert permuted.source == "layers.py:44"
    assert permuted.operation.endswith("conv_general_dilated")
    assert found["all-gather(16, 16)"].bytes == 16 * 16 * 4


def test_arrays_that_are_reduced_together(found):
    reduced = found["all-reduce(16,)"]
    assert reduced.shapes == ((16,), (4, 2))
    assert (reduced.bytes, reduced.axes, reduced.group) == (24 * 4, "data,space", 4)
    assert reduced.sent == 2 * 3 / 4 * 96  # a ring: all but its own part goes round twice


def test_the_part_that_is_kept_counts_whole(found):
    assert found["reduce-scatter(2, 8)"].bytes == 4 * 2 * 8 * 4
    fused = found["reduce-scatter(64, 128)"]
    assert (fused.bytes, fused.group) == (64 * 128 * 4, 4)
    assert fused.sent == 3 / 4 * fused.bytes


def test_a_loop_counts_its_turns(found):
    looped = found["all-gather(8,)"]
    assert (looped.times, looped.group, looped.bytes) == (3, 2, 32)
    assert looped.sent == 3 * 16


def test_parameters_may_be_gathered_and_maps_not():
    found = collectives(TPU)
    bad = gathered_activations(found, [(8,)], smallest=8)
    assert [one.shapes for one in bad] == [((16, 16),)]
    assert gathered_activations(found, [(4, 64), (8,)], smallest=1) == []
    assert gathered_activations(found, [], smallest=257) == []


def compiled(function, *specs, sizes):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    shardings = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
    given = [jax.ShapeDtypeStruct(size, jnp.float32, sharding=s) for size, s in zip(sizes, shardings)]
    whole = NamedSharding(mesh, PartitionSpec())
    return collectives(jax.jit(function, out_shardings=whole).lower(*given).compile().as_text())


def test_a_sum_over_a_mesh():
    (one,) = compiled(lambda x: jnp.sum(x, axis=0), ("data",), sizes=[(8, 6)])
    assert (one.kind, one.bytes, one.group) == ("all-reduce", 24, 2)


def test_a_map_gathered_for_its_median_is_told():
    found = compiled(lambda x: jnp.sort(x, axis=0)[0], ("space",), sizes=[(512, 256)])
    assert gathered_activations(found, []) or any(one.kind == "all-to-all" for one in found)
    found = compiled(lambda x: x * 2, ("space",), sizes=[(512, 256)])
    assert [one.shapes for one in gathered_activations(found, [])] == [((512, 256),)]
    assert gathered_activations(found, [(256, 512)]) == []


def test_rows_that_a_convolution_borrows():
    def convolve(x, kernel):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.sum(y)

    found = compiled(convolve, ("data", "space"), (), sizes=[(2, 64, 32, 4), (3, 3, 4, 5)])
    permuted = [one for one in found if one.kind == "collective-permute"]
    assert [one.bytes for one in permuted] == [32 * 4 * 4] * 2  # a row from above, a row from below
    assert gathered_activations(found, [], smallest=1) == []

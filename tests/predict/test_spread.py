"""Batches over several devices: the numbers of one device, whatever the batch."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from sparseshot_jax.models import scale_image
from sparseshot_jax.models.decode import DecodeSpec, detect
from sparseshot_jax.models.unet import UNetSpec
from sparseshot_jax.models.yollo import YolloSpec
from sparseshot_jax.predict.spread import Spread, devices_for


def program_of(spec, head):
    graphdef, params, stats = nnx.split(spec.build(classes=2, rngs=nnx.Rngs(0)), nnx.Param, ...)

    def program(variables, images, *options):
        model = nnx.merge(graphdef, *variables, copy=True)
        return head(model(scale_image(images)), *options)

    return jax.jit(program), (params, stats)


def images_of(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def unet():
    return program_of(UNetSpec(base=4, depth=1), jax.nn.sigmoid)


@pytest.mark.parametrize(("count", "used"), [(1, 1), (3, 3), (8, 8), (9, 5)])
def test_probabilities(unet, count, used):
    program, variables = unet
    images = images_of(count)
    spread = Spread(variables)(program, images)
    assert len(spread) == count
    assert devices_for(count, jax.local_device_count())[0] == used
    if count in (3, 8):  # nothing was cut off again
        assert {shard.data.shape[0] for shard in spread.addressable_shards} == {1}
        assert len(spread.sharding.device_set) == used
    np.testing.assert_allclose(spread, program(variables, images), atol=1e-6)


def test_every_leaf_of_a_detector_has_its_rows():
    """Nine images, ten rows: the anchors, which have no rows, stay as they are."""
    spec = YolloSpec(width=4, depth=1, prior=0.4)
    program, variables = program_of(spec, lambda output: output)
    images = images_of(9)
    one, many = program(variables, images), Spread(variables)(program, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, many)

    decode, limits = DecodeSpec(), DecodeSpec().limits(mpp=0.5) | {"threshold": 0.02}

    def head(output, limits):
        return detect(output, decode, stride_px=spec.multiple, **limits)[0]

    finder, variables = program_of(spec, head)
    one = finder(variables, images, limits)
    many = Spread(variables)(finder, images, limits)
    np.testing.assert_array_equal(one.valid, many.valid)
    there = np.asarray(one.valid)
    assert there.any()
    boxes = (np.asarray(found.boxes_yxyx_px)[there] for found in (one, many))
    np.testing.assert_allclose(*boxes, atol=1e-3)


def test_one_device_or_one_image_is_the_call_itself(monkeypatch):
    seen = []

    def program(variables, images):
        seen.append((variables, images))

    variables, images = {"w": np.ones(2)}, images_of(5)
    Spread(variables)(program, images[:1])
    monkeypatch.setattr(
        "sparseshot_jax.predict.spread.jax", types.SimpleNamespace(local_device_count=lambda: 1)
    )
    Spread(variables)(program, images)
    assert all(variables is given for given, _ in seen)
    assert seen[1][1] is images

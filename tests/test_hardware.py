"""Every kind that JAX names finds its chip, and the figures hang together."""

import types

import jax
import pytest

from sparseshot_jax.hardware import CHIPS, chip_of, measured_peak


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "TPU v4"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v6 lite", "TPU v6e"),
        ("NVIDIA A100-SXM4-80GB", "A100 (80 GB)"),
        ("NVIDIA A100-SXM4-40GB", "A100 (40 GB)"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA L4", "L4"),
        ("TPU v4 lite", None),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_a_kind_finds_its_chip(kind, name):
    chip = chip_of(types.SimpleNamespace(device_kind=kind))
    assert (chip and chip.name) == name


def test_figures_of_a_chip_hang_together():
    """In the units that the fields name: a slip of a thousand, or of bits for bytes, shows."""
    for chip in CHIPS.values():
        assert 1e14 < chip.bfloat16_flops_s < 1e15
        assert 16e9 <= chip.memory_bytes < 200e9
        assert 3e11 <= chip.memory_bytes_s < 5e12
        assert chip.network_bytes_s / chip.chips_per_host < chip.interconnect_bytes_s < chip.memory_bytes_s
        assert chip.flops_s("bfloat16") == chip.bfloat16_flops_s >= chip.flops_s("float32")
        assert chip.source


def test_a_cpu_is_measured():
    assert chip_of(jax.devices()[0]) is None
    assert 1e8 < measured_peak(side=128, rounds=2) < 1e14

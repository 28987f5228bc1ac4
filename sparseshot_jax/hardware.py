"""Rates of the chips that training runs on, as their makers state them, or measured where nobody does.

All are peaks a chip: no program reaches them; what share one reaches is its utilisation.
"""

import dataclasses
import fnmatch
import time
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """What one chip can do at best, and what joins it to others."""

    name: str
    kinds: tuple[str, ...]  # patterns of `jax.Device.device_kind`
    bfloat16_flops_s: float  # dense products, FLOP/s
    float32_flops_s: float | None  # products as JAX does them by default (TF32 on a GPU); None: not stated
    memory_bytes: float
    memory_bytes_s: float
    links: int  # to neighbours; 1 where a switch joins all chips of a host
    link_bytes_s: float  # one link, ONE way (makers often state the sum of both)
    chips_per_host: int
    network_bytes_s: float  # between hosts (or slices), a HOST, one way
    source: str

    @property
    def interconnect_bytes_s(self) -> float:
        """Over all links of a chip, one way."""
        return self.links * self.link_bytes_s

    def flops_s(self, dtype: str) -> float:
        """Peak FLOP/s of products of this type; that of bfloat16 where none is stated for float32."""
        stated = self.float32_flops_s if dtype == "float32" else None
        return stated or self.bfloat16_flops_s


# TPU figures: Google's documentation, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. It states links both
# ways together (v5e 400 GB/s a chip over 4 ports: 50 one way each). "How to Scale Your Model",
# jax-ml.github.io/scaling-book/tpus, reckons with 10 % less a link (45, 90) as what is reached, and gives
# DCN a chip: 6.25 GB/s (v4, v5p), 3.125 (v5e), 12.5 (v6e); these times the chips of a host stand here, and
# agree with the network cards that the documentation names (v5e: 2 x 100 Gbit/s a host of 8).
# Float32 products on a TPU are passes of bfloat16; no rate is stated.
_TPUS = (
    Chip(
        name="TPU v4",
        kinds=("TPU v4",),
        bfloat16_flops_s=275e12,
        float32_flops_s=None,
        memory_bytes=32 * 2**30,
        memory_bytes_s=1.2e12,
        links=6,
        link_bytes_s=45e9,  # the scaling book's; the documentation states none
        chips_per_host=4,
        network_bytes_s=25e9,
        source="docs.cloud.google.com/tpu/docs/v4; links and network: jax-ml.github.io/scaling-book/tpus",
    ),
    Chip(
        name="TPU v5e",
        kinds=("TPU v5 lite", "TPU v5e"),
        bfloat16_flops_s=197e12,
        float32_flops_s=None,
        memory_bytes=16e9,
        memory_bytes_s=819e9,
        links=4,
        link_bytes_s=50e9,
        chips_per_host=8,
        network_bytes_s=25e9,
        source="docs.cloud.google.com/tpu/docs/v5e; network: jax-ml.github.io/scaling-book/tpus",
    ),
    Chip(
        name="TPU v5p",
        kinds=("TPU v5", "TPU v5p"),
        bfloat16_flops_s=459e12,
        float32_flops_s=None,
        memory_bytes=95 * 2**30,
        memory_bytes_s=2765e9,
        links=6,
        link_bytes_s=100e9,  # 1200 GB/s a chip, both ways
        chips_per_host=4,
        network_bytes_s=25e9,  # 50 Gbit/s a chip
        source="docs.cloud.google.com/tpu/docs/v5p",
    ),
    Chip(
        name="TPU v6e",
        kinds=("TPU v6 lite", "TPU v6e"),
        bfloat16_flops_s=918e12,
        float32_flops_s=None,
        memory_bytes=32e9,
        memory_bytes_s=1638e9,
        links=4,
        link_bytes_s=100e9,  # 800 GB/s a chip, both ways
        chips_per_host=8,
        network_bytes_s=100e9,
        source="docs.cloud.google.com/tpu/docs/v6e; network: jax-ml.github.io/scaling-book/tpus",
    ),
)

# GPU figures: NVIDIA's data sheets, without the factor 2 that they claim for sparse matrices. NVLink is
# stated both ways together; half of it stands here. The network is that of a DGX of the kind (8 x 200 or
# 8 x 400 Gbit/s a host of 8); a cloud's machine may have less. L4 has PCIe 4.0 x16 alone.
_GPUS = (
    Chip(
        name="A100 (80 GB)",
        kinds=("NVIDIA A100*80GB*",),
        bfloat16_flops_s=312e12,
        float32_flops_s=156e12,
        memory_bytes=80e9,
        memory_bytes_s=2039e9,
        links=1,
        link_bytes_s=300e9,
        chips_per_host=8,
        network_bytes_s=200e9,
        source="NVIDIA A100 Tensor Core GPU data sheet (2021); DGX A100 data sheet",
    ),
    Chip(
        name="A100 (40 GB)",
        kinds=("NVIDIA A100*40GB*",),
        bfloat16_flops_s=312e12,
        float32_flops_s=156e12,
        memory_bytes=40e9,
        memory_bytes_s=1555e9,
        links=1,
        link_bytes_s=300e9,
        chips_per_host=8,
        network_bytes_s=200e9,
        source="NVIDIA A100 Tensor Core GPU data sheet (2020); DGX A100 data sheet",
    ),
    Chip(
        name="H100 SXM",
        kinds=("NVIDIA H100 80GB HBM3",),
        bfloat16_flops_s=989e12,
        float32_flops_s=494e12,
        memory_bytes=80e9,
        memory_bytes_s=3.35e12,
        links=1,
        link_bytes_s=450e9,
        chips_per_host=8,
        network_bytes_s=400e9,
        source="NVIDIA H100 Tensor Core GPU data sheet; DGX H100 data sheet",
    ),
    Chip(
        name="H100 PCIe",
        kinds=("NVIDIA H100 PCIe",),
        bfloat16_flops_s=756e12,
        float32_flops_s=378e12,
        memory_bytes=80e9,
        memory_bytes_s=2e12,
        links=1,
        link_bytes_s=64e9,  # PCIe 5.0 x16; pairs joined by a bridge have 300
        chips_per_host=8,
        network_bytes_s=50e9,
        source="NVIDIA H100 PCIe GPU product brief; one 400 Gbit/s card a host",
    ),
    Chip(
        name="H200 SXM",
        kinds=("NVIDIA H200",),
        bfloat16_flops_s=989e12,
        float32_flops_s=494e12,
        memory_bytes=141e9,
        memory_bytes_s=4.8e12,
        links=1,
        link_bytes_s=450e9,
        chips_per_host=8,
        network_bytes_s=400e9,
        source="NVIDIA H200 Tensor Core GPU data sheet; DGX H200 data sheet",
    ),
    Chip(
        name="L4",
        kinds=("NVIDIA L4",),
        bfloat16_flops_s=121e12,
        float32_flops_s=60e12,
        memory_bytes=24e9,
        memory_bytes_s=300e9,
        links=1,
        link_bytes_s=32e9,
        chips_per_host=8,
        network_bytes_s=12.5e9,
        source="NVIDIA L4 Tensor Core GPU data sheet; network: 100 Gbit/s a Google Cloud g2-standard-96",
    ),
)

CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}


def chip_of(device: Any) -> Chip | None:
    """The chip that a `jax.Device` (or one of a topology) is; None: not in the table, as every CPU.

    >>> import types
    >>> chip_of(types.SimpleNamespace(device_kind="TPU v5 lite")).name
    'TPU v5e'
    """
    for chip in CHIPS.values():
        if any(fnmatch.fnmatchcase(device.device_kind, kind) for kind in chip.kinds):
            return chip
    return None


def measured_peak(dtype: str = "float32", *, side: int = 1536, rounds: int = 5) -> float:
    """FLOP/s of a product of two square matrices on the first device: measured, the best of `rounds`.

    For devices whose maker states no peak that a program could reach: CPUs above all. It is as fast as
    the library's best routine, not as the arithmetic units; a convolution can come near it.
    """
    device = jax.local_devices()[0]
    a = jax.device_put(jnp.ones((side, side), dtype), device)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(product(a, a))
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best

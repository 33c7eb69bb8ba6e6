# SPDX-License-Identifier: Apache-2.0
"""Peak rates of devices: of accelerators as their makers state them, of processors as these announce them."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Any

#: Matrix operands of 16 bits. All of them have one peak rate; all wider types have another.
_HALVES = ("float16", "bfloat16")

#: Form factors of devices: a card in a slot, or a module of a board (SXM, OAM, a superchip, a TPU).
CARD, MODULE = FORMS = ("card", "module")


@dataclass(frozen=True, slots=True)
class Peak:
    """Dense peak rates of one device.

    Attributes:
        matrix16_ops: products of matrices of 16-bit numbers, in op/s.
        matrix32_ops: products of float32 matrices, in op/s, as the matrix units compute them (perhaps TF32).
        float32_ops: float32 outside of matrix units, in op/s; None where the maker does not say it.
        memory_bytes_per_second: bandwidth of the memory in byte/s.
        source: document of the maker.
        form: form factor, one of FORMS.
    """

    matrix16_ops: float
    matrix32_ops: float
    float32_ops: float | None
    memory_bytes_per_second: float
    source: str
    form: str = MODULE

    def matrix_ops(self, precision: str) -> float:
        """Return the peak rate in op/s of matrix products; `precision` is a numpy dtype name or `bfloat16`.

        float64 gets the rate of float32, which is an upper bound on all devices of the table.
        """
        return self.matrix16_ops if precision in _HALVES else self.matrix32_ops


_T4 = "NVIDIA T4 Tensor Core GPU, datasheet, 2019 (float16, no bfloat16, no TF32)"
_V100 = "NVIDIA V100 Tensor Core GPU, datasheet, 2020 (float16, no bfloat16, no TF32)"
_A100 = "NVIDIA A100 Tensor Core GPU, datasheet, 2021"
_H100 = "NVIDIA H100 Tensor Core GPU Architecture, white paper v1.04, 2023, table 2"
_H100_NVL = "NVIDIA H100 Tensor Core GPU, datasheet, 2024; half of its rates with sparsity"
_H200 = (
    "NVIDIA H200 Tensor Core GPU, datasheet, 2024; half of its rates with sparsity, as the H100's white paper"
)
_GH200 = "NVIDIA GH200 Grace Hopper Superchip, datasheet, 2024; half of its rates with sparsity"
_H20 = "NVIDIA H20 Tensor Core GPU, product brief, 2023; rates without sparsity"
_L40S = "NVIDIA L40S, datasheet, 2023; half of its rates with sparsity"
_ADA = (
    "NVIDIA Ada GPU Architecture, white paper v2.1, 2023, appendix A; float32 accumulation, without sparsity"
)
_RTX_BLACKWELL = (
    "NVIDIA RTX Blackwell GPU Architecture, white paper v1.1, 2025, appendix A; float32 accumulation, "
    "without sparsity"
)
_BLACKWELL = "NVIDIA Blackwell, datasheet, 2025, individual GPU; half of its rates with sparsity"
_MI200 = "AMD ROCm documentation, MI250 microarchitecture: operations per clock of a compute unit"
_MI300 = "AMD ROCm documentation, MI300 series microarchitecture, peak-performance table"
_MI325 = "AMD Instinct MI325X Accelerator, data sheet, 2024; rates without sparsity"
_MI350 = "AMD CDNA 4 Architecture, white paper, 2025; rates without sparsity (no TF32)"
_MAX = "Intel Data Center GPU Max Series Technical Overview, 2024: operations per clock of an Xe core"
_ASCEND = "Huawei, launch of Ascend 910 and MindSpore, 23 August 2019; float32: not stated, at most half"
_TPU = "Google Cloud TPU documentation, system architecture of TPU"

#: Device names (regular expressions of the whole name) and their rates. Rates are dense, because ResNets are
#: dense; if a maker prints only rates with sparsity, the dense rates are half of them. A device is what JAX
#: counts as one: a die of AMD's MI250X, a stack of Intel's Max 1550, a whole chip of a TPU.
PEAKS: tuple[tuple[str, Peak], ...] = (
    (r"(NVIDIA )?(Tesla )?T4", Peak(65e12, 8.1e12, 8.1e12, 320e9, _T4, CARD)),
    (
        r"(NVIDIA )?(Tesla )?V100-SXM[23]-(16|32)GB(-LS)?",
        Peak(125e12, 15.7e12, 15.7e12, 900e9, f"{_V100}; NVLink"),
    ),
    (r"(NVIDIA )?(Tesla )?V100-PCIE-(16|32)GB", Peak(112e12, 14e12, 14e12, 900e9, f"{_V100}; PCIe", CARD)),
    (r"(NVIDIA )?(Tesla )?V100S-PCIE-32GB", Peak(130e12, 16.4e12, 16.4e12, 1134e9, f"{_V100}; V100S", CARD)),
    (r"(NVIDIA )?A100-SXM4-40GB", Peak(312e12, 156e12, 19.5e12, 1555e9, _A100)),
    (r"(NVIDIA )?A100-PCIE-40GB", Peak(312e12, 156e12, 19.5e12, 1555e9, _A100, CARD)),
    (r"(NVIDIA )?A100-SXM4-80GB", Peak(312e12, 156e12, 19.5e12, 2039e9, _A100)),
    (r"NVIDIA A100 80GB PCIe", Peak(312e12, 156e12, 19.5e12, 1935e9, _A100, CARD)),
    (r"NVIDIA H100 80GB HBM3", Peak(989.4e12, 494.7e12, 66.9e12, 3350e9, _H100)),
    (r"NVIDIA H100 PCIe", Peak(756e12, 378e12, 51.2e12, 2000e9, _H100, CARD)),
    # 1,671 and 835 teraFLOPS with sparsity.
    (r"NVIDIA H100 NVL", Peak(835.5e12, 417.5e12, 60e12, 3900e9, _H100_NVL, CARD)),
    # The H100's die: 1,979 teraFLOPS with sparsity are twice 989.4.
    (r"NVIDIA H200", Peak(989.4e12, 494.7e12, 66.9e12, 4800e9, _H200)),
    # The same die on a module with a Grace processor: 480GB is that processor's memory. Its own is HBM3, or
    # HBM3e if the name says so.
    (r"NVIDIA GH200 (120|480)GB", Peak(989.4e12, 494.7e12, 66.9e12, 4000e9, _GH200)),
    (r"NVIDIA GH200 144GB? HBM3e", Peak(989.4e12, 494.7e12, 66.9e12, 4900e9, _GH200)),
    (r"NVIDIA H20", Peak(148e12, 74e12, 44e12, 4000e9, _H20)),
    (r"NVIDIA H20-3e", Peak(148e12, 74e12, 44e12, 4800e9, f"{_H20}; 141 GB of HBM3e")),
    # Its datasheet prints 362.05, and 733 with sparsity; the larger of 362.05 and 733 / 2 is the upper bound.
    (r"NVIDIA L40S", Peak(366.5e12, 183e12, 91.6e12, 864e9, _L40S, CARD)),
    # GeForce: float16 is twice as fast with float16 accumulation, which XLA does not use by default.
    (r"NVIDIA GeForce RTX 4090", Peak(165.2e12, 82.6e12, 82.6e12, 1008e9, _ADA, CARD)),
    (r"NVIDIA GeForce RTX 5090", Peak(209.5e12, 104.8e12, 104.8e12, 1792e9, _RTX_BLACKWELL, CARD)),
    # 4.5 and 5 petaFLOPS with sparsity; TF32 at half of that, which the datasheet rounds to 2.2 and 2.5.
    (r"NVIDIA B200", Peak(2250e12, 1125e12, 75e12, 7700e9, f"{_BLACKWELL}, HGX B200")),
    (r"NVIDIA GB200", Peak(2500e12, 1250e12, 80e12, 8000e9, f"{_BLACKWELL}, GB200")),
    # A device is one of a module's two dies: 104 compute units x 1024 (float16) or 256 (float32) at 1.7 GHz;
    # X: 110. One PCI number is that of both modules, and has both names: the faster one bounds it.
    (r"AMD Instinct MI210", Peak(181e12, 45.3e12, 22.6e12, 1638.4e9, f"{_MI200} x 104 x 1.7 GHz", CARD)),
    (r"AMD Instinct MI250", Peak(181e12, 45.3e12, 22.6e12, 1638.4e9, f"{_MI200} x 104 x 1.7 GHz")),
    (
        r"AMD Instinct MI250X( ?/ ?MI250)?",
        Peak(191.5e12, 47.9e12, 23.9e12, 1638.4e9, f"{_MI200} x 110 x 1.7 GHz"),
    ),
    (r"AMD Instinct MI300X( OAM)?", Peak(1307.4e12, 653.7e12, 163.4e12, 5300e9, _MI300)),
    # 228 of the MI300X's compute units at its 2.1 GHz, in place of 304.
    (
        r"AMD Instinct MI300A",
        Peak(980.6e12, 490.3e12, 122.6e12, 5300e9, f"{_MI300}: 228 compute units of 304"),
    ),
    (r"AMD Instinct MI325X( OAM)?", Peak(1307.4e12, 653.7e12, 163.4e12, 6000e9, _MI325)),
    # 256 compute units x 4096 (float16) or 256 (float32) at 2.4 GHz; MI350X: at 2.2 GHz.
    (r"AMD Instinct MI355X( OAM)?", Peak(2516.6e12, 157.3e12, 157.3e12, 8000e9, f"{_MI350}, MI355X")),
    (r"AMD Instinct MI350X( OAM)?", Peak(2306.9e12, 144.2e12, 144.2e12, 8000e9, f"{_MI350}, MI350X")),
    # One of a card's two stacks, as the driver shows them by default (FLAT): 64 Xe cores x 4096 (float16),
    # 2048 (TF32) or 256 (float32) at 1.6 GHz. With ZE_FLAT_DEVICE_HIERARCHY=COMPOSITE a card is one device of
    # twice these rates and of the same name, which they would bound wrongly: runs need the default.
    (
        r"Intel\(R\) Data Center GPU Max 1550",
        Peak(419.4e12, 209.7e12, 26.2e12, 1638.4e9, f"{_MAX} x 64 x 1.6 GHz"),
    ),
    (r"(Huawei )?Ascend ?910A?", Peak(256e12, 128e12, None, 1200e9, _ASCEND)),
    # By default JAX multiplies float32 on a TPU as bfloat16 in one pass: at the rate of bfloat16.
    (r"TPU v4", Peak(275e12, 275e12, None, 1200e9, f"{_TPU} v4")),
    (r"TPU v5 ?(lite|e)", Peak(197e12, 197e12, None, 819e9, f"{_TPU} v5e")),
    (r"TPU v5p?", Peak(459e12, 459e12, None, 2765e9, f"{_TPU} v5p")),
    (r"TPU v6 ?(lite|e)", Peak(918e12, 918e12, None, 1638e9, f"{_TPU} v6e")),
)


def peak_of(name: str) -> Peak | None:
    """Return the peak rates of a device by its name; None if it is not in the table."""
    return next((peak for pattern, peak in PEAKS if re.fullmatch(pattern, name.strip())), None)


def fastest(form: str, precision: str) -> float:
    """Return the highest peak rate in op/s of the known devices of a form factor.

    It is that of 16-bit numbers for any `precision` that is not wider.
    """
    wide = precision in ("float32", "float64")
    return max(peak.matrix32_ops if wide else peak.matrix16_ops for _, peak in PEAKS if peak.form == form)


def processor_ops(processor: Any, precision: str) -> float:
    """Return the peak rate in op/s of a host's processors, NaN if they do not announce what it needs.

    `processor` is the entry `cpu` of an inventory. The rate is cores x clock x lanes of a vector x 4: two
    units of fused multiply-add in each core, as those of servers have. The clock is the highest one, or that
    in the model's name.
    """
    try:
        cores, bits, mhz = (processor.get(name) for name in ("cores", "vector_bits", "max_mhz"))
        named = re.search(r"@ (\d{1,2}\.\d{1,3})GHz", str(processor.get("model")))
        mhz = float(named[1]) * 1e3 if isinstance(mhz, str) and named else float(mhz)
        ops = int(cores) * mhz * 1e6 * (int(bits) // (64 if precision == "float64" else 32)) * 4.0
    except (AttributeError, TypeError, ValueError, OverflowError):
        return math.nan
    return ops if 0 < ops < math.inf else math.nan


def peak_rates(name: str) -> dict[str, Any] | str:
    """Return the peak rates of a device for an inventory: an object, or a text if they are not known."""
    peak = peak_of(name)
    return f"unknown: aiperf_mpi/machine/peaks.py has no entry for {name!r}" if peak is None else asdict(peak)

# SPDX-License-Identifier: Apache-2.0
"""Peak rates of accelerators by the names that their drivers give them, as their makers state them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Peak:
    """Dense peak rates of one device: matrix products of 16-bit numbers, and float32 outside of matrix units, in op/s;
    memory in byte/s; `source` is where the maker says so."""

    matrix16_ops: float
    float32_ops: float
    memory_bytes_per_second: float
    source: str


_A100 = "NVIDIA A100 Tensor Core GPU datasheet, 2021"
_H100 = "NVIDIA H100 Tensor Core GPU Architecture, white paper v1.04, 2023"
_CDNA2 = "AMD CDNA 2 architecture, white paper, 2021"

#: Device names (whole, as regular expressions) and their rates. Sparsity counts for nothing: ResNets are dense.
PEAKS: tuple[tuple[str, Peak], ...] = (
    (r"(Tesla )?V100-SXM2.*", Peak(125e12, 15.7e12, 900e9, "NVIDIA V100 datasheet, 2020 (float16, no bfloat16)")),
    (r"NVIDIA A100-(SXM4|PCIE)-40GB", Peak(312e12, 19.5e12, 1555e9, _A100)),
    (r"NVIDIA A100-SXM4-80GB", Peak(312e12, 19.5e12, 2039e9, _A100)),
    (r"NVIDIA A100 80GB PCIe", Peak(312e12, 19.5e12, 1935e9, _A100)),
    (r"NVIDIA H100 80GB HBM3", Peak(989.4e12, 66.9e12, 3350e9, _H100)),
    (r"NVIDIA H100 PCIe", Peak(756e12, 51.2e12, 2000e9, _H100)),
    (r"NVIDIA H200", Peak(989.4e12, 66.9e12, 4800e9, "NVIDIA H200 datasheet, 2024")),
    (r"NVIDIA L40S", Peak(362.05e12, 91.6e12, 864e9, "NVIDIA L40S datasheet, 2023")),
    (r"AMD Instinct MI210", Peak(181e12, 22.6e12, 1638e9, "AMD Instinct MI210 data sheet, 2022")),
    (r"AMD Instinct MI250X.*", Peak(191.5e12, 23.9e12, 1638e9, f"{_CDNA2}; one of the module's two dies")),
    (r"AMD Instinct MI300X.*", Peak(1307.4e12, 163.4e12, 5300e9, "AMD Instinct MI300X data sheet, 2023")),
)


def peak_of(name: str) -> Peak | None:
    """The peak rates of a device by its name; None for one that is not in the table."""
    return next((peak for pattern, peak in PEAKS if re.fullmatch(pattern, name.strip())), None)


def peak_rates(name: str) -> dict[str, Any] | str:
    """The same for an inventory: an object of numbers and their source, or a text that says that none is known."""
    peak = peak_of(name)
    return f"unknown: aiperf_mpi/system/peaks.py has no entry for {name!r}" if peak is None else asdict(peak)

# SPDX-License-Identifier: Apache-2.0
"""Accelerators: NVML's units, what a device does not tell, AMD's files, hosts without a driver."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiperf_mpi.machine.accelerators import DeviceReading, NvidiaDevices, open_accelerators, open_nvidia
from aiperf_mpi.machine.peaks import CARD, MODULE, PEAKS, fastest, peak_of, peak_rates, processor_ops


class NVMLError(Exception):
    """The error class of pynvml."""


class Nvml:
    """Two devices in NVML's own units (mW, mJ, MHz, byte); the second is old: it has no energy counter and
    does not report its use. No such device exists where the tests run, so this replaces the library."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def nvmlInit(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65.06"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index not in (0, 1):
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return ("NVIDIA H100 80GB HBM3", "Old")[handle]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return ("GPU-a", "GPU-b")[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=80 * 2**30, used=(handle + 1) * 2**30)

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if handle:
            raise NVMLError("Not Supported")
        return 123_456

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=93)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 512_500

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1755

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        return 61


def test_nvml_is_read_in_the_units_of_the_samples() -> None:
    # 512,500 mW are 512.5 W; the counter stays in mJ.
    first, second = open_nvidia(["0", "GPU-b"], Nvml()).read()
    assert first == DeviceReading(93.0, float(2**30), 512.5, 1755.0, 61.0, 123_456)
    assert math.isnan(second.percent) and second.millijoules is None and second.memory_bytes == 2**31


def test_an_nvidia_device_is_described_without_blanks() -> None:
    devices = open_nvidia(["0", "1"], Nvml())
    first, second = devices.describe()
    assert isinstance(devices, NvidiaDevices) and devices.why == ""
    assert first["uuid"] == "GPU-a" and first["driver"] == "580.65.06" and first["power_limit_watts"] == 700.0
    assert first["peak"]["matrix16_ops"] == 989.4e12 and first["energy_counter"] is True
    assert second["peak"] == "unknown: aiperf_mpi/machine/peaks.py has no entry for 'Old'"
    assert second["energy_counter"] is False


def test_a_device_that_nvml_does_not_know_is_a_reason() -> None:
    assert open_nvidia(["7"], Nvml()).why == "NVML: Invalid Argument"


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this host has NVIDIA's driver")
def test_without_a_driver_the_real_library_is_a_reason() -> None:
    devices = open_nvidia(["0"])
    assert devices.why.startswith("NVML: ") and devices.read() == [] == devices.describe()
    assert open_accelerators(()).why == "this node has no accelerator"


@pytest.fixture
def amd(tmp_path: Path) -> Path:
    """A root with a graphics chip of another maker and two cards of AMD, the second without sensors."""
    files = {
        "card0/device": {"vendor": "0x1a03"},
        "card1/device": {
            "vendor": "0x1002",
            "product_name": "AMD Instinct MI210",
            "unique_id": "7d41f4d2",
            "gpu_busy_percent": "88",
            "mem_info_vram_total": "68702699520",
            "mem_info_vram_used": "1048576",
        },
        "card1/device/hwmon/hwmon5": {
            "power1_average": "187000000",
            "power1_cap": "300000000",
            "temp1_input": "54000",
            "freq1_input": "1700000000",
        },
        "card2/device": {"vendor": "0x1002", "device": "0x740f"},
        "card1-DP-1": {"status": "disconnected"},
    }
    for folder, texts in files.items():
        path = tmp_path / "sys" / "class" / "drm" / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (path / name).write_text(f"{text}\n")
    return tmp_path


def test_amd_is_read_from_the_kernels_files(amd: Path) -> None:
    # µW, m°C and Hz: 187 W, 54 °C, 1700 MHz.
    devices = open_accelerators(("0", "1"), amd)
    first, second = devices.read()
    assert first == DeviceReading(88.0, 1048576.0, 187.0, 1700.0, 54.0, None)
    assert all(math.isnan(value) for value in (second.percent, second.watts, second.mhz))
    described, other = devices.describe()
    assert described["uuid"] == "7d41f4d2" and described["power_limit_watts"] == 300.0
    assert described["peak"]["matrix16_ops"] == 181e12 and other["name"] == "AMD device 0x740f"
    assert "the driver amdgpu shows 2 cards" in open_accelerators(("0", "1", "2"), amd).why


def test_every_peak_has_a_source_and_rates_in_order() -> None:
    # A device multiplies half-precision numbers at least twice as fast as float32, and that at least as fast
    # as its vector units; a TPU multiplies float32 as bfloat16. Makers round to four digits.
    for name, peak in PEAKS:
        least = 1 if name.startswith("TPU") else 2
        assert 1.001 * peak.matrix16_ops >= least * peak.matrix32_ops > 0, name
        assert peak.matrix32_ops >= (peak.float32_ops or 0), name
        assert len(peak.source) > 20 and 1e11 < peak.memory_bytes_per_second < 1e13, name
    assert len({name for name, _ in PEAKS}) == len(PEAKS)


@pytest.mark.parametrize(
    ("name", "matrix16", "matrix32"),
    [
        ("Tesla T4", 65e12, 8.1e12),
        ("Tesla V100-SXM2-16GB", 125e12, 15.7e12),
        ("Tesla V100-SXM3-32GB", 125e12, 15.7e12),
        ("Tesla V100-PCIE-32GB", 112e12, 14e12),
        ("Tesla V100S-PCIE-32GB", 130e12, 16.4e12),
        ("A100-SXM4-40GB", 312e12, 156e12),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA H100 NVL", 835.5e12, 417.5e12),
        ("NVIDIA H200", 989.4e12, 494.7e12),
        ("NVIDIA GH200 480GB", 989.4e12, 494.7e12),
        ("NVIDIA GH200 144G HBM3e", 989.4e12, 494.7e12),
        ("NVIDIA H20", 148e12, 74e12),
        ("NVIDIA H20-3e", 148e12, 74e12),
        ("NVIDIA L40S", 366.5e12, 183e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12, 104.8e12),
        ("NVIDIA B200", 2250e12, 1125e12),
        ("NVIDIA GB200", 2500e12, 1250e12),
        ("AMD Instinct MI210", 181e12, 45.3e12),
        ("AMD Instinct MI250X", 191.5e12, 47.9e12),
        ("AMD Instinct MI250X / MI250", 191.5e12, 47.9e12),
        ("AMD Instinct MI300A", 980.6e12, 490.3e12),
        ("AMD Instinct MI300X", 1307.4e12, 653.7e12),
        ("AMD Instinct MI300X OAM", 1307.4e12, 653.7e12),
        ("AMD Instinct MI325X", 1307.4e12, 653.7e12),
        ("AMD Instinct MI350X", 2306.9e12, 144.2e12),
        ("AMD Instinct MI355X", 2516.6e12, 157.3e12),
        ("Intel(R) Data Center GPU Max 1550", 419.4e12, 209.7e12),
        ("Ascend 910", 256e12, 128e12),
        ("Ascend910A", 256e12, 128e12),
        ("TPU v4", 275e12, 275e12),
        ("TPU v5 lite", 197e12, 197e12),
        ("TPU v5e", 197e12, 197e12),
        ("TPU v5", 459e12, 459e12),
        ("TPU v5p", 459e12, 459e12),
        ("TPU v6 lite", 918e12, 918e12),
        ("TPU v6e", 918e12, 918e12),
    ],
)
def test_a_device_name_fits_its_own_peak_alone(name: str, matrix16: float, matrix32: float) -> None:
    fitting = [peak for pattern, peak in PEAKS if re.fullmatch(pattern, name)]
    assert [(peak.matrix16_ops, peak.matrix32_ops) for peak in fitting] == [(matrix16, matrix32)]
    assert peak_of(f" {name} ") is fitting[0]


@pytest.mark.parametrize(
    "name",
    [
        # Parts of a device, and faster or slower devices with the same beginning.
        "NVIDIA H100 PCIe MIG 1g.10gb",
        "NVIDIA A100-SXM4-40GB MIG 3g.20gb",
        "NVIDIA H200 NVL",
        "NVIDIA GH200",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 5090 D",
        "NVIDIA T400",
        "AMD Instinct MI300X VF",
        "Intel(R) Data Center GPU Max 1100",
        "Ascend 910B",
        "Ascend910B3",
        "TPU v3",
        "TPU v4 lite",
        "TPU7x",
        "H100",
        "cpu",
        "",
    ],
)
def test_a_name_that_is_not_in_the_table_has_no_peak(name: str) -> None:
    assert peak_of(name) is None and f"no entry for {name!r}" in str(peak_rates(name))


def test_rates_follow_from_compute_units() -> None:
    # Operations per clock and compute unit of the maker's table x compute units x clock: 110 x 1024 x 1.7 GHz
    # = 191.5, 104 x 1024 x 1.7 GHz = 181.0, 304 x 2048 x 2.1 GHz = 1307.4, 228 x 2048 x 2.1 GHz = 980.6,
    # 256 x 4096 x 2.4 GHz = 2516.6 (in 1e12). An Xe core is Intel's compute unit.
    for name, units, per_clock, hertz in (
        ("AMD Instinct MI250X", 110, 1024, 1.7e9),
        ("AMD Instinct MI210", 104, 1024, 1.7e9),
        ("AMD Instinct MI300X", 304, 2048, 2.1e9),
        ("AMD Instinct MI300A", 228, 2048, 2.1e9),
        ("AMD Instinct MI325X", 304, 2048, 2.1e9),
        ("AMD Instinct MI350X", 256, 4096, 2.2e9),
        ("AMD Instinct MI355X", 256, 4096, 2.4e9),
        ("Intel(R) Data Center GPU Max 1550", 64, 4096, 1.6e9),
    ):
        assert (peak := peak_of(name)) is not None
        assert peak.matrix16_ops == pytest.approx(units * per_clock * hertz, rel=1e-3), name


def test_the_peak_of_a_precision_is_its_matrix_units_peak() -> None:
    peak = peak_of("NVIDIA A100-SXM4-40GB")
    assert peak is not None
    rates = {name: peak.matrix_ops(name) for name in ("float16", "bfloat16", "float32", "float64")}
    assert rates == {"float16": 312e12, "bfloat16": 312e12, "float32": 156e12, "float64": 156e12}


def test_the_fastest_known_device_of_a_form() -> None:
    assert fastest(CARD, "bfloat16") == fastest(CARD, "float16") == 835.5e12
    assert fastest(MODULE, "bfloat16") == 2516.6e12
    assert fastest(CARD, "float32") == 417.5e12 and fastest(MODULE, "float64") == 1250e12


@pytest.mark.parametrize(
    ("changes", "precision", "expected"),
    [
        ({}, "float32", 64 * 2.5e9 * 8 * 4),
        ({}, "float64", 64 * 2.5e9 * 4 * 4),
        ({"vector_bits": 512}, "bfloat16", 64 * 2.5e9 * 16 * 4),
        # Without a range of clocks: that of the model's name.
        ({"max_mhz": "not reported", "model": "Xeon E5-2680 v3 @ 2.50GHz"}, "float32", 64 * 2.5e9 * 8 * 4),
        ({"max_mhz": "not reported", "model": "AMD EPYC"}, "float32", math.nan),
        ({"vector_bits": "not shown"}, "float32", math.nan),
        ({"vector_bits": 0}, "float32", math.nan),
        ({"cores": None}, "float32", math.nan),
        ({"max_mhz": 1e308}, "float32", math.nan),
        ({"cores": -1}, "float32", math.nan),
        ({"cores": math.inf}, "float32", math.nan),
    ],
)
def test_the_peak_of_processors_is_what_they_announce(
    changes: dict[str, Any], precision: str, expected: float
) -> None:
    processor = {"cores": 64, "max_mhz": 2500.0, "vector_bits": 256, "model": "AMD EPYC"} | changes
    assert processor_ops(processor, precision) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(processor_ops(None, precision)) and math.isnan(processor_ops([], precision))

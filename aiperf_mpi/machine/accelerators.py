# SPDX-License-Identifier: Apache-2.0
"""Describe and read accelerators: NVIDIA's through NVML, AMD's through the kernel's files.

Devices are opened by the names that a launcher or the kernel gives them. A value that a device does not
report is NaN in a reading, and a reason in a description. If a device cannot be opened, the run continues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from aiperf_mpi.machine.peaks import peak_rates
from aiperf_mpi.probe import NotKnown, probe, reason

#: Seconds that opening or describing a node's accelerators may take; the driver starts on its first use.
ACCELERATOR_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """The state of one device at one time; NaN or None for a value that it does not report.

    Attributes:
        percent: use in %.
        memory_bytes: memory in use in bytes.
        watts: power in W.
        mhz: clock of the compute units in MHz.
        celsius: temperature in °C.
        millijoules: energy counter in mJ, from an arbitrary start.
    """

    percent: float = math.nan
    memory_bytes: float = math.nan
    watts: float = math.nan
    mhz: float = math.nan
    celsius: float = math.nan
    millijoules: int | None = None


class Accelerators(Protocol):
    """The devices of a node; `why` is the reason if there are none, else ""."""

    why: str

    def describe(self) -> list[dict[str, Any]]:
        """Describe each device for the inventory."""

    def read(self) -> list[DeviceReading]:
        """Read the state of each device now."""


class NoAccelerators:
    """A node without accelerators, or with accelerators that cannot be read."""

    def __init__(self, why: str) -> None:
        self.why = why

    def describe(self) -> list[dict[str, Any]]:
        """Return no description."""
        return []

    def read(self) -> list[DeviceReading]:
        """Return no reading."""
        return []


def open_accelerators(names: Sequence[str], root: Path = Path("/")) -> Accelerators:
    """Open the accelerators `names` of this node, named as in CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES.

    Files of the system are read below `root`.
    """
    if not names:
        return NoAccelerators("this node has no accelerator")
    opened = probe("the accelerators", _open, names, root, seconds=ACCELERATOR_SECONDS)
    return NoAccelerators(opened) if isinstance(opened, NotKnown) else opened


def _open(names: Sequence[str], root: Path) -> Accelerators:
    """Open accelerators as `open_accelerators` does; may raise what a driver's library raises."""
    if (root / "dev" / "nvidiactl").exists():
        return open_nvidia(names)
    devices = AmdDevices(names, root)
    return devices if not devices.why else NoAccelerators(devices.why)


# -- NVIDIA ----------------------------------------------------------------------------------------


def open_nvidia(names: Sequence[str], nvml: Any = None) -> Accelerators:
    """Open NVIDIA devices by number or UUID; `nvml` is the module pynvml, imported here unless given."""
    if nvml is None:
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return NoAccelerators("NVML: the package nvidia-ml-py is not installed (extras cuda12, cuda13)")
    try:
        nvml.nvmlInit()
        return NvidiaDevices(names, nvml)
    except nvml.NVMLError as error:
        return NoAccelerators(f"NVML: {error}")


class NvidiaDevices:
    """Devices opened through NVML, which must be initialised. Raises NVMLError for an unknown name."""

    def __init__(self, names: Sequence[str], nvml: Any) -> None:
        self.why = ""
        self._nvml = nvml
        by_number, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        self._handles = [by_number(int(name)) if name.strip().isdigit() else by_uuid(name) for name in names]

    def describe(self) -> list[dict[str, Any]]:
        """Describe each device for the inventory."""
        nvml = self._nvml
        driver = self._call(nvml.nvmlSystemGetDriverVersion)
        return [
            {
                "name": (name := self._call(nvml.nvmlDeviceGetName, handle)),
                "uuid": self._call(nvml.nvmlDeviceGetUUID, handle),
                "driver": driver,
                "memory_bytes": self._call(lambda h: int(nvml.nvmlDeviceGetMemoryInfo(h).total), handle),
                "max_mhz": self._call(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
                "max_memory_mhz": self._call(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
                "power_limit_watts": self._call(
                    lambda h: nvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1000, handle
                ),
                "energy_counter": isinstance(
                    self._call(nvml.nvmlDeviceGetTotalEnergyConsumption, handle), int
                ),
                "peak": peak_rates(str(name)),
            }
            for handle in self._handles
        ]

    def read(self) -> list[DeviceReading]:
        """Read the state of each device now."""
        nvml = self._nvml
        return [
            DeviceReading(
                percent=self._number(lambda h: nvml.nvmlDeviceGetUtilizationRates(h).gpu, handle),
                memory_bytes=self._number(lambda h: nvml.nvmlDeviceGetMemoryInfo(h).used, handle),
                watts=self._number(lambda h: nvml.nvmlDeviceGetPowerUsage(h) / 1000, handle),
                mhz=self._number(lambda h: nvml.nvmlDeviceGetClockInfo(h, nvml.NVML_CLOCK_SM), handle),
                celsius=self._number(
                    lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU), handle
                ),
                millijoules=self._counter(handle),
            )
            for handle in self._handles
        ]

    def _call(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return the value of a call of NVML, or a text with the reason if it fails in any way."""
        try:
            answer = call(*arguments)
        except self._nvml.NVMLError as error:
            return f"not reported by NVML: {error}"
        except Exception as error:
            return f"not reported by NVML: {reason(error)}"
        return answer.decode(errors="replace") if isinstance(answer, bytes) else answer

    def _number(self, call: Callable[[Any], float], handle: Any) -> float:
        """Return the number of a call of NVML; NaN if it fails."""
        answer = self._call(call, handle)
        return math.nan if isinstance(answer, str) else float(answer)

    def _counter(self, handle: Any) -> int | None:
        """Return the energy counter in mJ; None if the device has none."""
        answer = self._call(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return None if isinstance(answer, str) else int(answer)


# -- AMD -------------------------------------------------------------------------------------------

_AMD = "0x1002"


class AmdDevices:
    """AMD devices that the driver amdgpu shows below `root`; device n is the n-th card, from 0."""

    def __init__(self, names: Sequence[str], root: Path = Path("/")) -> None:
        self._root = root
        cards = [
            path for path in (root / "sys" / "class" / "drm").glob("card[0-9]*") if path.name[4:].isdigit()
        ]
        folders = [path / "device" for path in sorted(cards, key=lambda path: int(path.name[4:]))]
        folders = [folder for folder in folders if _text(folder / "vendor") == _AMD]
        wanted = [int(name) for name in names if name.strip().isdigit()]
        self._folders = [folders[number] for number in wanted if number < len(folders)]
        self.why = ""
        if len(self._folders) != len(names):
            self.why = (
                f"the driver amdgpu shows {len(folders)} cards, but the node's devices are {', '.join(names)}"
            )

    def describe(self) -> list[dict[str, Any]]:
        """Describe each device for the inventory."""
        driver = _text(self._root / "sys" / "module" / "amdgpu" / "version") or "part of the kernel"
        return [self._description(folder, driver) for folder in self._folders]

    def _description(self, folder: Path, driver: str) -> dict[str, Any]:
        name = (
            _text(folder / "product_name") or f"AMD device {_text(folder / 'device') or 'without a number'}"
        )
        cap = _number(_hwmon(folder, "power1_cap"))
        memory = _number(folder / "mem_info_vram_total")
        return {
            "name": name,
            "uuid": _text(folder / "unique_id") or "not reported by amdgpu",
            "driver": driver,
            "memory_bytes": "not reported by amdgpu" if math.isnan(memory) else int(memory),
            "power_limit_watts": "not reported by amdgpu" if math.isnan(cap) else cap / 1e6,
            "energy_counter": False,
            "peak": peak_rates(name),
        }

    def read(self) -> list[DeviceReading]:
        """Read the state of each device now."""
        return [
            DeviceReading(
                percent=_number(folder / "gpu_busy_percent"),
                memory_bytes=_number(folder / "mem_info_vram_used"),
                watts=_first(_hwmon(folder, "power1_average"), _hwmon(folder, "power1_input")) / 1e6,
                mhz=_number(_hwmon(folder, "freq1_input")) / 1e6,
                celsius=_number(_hwmon(folder, "temp1_input")) / 1e3,
            )
            for folder in self._folders
        ]


def _hwmon(folder: Path, name: str) -> Path:
    """Return the path of a sensor file of a device, whatever number its sensors have."""
    return next(iter(sorted(folder.glob(f"hwmon/hwmon*/{name}"))), folder / name)


def _text(path: Path) -> str:
    """Read a file of the kernel; "" if it is missing or cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> float:
    """Read a number from a file of the kernel; NaN if there is none."""
    try:
        return float(_text(path))
    except ValueError:
        return math.nan


def _first(*paths: Path) -> float:
    """Return the number of the first file that has one; NaN if none has."""
    return next((number for number in map(_number, paths) if not math.isnan(number)), math.nan)

# SPDX-License-Identifier: Apache-2.0
"""What accelerators say of themselves: NVIDIA's by NVML, AMD's by the kernel's files.

Both are opened by the names that a launcher or the kernel gives a node's devices. What a device does not tell
is NaN in a reading, and a reason in a description; a device that cannot be opened is no error of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from aiperf_mpi.machine.peaks import peak_rates


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One device now: use in %, memory in use in bytes, power in W, SM clock in MHz, temperature in °C (NaN:
    not told), and its energy counter in mJ since some moment (None: there is none)."""

    percent: float = math.nan
    memory_bytes: float = math.nan
    watts: float = math.nan
    mhz: float = math.nan
    celsius: float = math.nan
    millijoules: int | None = None


class Accelerators(Protocol):
    """The devices of a node; `why` says why there are none, "" where there are."""

    why: str

    def describe(self) -> list[dict[str, Any]]:
        """What each device is, for the inventory."""

    def read(self) -> list[DeviceReading]:
        """What each device does now."""


class NoAccelerators:
    """A node without accelerators, or with some that nobody can ask."""

    def __init__(self, why: str) -> None:
        self.why = why

    def describe(self) -> list[dict[str, Any]]:
        """See Accelerators."""
        return []

    def read(self) -> list[DeviceReading]:
        """See Accelerators."""
        return []


def open_accelerators(names: Sequence[str], root: Path = Path("/")) -> Accelerators:
    """The accelerators `names` of this node, as CUDA_VISIBLE_DEVICES or ROCR_VISIBLE_DEVICES would name
    them."""
    if not names:
        return NoAccelerators("this node has no accelerator")
    if (root / "dev" / "nvidiactl").exists():
        return open_nvidia(names)
    devices = AmdDevices(names, root)
    return devices if not devices.why else NoAccelerators(devices.why)


# -- NVIDIA ----------------------------------------------------------------------------------------


def open_nvidia(names: Sequence[str], nvml: Any = None) -> Accelerators:
    """NVIDIA's devices of these numbers or UUIDs; `nvml` is the module pynvml, imported here unless given."""
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
    """Devices opened by NVML, which must be initialised; raises NVMLError for a name that it does not
    know."""

    def __init__(self, names: Sequence[str], nvml: Any) -> None:
        self.why = ""
        self._nvml = nvml
        by_number, by_uuid = nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetHandleByUUID
        self._handles = [by_number(int(name)) if name.strip().isdigit() else by_uuid(name) for name in names]

    def describe(self) -> list[dict[str, Any]]:
        """See Accelerators."""
        nvml = self._nvml
        driver = self._told(nvml.nvmlSystemGetDriverVersion)
        return [
            {
                "name": (name := self._told(nvml.nvmlDeviceGetName, handle)),
                "uuid": self._told(nvml.nvmlDeviceGetUUID, handle),
                "driver": driver,
                "memory_bytes": self._told(lambda h: int(nvml.nvmlDeviceGetMemoryInfo(h).total), handle),
                "max_mhz": self._told(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
                "max_memory_mhz": self._told(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
                "power_limit_watts": self._told(
                    lambda h: nvml.nvmlDeviceGetEnforcedPowerLimit(h) / 1000, handle
                ),
                "energy_counter": isinstance(
                    self._told(nvml.nvmlDeviceGetTotalEnergyConsumption, handle), int
                ),
                "peak": peak_rates(str(name)),
            }
            for handle in self._handles
        ]

    def read(self) -> list[DeviceReading]:
        """See Accelerators."""
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

    def _told(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML answers, or why it does not."""
        try:
            answer = ask(*arguments)
        except self._nvml.NVMLError as error:
            return f"not told by NVML: {error}"
        return answer.decode(errors="replace") if isinstance(answer, bytes) else answer

    def _number(self, ask: Callable[[Any], float], handle: Any) -> float:
        answer = self._told(ask, handle)
        return math.nan if isinstance(answer, str) else float(answer)

    def _counter(self, handle: Any) -> int | None:
        answer = self._told(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return None if isinstance(answer, str) else int(answer)


# -- AMD -------------------------------------------------------------------------------------------

_AMD = "0x1002"


class AmdDevices:
    """AMD's devices as the driver amdgpu shows them below `root`, by their numbers in the order of their
    cards."""

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
        """See Accelerators."""
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
            "uuid": _text(folder / "unique_id") or "not told by amdgpu",
            "driver": driver,
            "memory_bytes": "not told by amdgpu" if math.isnan(memory) else int(memory),
            "power_limit_watts": "not told by amdgpu" if math.isnan(cap) else cap / 1e6,
            "energy_counter": False,
            "peak": peak_rates(name),
        }

    def read(self) -> list[DeviceReading]:
        """See Accelerators."""
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
    """A file of the device's sensors, whatever number they have."""
    return next(iter(sorted(folder.glob(f"hwmon/hwmon*/{name}"))), folder / name)


def _text(path: Path) -> str:
    """What a file of the kernel says; "" where there is none, or it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> float:
    try:
        return float(_text(path))
    except ValueError:
        return math.nan


def _first(*paths: Path) -> float:
    """The first of the numbers that is one."""
    return next((number for number in map(_number, paths) if not math.isnan(number)), math.nan)

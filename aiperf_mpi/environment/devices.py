# SPDX-License-Identifier: Apache-2.0
"""Which accelerators the variables of CUDA and ROCm leave to a process, by the rules of these libraries.

A list ends at its first entry that names no device, and a repeated entry leaves CUDA no device at all. CUDA
reads a number as C does, so that `-1`, `NoDevFiles` and `none` end the list. ROCm's runtime reads
ROCR_VISIBLE_DEVICES, and HIP counts from what that has left.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from aiperf_mpi.planning.finding import Finding

#: NVIDIA's variable, and AMD's in the order in which they are applied. HIP reads CUDA's where its own is not
#: set.
CUDA, ROCR, HIP, ORDINAL = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)

#: Variables by which a batch system says that a job was given accelerators (their numbers, or how many), and
#: what means none.
_GIVEN = {"SLURM_JOB_GPUS": "", "SLURM_STEP_GPUS": "", "SLURM_GPUS_ON_NODE": "0", "PBS_NGPUS": "0"}


def visible_devices(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[str, ...]:
    """Return the names of the accelerators that this process may use, as its variable names them.

    Files of the system are read below `root`. Without variables these are the numbers of all devices that the
    kernel shows: NVIDIA's, else AMD's.
    """
    nvidia = nvidia_devices(root)
    if nvidia:
        return left_by_cuda(environ[CUDA], nvidia, uuids(root)) if CUDA in environ else _numbers(nvidia)
    devices = amd_devices(root)
    names = left_by_rocm(environ[ROCR], _numbers(devices)) if ROCR in environ else _numbers(devices)
    for variable in (HIP if HIP in environ else CUDA, ORDINAL):
        if variable in environ:
            names = left_by_rocm(environ[variable], names)
    return names


def nvidia_devices(root: Path = Path("/")) -> int:
    """Return the number of NVIDIA's devices that the kernel shows."""
    return sum(path.name[6:].isdecimal() for path in root.glob("dev/nvidia[0-9]*"))


def amd_devices(root: Path = Path("/")) -> int:
    """Return the number of AMD's devices that the kernel shows: nodes of its topology with a GPU."""
    count = 0
    for path in root.glob("sys/class/kfd/kfd/topology/nodes/*/gpu_id"):
        try:
            count += path.read_text().strip() not in ("", "0")
        except OSError:
            continue  # a device that this process may not use
    return count


def uuids(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the UUIDs of NVIDIA's devices, as far as the driver tells them in files."""
    found = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        try:
            match = re.search(r"^GPU UUID:\s*(\S+)", path.read_text(errors="replace"), re.MULTILINE)
        except OSError:
            continue
        if match:
            found.append(match[1])
    return tuple(found)


def left_by_cuda(text: str, count: int, known: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the entries of CUDA_VISIBLE_DEVICES that count, with `count` devices on this host.

    `known` are their UUIDs; a UUID that none of them begins with ends the list. Without any, each counts.
    """
    for prefix in ("GPU-", "MIG-"):
        if text.strip().startswith(prefix):
            return _named(text, prefix, known if prefix == "GPU-" else ())
    found: list[str] = []
    for entry in text.split(","):
        # As C's strtoul: leading digits count, and the rest is not read.
        digits = re.match(r"\s*\+?([0-9]{1,9})", entry)
        if digits is None or int(digits[1]) >= count:
            break
        if (name := str(int(digits[1]))) in found:
            return ()
        found.append(name)
    return tuple(found)


def _named(text: str, prefix: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of a list of UUIDs, each in full or as a beginning that only one device has."""
    found: list[str] = []
    for entry in map(str.strip, text.split(",")):
        fitting = [name for name in known if name.lower().startswith(entry.lower())]
        if not entry.startswith(prefix) or (known and len(fitting) != 1):
            break
        name = fitting[0] if fitting else entry
        if name in found:
            return ()
        found.append(name)
    return tuple(found)


def left_by_rocm(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return what a variable of ROCm leaves of `names`: its numbers are places in them.

    A UUID counts as it is, since the kernel shows none to compare it with.
    """
    found: list[str] = []
    for entry in map(str.strip, text.split(",")):
        if entry.isdecimal() and len(entry) < 10 and int(entry) < len(names):
            name = names[int(entry)]
        elif entry.startswith("GPU-") and names:
            name = entry
        else:
            break
        if name in found:
            break
        found.append(name)
    return tuple(found)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def judge(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> tuple[Finding, ...]:
    """Return a finding for a variable that names devices which this host does not have.

    It is a failure where the batch system says that it gave the job accelerators and the kernel shows none:
    the run would train on CPUs.
    """
    variable = CUDA if nvidia_devices(root) or not amd_devices(root) else ROCR
    asked = [entry.strip() for entry in environ.get(variable, "").split(",")]
    wanted = [entry for entry in asked if re.match(r"\+?[0-9]|GPU-|MIG-", entry)]
    names = visible_devices(environ, root)
    if not wanted or len(names) >= len(wanted):
        return ()
    shown = max(nvidia_devices(root), amd_devices(root))
    text = f"{variable}={environ[variable][:200]}: of its {len(wanted)} devices {len(names)} can be used, as"
    why = f"the kernel shows {shown}" if shown else "the kernel shows no accelerator"
    by = next((name for name, none in _GIVEN.items() if environ.get(name, "") not in ("", none)), None)
    if by is not None and not shown and environ.get("JAX_PLATFORMS") != "cpu":
        remedy = "load the driver on this host or leave it out of the job, or set JAX_PLATFORMS=cpu"
        return (Finding("fail", "accelerators", f"{text} {why}, but {by}={environ[by][:80]}", remedy),)
    if shown:
        why += ", and a list ends at its first entry that names none or one twice"
    return (Finding("warn", "accelerators", f"{text} {why}", f"correct {variable}, or unset it"),)

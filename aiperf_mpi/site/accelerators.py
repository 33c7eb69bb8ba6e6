# SPDX-License-Identifier: Apache-2.0
"""Judge the accelerators of a host: device files, driver, JAX's plugin, and what JAX itself finds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiperf_mpi.environment.jax_variables import cannot_open
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.planning.precision import choose
from aiperf_mpi.printable import counted
from aiperf_mpi.site.child import not_known

#: Distribution of JAX's plugin -> the extra of this package, the vendor, and the lowest driver that it needs.
PLUGINS = {
    "jax-cuda12-plugin": ("cuda12", "NVIDIA", 525),
    "jax-cuda13-plugin": ("cuda13", "NVIDIA", 580),
    "jax-rocm7-plugin": ("rocm", "AMD", 0),
}

#: What a finding about JAX says of the precision.
AUTOMATIC = "train.precision auto"

_NVIDIA_VERSION = Path("proc/driver/nvidia/version")


def kernel_devices(root: Path = Path("/")) -> tuple[str, list[Path]]:
    """Return the vendor of the accelerators that the kernel shows ("" for none), and their device files."""
    nvidia = sorted(path for path in root.glob("dev/nvidia[0-9]*") if path.name[6:].isdigit())
    if nvidia:
        return "NVIDIA", nvidia
    if (root / "dev" / "kfd").exists():
        return "AMD", [root / "dev" / "kfd", *sorted(root.glob("dev/dri/renderD*"))]
    return "", []


def driver_version(vendor: str, root: Path = Path("/")) -> str:
    """Return the version of the driver in the kernel, "" if it is not told."""
    path = root / (_NVIDIA_VERSION if vendor == "NVIDIA" else "sys/module/amdgpu/version")
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"\b(\d{3,}(?:\.\d+)+|\d+(?:\.\d+)+)\b", text)
    return found.group(1) if found else ""


def judge_devices(
    names: Sequence[str],
    packages: Mapping[str, str],
    environ: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
) -> tuple[Finding, ...]:
    """Judge the device files, the driver and the plugin.

    `names` are the devices that this process may use, `packages` the versions of what is installed.
    """
    subject = "accelerators"
    vendor, files = kernel_devices(root)
    by_choice = environ.get("JAX_PLATFORMS", "") == "cpu"
    if not files:
        if names:
            text = f"the environment names {counted(len(names), 'device')}, but the kernel shows none"
            return (
                Finding(
                    "warn", subject, text, "ask for accelerators, or unset CUDA_VISIBLE_DEVICES and its like"
                ),
            )
        return (Finding("ok", subject, "none: trainers compute on CPUs"),)
    if by_choice:
        return (Finding("ok", subject, f"{vendor}: not used, as JAX_PLATFORMS is cpu"),)
    found = [*_closed(subject, files), *_driver(subject, vendor, packages, root)]
    if not names:
        text = f"{vendor} devices are in this host, but none is given to this process"
        found.append(
            Finding("warn", subject, text, "ask the batch system for devices, or set CUDA_VISIBLE_DEVICES")
        )
    if not found:
        text = f"{vendor}, {len(names)} for this process, driver {driver_version(vendor, root) or 'not told'}"
        found.append(Finding("ok", subject, text))
    return tuple(found)


def _closed(subject: str, files: Sequence[Path]) -> list[Finding]:
    """Return a warning if this user may not open some of the device files, a failure without any device.

    AMD's first file, /dev/kfd, is that of the driver, which all of its devices need.
    """
    closed = [path for path in files if not os.access(path, os.R_OK | os.W_OK)]
    if not closed:
        return []
    devices = [path for path in files if path.name != "kfd"] or files
    none = set(devices) <= set(closed) or closed[0].name == "kfd"
    more = f" and {counted(len(closed) - 1, 'other device file')}" if len(closed) > 1 else ""
    text = f"{closed[0]}{more}: this user may not read and write it"
    remedy = "run in the group that owns it (video or render), or ask the batch system for devices"
    return [Finding("fail" if none else "warn", subject, text, remedy)]


def _driver(subject: str, vendor: str, packages: Mapping[str, str], root: Path) -> list[Finding]:
    """Return a failure if no plugin of JAX belongs to the devices, or the driver is too old for it."""
    own = [name for name, (_, of, _) in PLUGINS.items() if of == vendor and name in packages]
    version = driver_version(vendor, root)
    major = int(version.partition(".")[0]) if version else 0
    extra = "rocm" if vendor == "AMD" else "cuda13" if major >= PLUGINS["jax-cuda13-plugin"][2] else "cuda12"
    if not own:
        remedy = f"install the extra {extra} of this package (pip install 'aiperf_mpi[{extra}]')"
        return [Finding("fail", subject, f"{vendor} devices, but JAX has no plugin for them", remedy)]
    if vendor == "NVIDIA" and not version:
        text = f"/{_NVIDIA_VERSION} does not tell the driver's version"
        return [
            Finding("warn", subject, text, "try nvidia-smi; in a container pass the driver on (--gpus, --nv)")
        ]
    for name in own:
        if 0 < major < PLUGINS[name][2]:
            text = f"driver {version} is older than {PLUGINS[name][2]}, which {name} {packages[name]} needs"
            return [Finding("fail", subject, text, "install the extra cuda12, or a newer driver")]
    return []


def judge_jax(
    told: Mapping[str, Any], names: Sequence[str], environ: Mapping[str, str] = os.environ
) -> tuple[Finding, ...]:
    """Judge what JAX finds in a process of its own; `told` is its answer, `environ` are its variables."""
    subject = "JAX"
    if unknown := not_known(subject, told):
        return (unknown,)
    if error := told.get("error"):
        kind, _, words = str(error).partition(": ")
        named = ("", str(error)) if not kind.isidentifier() else (kind, words)
        what, remedy = cannot_open(*named, environ)
        return (Finding("fail", subject, what, remedy),)
    text = devices_of(told)
    if names and told.get("platform") == "cpu" and not environ.get("JAX_PLATFORMS"):
        remedy = "install the extra cuda12, cuda13 or rocm of this package, or set JAX_PLATFORMS=cpu"
        return (
            Finding(
                "fail",
                subject,
                f"finds only {text}, but the host has {counted(len(names), 'accelerator')}",
                remedy,
            ),
        )
    return (Finding("ok", subject, f"finds {text}; {AUTOMATIC} is {precision_of(told)}"),)


def of_cpu(devices: int) -> Finding:
    """Return that trainers compute on so many devices of the CPU, whatever JAX finds by itself."""
    return Finding(
        "ok",
        "JAX",
        f"{counted(devices, 'device')} of the CPU on a node, by parallel.host_devices; {AUTOMATIC} is "
        f"{choose('cpu').precision}",
    )


def precision_of(told: Mapping[str, Any]) -> str:
    """Return what `train.precision = "auto"` becomes on the devices that JAX finds."""
    return choose(str(told.get("platform", "")), str(told.get("capability", ""))).precision


def devices_of(told: Mapping[str, Any]) -> str:
    """Return the number and kind of the devices that JAX finds."""
    kinds: dict[str, int] = {}
    for kind in told.get("kinds", ()):
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) or "no device"

# SPDX-License-Identifier: Apache-2.0
"""List the network interfaces and RDMA devices that the kernel shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Folders of interfaces and of RDMA devices, relative to the root.
_INTERFACES, _RDMA = Path("sys/class/net"), Path("sys/class/infiniband")


def interfaces(root: Path = Path("/")) -> list[dict[str, Any]] | str:
    """List every interface except loopback, or say why there is none.

    An interface has its name, state, speed (Mbit/s), MTU and driver.
    """
    folder = root / _INTERFACES
    entries = [
        {
            "name": path.name,
            "state": _read(path / "operstate"),
            "mbit_per_second": _speed(path / "speed"),
            "mtu": _read(path / "mtu"),
            "driver": _link(path / "device" / "driver", "virtual: it has no device"),
        }
        for path in sorted(folder.glob("*"))
        if path.is_dir() and path.name != "lo"
    ]
    return entries or f"{folder} shows no interface but loopback"


def rdma_devices(root: Path = Path("/")) -> list[dict[str, Any]] | str:
    """List every port of every InfiniBand or RoCE device, or say why there is none.

    A port has its device, number, state, rate, link layer and firmware.
    """
    folder = root / _RDMA
    ports = [
        {
            "device": port.parent.parent.name,
            "port": port.name,
            "state": _read(port / "state"),
            "rate": _read(port / "rate"),
            "link_layer": _read(port / "link_layer"),
            "firmware": _read(port.parent.parent / "fw_ver"),
        }
        for port in sorted(folder.glob("*/ports/*"))
    ]
    return ports or f"{folder} shows no device"


def _read(path: Path) -> str:
    """Read a file of the kernel, or return the reason why it has no value."""
    try:
        return path.read_text(errors="replace").strip() or "not reported: the file is empty"
    except OSError as error:
        return f"not reported: {error.strerror}"


def _speed(path: Path) -> int | str:
    """Read the speed in Mbit/s; for an interface without one, the kernel gives -1 or an error."""
    text = _read(path)
    return int(text) if text.isdigit() else f"not reported by this interface ({text})"


def _link(path: Path, missing: str) -> str:
    """Return the name of the file that a link points to, or `missing`."""
    return path.resolve().name if path.exists() else missing

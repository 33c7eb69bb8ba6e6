# SPDX-License-Identifier: Apache-2.0
"""Network interfaces and RDMA devices of a host, as the kernel shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Where the kernel shows interfaces and RDMA devices, below a root.
_INTERFACES, _RDMA = Path("sys/class/net"), Path("sys/class/infiniband")


def interfaces(root: Path = Path("/")) -> list[dict[str, Any]] | str:
    """Every interface but loopback: name, state, speed (Mbit/s), MTU, driver; or why there are none."""
    folder = root / _INTERFACES
    found = [
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
    return found or f"{folder} shows no interface but loopback"


def rdma_devices(root: Path = Path("/")) -> list[dict[str, Any]] | str:
    """Every port of every InfiniBand or RoCE device: device, port, state, rate, link layer, firmware; or why
    none."""
    folder = root / _RDMA
    found = [
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
    return found or f"{folder} shows no device"


def _read(path: Path) -> str:
    """What the kernel says, or why it does not."""
    try:
        return path.read_text().strip() or "the kernel says nothing"
    except OSError as error:
        return f"not told: {error.strerror}"


def _speed(path: Path) -> int | str:
    """Mbit/s; the kernel says -1, or refuses, where an interface has no speed."""
    text = _read(path)
    return int(text) if text.isdigit() else f"not told by this interface ({text})"


def _link(path: Path, missing: str) -> str:
    return path.resolve().name if path.exists() else missing

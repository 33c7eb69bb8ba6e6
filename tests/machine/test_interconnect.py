# SPDX-License-Identifier: Apache-2.0
"""Network and fabric, read from files in the kernel's form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from aiperf_mpi.machine.host import Host
from aiperf_mpi.machine.interconnect import interfaces, rdma_devices


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An Ethernet interface of 25 Gbit/s, loopback, and an InfiniBand port."""
    files = {
        "sys/class/net/eth0": {"operstate": "up", "speed": "25000", "mtu": "9000"},
        "sys/class/net/lo": {"operstate": "unknown", "mtu": "65536"},
        "sys/class/infiniband/mlx5_0": {"fw_ver": "28.39.1002"},
        "sys/class/infiniband/mlx5_0/ports/1": {
            "state": "4: ACTIVE",
            "rate": "400 Gb/sec (4X NDR)",
            "link_layer": "InfiniBand",
        },
        "sys/class/infiniband/mlx5_0/ports/1/counters": {"port_xmit_data": "1000", "port_rcv_data": "500"},
    }
    for folder, texts in files.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (tmp_path / folder / name).write_text(f"{text}\n")
    return tmp_path


def test_interfaces_and_fabric_are_listed(root: Path) -> None:
    assert interfaces(root) == [
        {
            "name": "eth0",
            "state": "up",
            "mbit_per_second": 25000,
            "mtu": "9000",
            "driver": "virtual: it has no device",
        }
    ]
    assert rdma_devices(root) == [
        {
            "device": "mlx5_0",
            "port": "1",
            "state": "4: ACTIVE",
            "rate": "400 Gb/sec (4X NDR)",
            "link_layer": "InfiniBand",
            "firmware": "28.39.1002",
        }
    ]


def test_absent_devices_give_the_reason(tmp_path: Path) -> None:
    assert rdma_devices(tmp_path) == f"{tmp_path}/sys/class/infiniband shows no device"
    assert "shows no interface but loopback" in interfaces(tmp_path)


def test_fabric_counters_have_units_of_four_bytes(root: Path, tmp_path: Path) -> None:
    # 1000 units sent and 500 received before the first reading count nothing; 200 and 50 later are 1000
    # bytes.
    folder = root / "sys" / "class" / "infiniband"
    host, counters = Host(folder), folder / "mlx5_0" / "ports" / "1" / "counters"
    assert host.read().fabric_bytes == 0.0
    (counters / "port_xmit_data").write_text("1200")
    (counters / "port_rcv_data").write_text("550")
    assert host.read().fabric_bytes == 1000.0
    # It begins anew at 30 units, and counts 70 more: 280 bytes.
    for units, expected in (("30", 1000.0), ("100", 1280.0)):
        (counters / "port_xmit_data").write_text(units)
        assert host.read().fabric_bytes == expected
    assert math.isnan(Host(tmp_path / "none").read().fabric_bytes)

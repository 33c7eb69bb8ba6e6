# SPDX-License-Identifier: Apache-2.0
"""Which address of a host a setting, a hint and a name mean; in which order candidates are tried."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from aiperf_mpi.links import addresses
from aiperf_mpi.links.addresses import Address, hinted, meant, own_addresses, resolve
from aiperf_mpi.links.candidates import Facts, candidates, facts
from aiperf_mpi.probe import NotKnown

ETH = Address("eth0", "10.77.0.1", "10.77.0.0/24")
IB = Address("ib0", "10.78.0.1", "10.78.0.0/16")
IB6 = Address("ib0", "fd78::1", "fd78::/64")
OWN = (ETH, IB, IB6)


def at(host: int, name: str = "") -> Facts:
    """Return the facts of host `host` with the networks of OWN."""
    own = tuple(Address(a.interface, a.ip[:-1] + str(host), a.network) for a in OWN)
    return Facts(f"h{host}", own, name=name, route=own[0].ip)


def test_addresses_that_others_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry(family: int, address: str, mask: str | None) -> Any:
        return SimpleNamespace(family=family, address=address, netmask=mask)

    found = {
        "lo": [entry(socket.AF_INET, "127.0.0.1", "255.0.0.0")],
        "eth0": [
            entry(socket.AF_PACKET, "00:11", None),
            entry(socket.AF_INET6, "fd00::2", "ffff:ffff:ffff:ffff::"),
            entry(socket.AF_INET6, "fe80::1%eth0", "ffff:ffff:ffff:ffff::"),
            entry(socket.AF_INET, "10.1.2.3", "255.255.0.0"),
        ],
        "tun0": [entry(socket.AF_INET, "10.9.0.1", None)],
        "eth1": [entry(socket.AF_INET, "10.2.0.1", "255.255.0.0")],
    }
    states = {name: SimpleNamespace(isup=name != "eth1") for name in ("lo", "eth0", "eth1")}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: states)
    # 255.255.0.0 has 16 bits, ffff:ffff:ffff:ffff:: has 64; without a mask the network is the address.
    assert own_addresses() == (
        Address("eth0", "10.1.2.3", "10.1.0.0/16"),
        Address("tun0", "10.9.0.1", "10.9.0.1/32"),
        Address("eth0", "fd00::2", "fd00::/64"),
    )


def test_what_a_setting_means(monkeypatch: pytest.MonkeyPatch) -> None:
    assert meant("ib0", OWN) == "10.78.0.1"
    assert meant("10.78.0.0/16", OWN) == meant("10.78.99.0/8", OWN[1:]) == "10.78.0.1"
    assert meant("fd78::/32", OWN) == "fd78::1"
    # An address of this host is itself; the loopback stands for one that this machine surely has.
    assert meant("127.0.0.1", OWN) == "127.0.0.1"
    for setting, part in (
        ("ib9", "nor is it a host name"),
        ("10.99.0.0/16", "this host has no address in 10.99.0.0/16; it has eth0 10.77.0.1"),
        ("ib0/x", "is not a network such as"),
    ):
        with pytest.raises(ValueError, match=part):
            meant(setting, OWN)
    monkeypatch.setattr(addresses, "route_to", lambda ip: "")
    with pytest.raises(ValueError, match="no route to 10.5.5.5"):
        meant("10.5.5.5", OWN)


@pytest.mark.parametrize(
    ("variable", "value", "address"),
    [
        ("OMPI_MCA_btl_tcp_if_include", "ib0,eth0", "10.78.0.1"),
        ("OMPI_MCA_btl_tcp_if_include", "10.78.0.0/16", "10.78.0.1"),
        ("PRTE_MCA_oob_tcp_if_include", "eth0", "10.77.0.1"),
        ("FI_TCP_IFACE", "ib0", "10.78.0.1"),
        ("UCX_NET_DEVICES", "mlx5_9:1,eth0", "10.77.0.1"),
        ("NCCL_SOCKET_IFNAME", "=ib0", "10.78.0.1"),
        ("NCCL_SOCKET_IFNAME", "^docker,lo", ""),
        ("FI_TCP_IFACE", "ib9", ""),
        ("FI_TCP_IFACE", "", ""),
        ("UCX_NET_DEVICES", "10.1.0.0/99", ""),
    ],
)
def test_a_hint_of_the_mpi(variable: str, value: str, address: str) -> None:
    assert hinted({variable: value}, OWN) == ((f"{variable}={value}", address) if address else ("", ""))


def test_the_order_of_candidates() -> None:
    here = candidates([at(1), at(1)])
    assert here[0].text == "loopback" and here[0].addresses == ("127.0.0.1",) * 2
    named = candidates([at(1, "10.78.0.1"), at(2, "10.78.0.2")])
    assert [way.text for way in named] == ["the hosts' names", "interface eth0", "interface ib0"]
    # Equal addresses are tried once: ib0's IPv4 is that of the names, so its only own candidate is IPv6.
    assert named[2].addresses == ("fd78::1", "fd78::2")
    # A host whose name means nothing usable has no candidate of that kind.
    assert [way.text for way in candidates([at(1, "10.78.0.1"), at(2)])][0] == "interface eth0"
    # Interfaces with unlike names, in one network; and hosts that share neither have their routes.
    other = Facts("h3", (Address("enp1", "10.77.0.3", "10.77.0.0/24"),), route="10.77.0.3")
    assert [way.text for way in candidates([at(1), other])] == ["network 10.77.0.0/24"]
    far = Facts("h4", (Address("enp1", "10.99.0.3", "10.99.0.0/24"),), route="10.99.0.3")
    assert [way.text for way in candidates([at(1), far])] == ["the default route"]
    assert candidates([at(1), Facts("h5", ())]) == []


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60) and [])
    begun = time.monotonic()
    assert isinstance(resolve("slow", seconds=0.2), NotKnown) and time.monotonic() - begun < 10
    over.set()


def test_facts_of_a_host_that_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(psutil, "net_if_addrs", fail)
    assert facts().own == () and facts().problem == ""
    assert "Permission denied" in facts("eth0").problem

# SPDX-License-Identifier: Apache-2.0
"""Find the addresses of this host, and the one that a setting, a hint of the MPI or its name means."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from pathlib import Path

import psutil

from aiperf_mpi.probe import NotKnown, probe

#: Seconds that a name server has for the address of a name.
NAME_SECONDS = 3.0

#: Variables by which a site tells MPI and other libraries their network, in the order in which they count.
HINTS = (
    "OMPI_MCA_btl_tcp_if_include",
    "PRTE_MCA_oob_tcp_if_include",
    "OMPI_MCA_oob_tcp_if_include",
    "PMIX_MCA_ptl_tcp_if_include",
    "FI_TCP_IFACE",
    "FI_SOCKETS_IFACE",
    "MPICH_INTERFACE_HOSTNAME",
    "HYDRA_IFACE",
    "I_MPI_HYDRA_IFACE",
    "UCX_NET_DEVICES",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
)

#: Addresses that no host has: the kernel tells from which of its own it would reach them (RFC 5737, 3849).
_ELSEWHERE = ("192.0.2.1", "2001:db8::1")

_RDMA = Path("/sys/class/infiniband")


@dataclass(frozen=True, slots=True)
class Address:
    """An address of this host: its interface, the address, and its network as `10.1.0.0/16`."""

    interface: str
    ip: str
    network: str


def own_addresses() -> tuple[Address, ...]:
    """Return the addresses of the interfaces that are up, IPv4 before IPv6; not loopback and link-local ones.

    Raises OSError or psutil.Error if the system does not show them.
    """
    states, found = psutil.net_if_stats(), []
    for name, entries in psutil.net_if_addrs().items():
        if name in states and not states[name].isup:
            continue
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            of = _interface(entry.address, entry.netmask)
            if not (of.ip.is_loopback or of.ip.is_link_local or of.ip.is_unspecified):
                found.append(Address(name, str(of.ip), str(of.network)))
    return tuple(sorted(found, key=lambda one: ":" in one.ip))


def _interface(address: str, mask: str | None) -> IPv4Interface | IPv6Interface:
    """Return an address with its network; without a mask, its network is the address alone."""
    ip = ip_address(address.partition("%")[0])
    bits = int(ip_address(mask)).bit_count() if mask else int(ip.max_prefixlen)
    return ip_interface(f"{ip}/{bits}")


def resolve(name: str, seconds: float = NAME_SECONDS) -> tuple[str, ...] | NotKnown:
    """Return the addresses of a host name, each once, or the reason why there are none."""

    def ask() -> tuple[str, ...]:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))

    return probe(f"the address of {name!r}", ask, seconds=seconds)


def by_name(host: str, own: Sequence[Address]) -> str:
    """Return the address of this host that its name means; "" if the name means none of `own`."""
    found = resolve(host)
    mine = {address.ip for address in own}
    return "" if isinstance(found, NotKnown) else next((ip for ip in found if ip in mine), "")


def route_to(ip: str) -> str:
    """Return the address from which this host would reach `ip`; "" if it has no route. Nothing is sent."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe_socket:
            probe_socket.connect((ip, 9))
            source = str(probe_socket.getsockname()[0])
    except OSError:
        return ""
    return "" if ip_address(source.partition("%")[0]).is_loopback and source != ip else source


def default_route() -> str:
    """Return the address from which this host would reach the rest of the world; "" without one."""
    return next(filter(None, map(route_to, _ELSEWHERE)), "")


def meant(setting: str, own: Sequence[Address]) -> str:
    """Return the address of this host that `setting` means: an interface, a network, a host name or address.

    A name or an address of another host means the address from which this host reaches it. Raises ValueError
    with what is wrong.
    """
    if found := next(_on_interface(setting, own), ""):
        return found
    if "/" in setting:
        try:
            network = ip_network(setting, strict=False)
        except ValueError:
            raise ValueError(f"{setting!r} is not a network such as 10.1.0.0/16") from None
        inside = (one.ip for one in own if ip_address(one.ip) in network)
        if found := next(inside, ""):
            return found
        raise ValueError(f"this host has no address in {setting}; it has {listed(own)}")
    addresses = resolve(setting)
    if isinstance(addresses, NotKnown):
        raise ValueError(
            f"{setting!r} is not an interface of this host, which has {listed(own)}; nor is it a host name: "
            f"{addresses}"
        )
    if found := next(filter(None, map(route_to, addresses)), ""):
        return found
    raise ValueError(f"this host has no route to {setting} ({', '.join(addresses)})")


def _on_interface(name: str, own: Sequence[Address]) -> Iterator[str]:
    """Yield the addresses of an interface, also of that of an RDMA device (`mlx5_0:1`)."""
    device, names = name.partition(":")[0], {name}
    if device.isidentifier():
        names |= {path.name for path in _RDMA.glob(f"{device}/device/net/*")}
    yield from (one.ip for one in own if one.interface in names)


def hinted(environ: Mapping[str, str] = os.environ, own: Sequence[Address] = ()) -> tuple[str, str]:
    """Return the first hint of a library's variable that fits this host, and its address; else empty texts.

    A list that excludes interfaces (`^docker`) is not a hint.
    """
    for variable in HINTS:
        value = environ.get(variable, "")
        if not value or value.startswith("^"):
            continue
        for entry in value.split(","):
            name = entry.strip().lstrip("=")
            try:
                found = next(_on_interface(name, own), "")
                if not found and ("/" in name or _is_ip(name)):
                    found = meant(name, own)
            except ValueError:
                continue
            if found:
                return f"{variable}={value}", found
    return "", ""


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def listed(own: Sequence[Address]) -> str:
    """Return interfaces and addresses for a message."""
    return ", ".join(f"{one.interface} {one.ip}" for one in own[:8]) or "no address but loopback"

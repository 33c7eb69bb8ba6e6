# SPDX-License-Identifier: Apache-2.0
"""The addresses that several processes may meet at, in the order in which they try them."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiperf_mpi.links.addresses import Address, by_name, default_route, hinted, listed, meant, own_addresses
from aiperf_mpi.probe import NotKnown, probe

#: Most candidates that are tried.
MOST = 8


@dataclass(frozen=True, slots=True)
class Facts:
    """What one process knows of its host's addresses; all processes exchange theirs.

    Attributes:
        host: name of the host.
        own: its addresses.
        problem: why the setting means no address of this host, else "".
        setting, hint, name, route: the address that the setting, a library's variable, the host's name and
            the default route mean; "" where there is none.
        variable: the variable of the hint, with its value.
    """

    host: str
    own: tuple[Address, ...]
    problem: str = ""
    setting: str = ""
    variable: str = ""
    hint: str = ""
    name: str = ""
    route: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to meet: in words, and the address of each process on it."""

    text: str
    addresses: tuple[str, ...]


def facts(setting: str = "", environ: Mapping[str, str] = os.environ) -> Facts:
    """Return the facts of this host, in a few seconds even where its name server does not answer."""
    host = socket.gethostname()
    own = probe("the addresses of this host", own_addresses)
    if isinstance(own, NotKnown):
        return Facts(host, (), problem=own if setting else "")
    if setting:
        try:
            return Facts(host, own, setting=meant(setting, own))
        except ValueError as error:
            return Facts(host, own, problem=str(error))
    variable, hint = hinted(environ, own)
    return Facts(host, own, "", "", variable, hint, by_name(host, own), default_route())


def candidates(of: Sequence[Facts], setting: str = "") -> list[Candidate]:
    """Return the ways to meet for processes with these facts, the preferred one first.

    A setting is the only candidate. Otherwise come: the loopback on a single host; what the MPI library was
    told; what the hosts' names mean; interfaces and networks that all hosts have; and the default route.
    """
    if setting:
        return [Candidate(f"parallel.address={setting}", tuple(one.setting for one in of))]
    found: list[Candidate] = []
    if len({one.host for one in of}) == 1:
        found.append(Candidate("loopback", ("127.0.0.1",) * len(of)))
    variable = next((one.variable for one in of if one.variable), "")
    found.append(Candidate(variable, tuple(one.hint for one in of)))
    found.append(Candidate("the hosts' names", tuple(one.name for one in of)))
    for first in of[0].own:
        same = (
            next((one for one in each.own if one.interface == first.interface and _alike(one, first)), None)
            for each in of
        )
        found.append(Candidate(f"interface {first.interface}", tuple(one.ip if one else "" for one in same)))
    for first in of[0].own:
        same = (next((one for one in each.own if one.network == first.network), None) for each in of)
        found.append(Candidate(f"network {first.network}", tuple(one.ip if one else "" for one in same)))
    found.append(Candidate("the default route", tuple(one.route for one in of)))
    usable = {way.addresses: way for way in reversed(found) if all(way.addresses)}
    return [way for way in found if usable.get(way.addresses) is way][:MOST]


def _alike(one: Address, other: Address) -> bool:
    """Whether two addresses are of the same family."""
    return (":" in one.ip) == (":" in other.ip)


def why_none(of: Sequence[Facts]) -> str:
    """Return why processes with these facts have no candidate."""
    hosts = {one.host: listed(one.own) for one in of}
    return "no kind of address is common to " + "; ".join(f"{host}: {text}" for host, text in hosts.items())

# SPDX-License-Identifier: Apache-2.0
"""Try whether processes reach one another: each listens, and each connects to the others and reads a token.

The token tells a process from any other that listens at the same address, such as that of a bridge which
every host has.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from aiperf_mpi.probe import reason

#: Seconds that a connection may take.
TRY_SECONDS = 3.0

#: Connections that are tried at the same time; a process may often open 1024 files.
_AT_ONCE = 400

_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Door:
    """Where a process listens: its port on all addresses of its host, and its token."""

    port: int
    token: bytes


@contextmanager
def held_port() -> Iterator[int]:
    """Hold a free TCP port of this host, on all its addresses; meanwhile only sockets that share it can bind
    it."""
    with _bound(0) as holder:
        yield int(holder.getsockname()[1])


@contextmanager
def listening(port: int = 0) -> Iterator[Door]:
    """Listen on `port` (0: any) and give each caller the token, while the block runs. Raises OSError."""
    token = secrets.token_bytes(_TOKEN_BYTES)
    with _bound(port) as server:
        server.listen(1024)
        over = threading.Event()

        def serve() -> None:
            server.settimeout(0.1)
            while not over.is_set():
                try:
                    caller, _ = server.accept()
                except OSError:
                    continue  # nobody called, or the caller has left
                with caller:
                    try:
                        caller.settimeout(1.0)
                        caller.sendall(token)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, name="doorkeeper", daemon=True)
        thread.start()
        try:
            yield Door(int(server.getsockname()[1]), token)
        finally:
            over.set()
            thread.join()


def _bound(port: int) -> socket.socket:
    """Return a socket that is bound to a port on all addresses and shares it. Raises OSError."""
    # JAX's service listens on [::], which includes all IPv4 addresses where a host has both.
    both = socket.has_dualstack_ipv6()
    bound = socket.socket(socket.AF_INET6 if both else socket.AF_INET)
    try:
        if both:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("", port))
    except OSError:
        bound.close()
        raise
    return bound


def reach(targets: Sequence[tuple[str, Door]], seconds: float = TRY_SECONDS) -> list[str]:
    """Return for each target, an address and the door behind it, "" if it is reached, else the reason."""

    async def one(ip: str, door: Door, turn: asyncio.Semaphore) -> str:
        async with turn:
            try:
                async with asyncio.timeout(seconds):
                    reader, writer = await asyncio.open_connection(ip, door.port)
                    try:
                        answer = await reader.readexactly(_TOKEN_BYTES)
                    finally:
                        writer.close()
            except TimeoutError:
                return f"no answer in {seconds:g} s (a firewall drops it, or the network does not lead there)"
            except asyncio.IncompleteReadError:
                return "the connection is cut (a firewall or a proxy is between)"
            except OSError as error:
                return reason(error)
            return "" if answer == door.token else "another process listens there"

    async def every() -> list[str]:
        turn = asyncio.Semaphore(_AT_ONCE)
        return await asyncio.gather(*(one(ip, door, turn) for ip, door in targets))

    try:
        return asyncio.run(every())
    except OSError as error:
        return [reason(error)] * len(targets)  # no file is left for the loop itself

# SPDX-License-Identifier: Apache-2.0
"""Who reaches whom, over real sockets of this host."""

from __future__ import annotations

import socket
import threading
import time

from aiperf_mpi.links.handshake import Door, held_port, listening, reach


def test_a_door_is_reached_by_both_families_and_keeps_a_held_port() -> None:
    with held_port() as port, listening(port) as door:
        assert door.port == port
        targets = ["127.0.0.1", *(["::1"] if socket.has_dualstack_ipv6() else [])]
        assert reach([(ip, door) for ip in targets * 50]) == [""] * len(targets) * 50
    # After the handshake the port is free for the service that shares it.
    with held_port() as port:
        with listening(port):
            pass
        with listening(port) as again:
            assert reach([("127.0.0.1", again)]) == [""]


def test_why_a_door_is_not_reached() -> None:
    with socket.socket() as closed, socket.socket() as silent, socket.socket() as cutting:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        cutting.bind(("127.0.0.1", 0))
        cutting.listen()
        thread = threading.Thread(target=lambda: cutting.accept()[0].close(), daemon=True)
        thread.start()
        with listening() as door:
            doors = [Door(server.getsockname()[1], bytes(16)) for server in (closed, silent, cutting)]
            begun = time.monotonic()
            refused, no_answer, cut, other, bad = reach(
                [
                    *(("127.0.0.1", one) for one in doors),
                    ("127.0.0.1", Door(door.port, bytes(16))),
                    ("", door),
                ],
                seconds=1.0,
            )
        thread.join()
    assert time.monotonic() - begun < 10
    assert "ConnectionRefusedError" in refused and "no answer in 1 s" in no_answer
    assert "is cut" in cut or "reset" in cut
    assert other == "another process listens there"

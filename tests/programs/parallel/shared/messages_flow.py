# SPDX-License-Identifier: Apache-2.0
"""Send rows to rank 0, which receives them late, and then sends two stop messages. Arguments: folder, rows of
each
rank."""

import signal
import struct
import sys
import threading
import time

import pytest

from aiperf_mpi.parallel.launch import job
from aiperf_mpi.parallel.launch.collective import wait
from aiperf_mpi.parallel.shared import messages
from aiperf_mpi.parallel.shared.messages import Kind, Message, MessageError, Messages, Reason
from tests.helpers.parallel.rows import report

folder, rows = sys.argv[1], int(sys.argv[2])
values = {}
with job.job() as world:
    ends = Messages(world)
    if world.rank:
        values["before"] = ends.stop_requested() is not None
        most = 0
        for i in range(rows):
            ends.send(Kind.EPOCH if i % 3 else Kind.TRIAL, struct.pack("<qq", world.rank, i) + bytes(200))
            most = max(most, ends.progress())
        values["most"] = most
        while (stop := ends.stop_requested()) is None:
            time.sleep(0.001)
        values["first"] = [stop.reason.name, stop.t]
        ends.send(Kind.FINAL, b"")
        while (stop := ends.stop_requested()).reason is not Reason.DRAIN:
            time.sleep(0.001)
        values["second"] = [stop.reason.name, stop.t]

        # Another thread's rows are sent by this thread's next call, before its own.
        thread = threading.Thread(target=lambda: [ends.post(Kind.SAMPLE, bytes(16)) for _ in range(2)])
        thread.start()
        thread.join()
        values["waiting"] = int(ends.sent[Kind.SAMPLE])
        ends.stop_requested()
        values["left"] = int(ends.sent[Kind.SAMPLE])
        ends.post(Kind.SAMPLE, bytes(16))
        ends.ask_to_drain(signal.SIGTERM)
        ends.send(Kind.RANK, bytes(8))
        with pytest.raises(MessageError):
            ends.send(Kind.STOP, b"")
    else:
        # Rank 0 receives nothing for a while: the others must not send without bound.
        time.sleep(0.5)
        received, order = [], True
        sources = world.size - 1
        while len(received) < sources * rows:
            received += ends.poll(most=50)
            time.sleep(0.001)
        for source in range(1, world.size):
            mine = [m for m in received if m.source == source]
            order &= [struct.unpack("<qq", m.data[:16]) for m in mine] == [(source, i) for i in range(rows)]
            order &= all(
                (m.kind is Kind.TRIAL) == (i % 3 == 0) and len(m.data) == 216 for i, m in enumerate(mine)
            )
        values["order"] = order
        ends.stop(Reason.LIMIT, 12.5)
        final: list[Message] = []
        while len(final) < sources:
            final += ends.poll()
        ends.stop(Reason.DRAIN, 13.0)
        ends.stop(Reason.FULL, 14.0)
        while len(final) < 5 * sources:
            final += ends.poll()
        values["own"] = [ends.stop_requested().reason.name, ends.stop_requested().t]
        values["kinds"] = sorted(m.kind.name for m in final)
        values["last"] = [
            [m.kind.name for m in final if m.source == source][-1] for source in range(1, world.size)
        ]
        values["empty"] = ends.poll() == []
        values["asked"] = [ends.asked.rank, ends.asked.signal]
    wait(world.Ibarrier())

    # A message with a foreign tag is an error, not a row.
    if world.rank == 1:
        ends._comm.Send([b"?", 1, job.MPI.BYTE], 0, 77)
    elif world.rank == 0:
        with pytest.raises(MessageError, match="tag 77"):
            while True:
                ends.poll()
    values.update(
        sent=ends.sent.tolist(),
        received=ends.received.tolist(),
        sent_bytes=ends.sent_bytes.tolist(),
        received_bytes=ends.received_bytes.tolist(),
        bound=messages.MAX_OUTSTANDING,
    )
    ends.close()
    report(folder, world.rank, **values)
    job.agreed_exit(world, 0)

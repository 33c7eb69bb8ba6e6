# SPDX-License-Identifier: Apache-2.0
"""Rows to rank 0, and stop messages to and from it: the only module with point-to-point calls.

A row is a fixed-width record of `results/file/rows.py` and is sent as bytes; the tag is its kind.
Candidates and history are never sent this way, as the counts by kind show in every result file. The status
of a replica is sent this way too, and is not counted in the file.
"""

from __future__ import annotations

import queue
import signal
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from aiperf_mpi.parallel.launch.collective import LOOK_SECONDS, wait
from aiperf_mpi.parallel.launch.mpi import MPI

#: Messages that a rank may have sent and rank 0 not received; with more of them `send` waits.
MAX_OUTSTANDING = 256


class Kind(IntEnum):
    """The content of a message: a row to rank 0 or STOP, in the order of `rows.ROW_MESSAGES`, and STATUS.

    STOP is rank 0's message that the run ends, or another rank's that it got a signal. A rejected candidate
    is a row of kind TRIAL. FINAL is the last validation of the best weights, SAMPLE a measurement of a node's
    monitor. STATUS is what a replica does at the moment, for rank 0's view: no result has it or counts it.
    """

    EPOCH = 0
    TRIAL = 1
    RANK = 2
    FINAL = 3
    SAMPLE = 4
    STOP = 5
    STATUS = 6


class Reason(IntEnum):
    """Why the run ends; of several reasons the highest holds.

    ALONE comes after one of the others: ranks are missing, and no rank waits for them any more.
    """

    LIMIT = 1
    FULL = 2
    DRAIN = 3
    ALONE = 4


_STOP, _SIGNAL = struct.Struct("<qd"), struct.Struct("<q")


@dataclass(frozen=True, slots=True)
class Message:
    """One message as rank 0 received it."""

    kind: Kind
    source: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Rank 0's stop message: the reason, and the core seconds at which the run ended."""

    reason: Reason
    t: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A signal to a rank other than 0, which asks the run to drain."""

    rank: int
    signal: str


class MessageError(RuntimeError):
    """A message that no rank of this program should send."""


class Messages:
    """One rank's messages; made by all ranks of `comm` together (it duplicates the communicator).

    Only `send` with more than MAX_OUTSTANDING messages, and `close`, wait; both sleep between two tests. The
    messages of one rank arrive in the order in which it sent them, whatever their kinds. Only the main thread
    sends; a row that another thread posts is sent by the main thread's next call.

    Attributes:
        sent, received: messages by kind (int64[len(Kind)]).
        sent_bytes, received_bytes: their payloads' bytes by kind (int64[len(Kind)]).
        asked: on rank 0, the first signal that another rank got in the core time.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm.Dup()
        self.rank, self.size = comm.rank, comm.size
        self.sent, self.received = np.zeros((2, len(Kind)), np.int64)
        self.sent_bytes, self.received_bytes = np.zeros((2, len(Kind)), np.int64)
        self._outstanding: list[MPI.Request] = []
        self._buffers: list[bytes] = []
        self._stop: Stop | None = None
        self.asked: Asked | None = None
        self._posted: queue.SimpleQueue[tuple[Kind, bytes]] = queue.SimpleQueue()

    def post(self, kind: Kind, row: bytes | np.void) -> None:
        """Leave a row, from any thread; the main thread sends it to rank 0 first in its next call."""
        self._posted.put((kind, row if isinstance(row, bytes) else row.tobytes()))

    def ask_to_drain(self, number: int) -> None:
        """Tell rank 0 of a signal to this rank, from any thread or signal handler, as `post` does."""
        self._posted.put((Kind.STOP, _SIGNAL.pack(number)))

    def send(self, kind: Kind, row: bytes | np.void) -> None:
        """Send a row to rank 0; returns before it arrives."""
        if kind is Kind.STOP:
            raise MessageError("stop messages are sent by stop()")
        self._send_posted()
        self._isend(kind, row if isinstance(row, bytes) else row.tobytes(), 0)
        self.progress()
        while len(self._outstanding) > MAX_OUTSTANDING:
            time.sleep(LOOK_SECONDS)
            self.progress()

    def offer(self, kind: Kind, row: bytes) -> bool:
        """Send a row to rank 0 unless many are still to be sent; return whether it is sent. Never waits."""
        if self.progress() > MAX_OUTSTANDING // 2:
            return False
        self._send_posted()
        self._isend(kind, row, 0)
        return True

    def poll(self, most: int = 1000) -> list[Message]:
        """On rank 0: return the rows that have arrived, at most `most` of them.

        Raises MessageError for a foreign tag.
        """
        self.progress()
        messages: list[Message] = []
        status = MPI.Status()
        while len(messages) < most and self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            message = self._receive(status)
            if message.kind is not Kind.STOP:
                messages.append(message)
            elif self.asked is None:
                number = _SIGNAL.unpack(message.data)[0]
                self.asked = Asked(message.source, signal.Signals(number).name)
        return messages

    def stop(self, reason: Reason, t: float) -> None:
        """On rank 0: send all other ranks a stop message for the end at `t` (core seconds).

        A higher reason may follow; a lower one is ignored.
        """
        if self._stop is not None and reason <= self._stop.reason:
            return
        self._stop = Stop(reason, t)
        data = _STOP.pack(reason, t)
        for rank in range(1, self.size):
            self._isend(Kind.STOP, data, rank)
        self.progress()

    def stop_requested(self) -> Stop | None:
        """Return rank 0's stop message, None before there is one; receive it on the other ranks."""
        self._send_posted()
        self.progress()
        status = MPI.Status()
        while self.rank and self._comm.Iprobe(0, MPI.ANY_TAG, status):
            message = self._receive(status)
            if message.kind is not Kind.STOP:
                raise MessageError(f"rank 0 sent rank {self.rank} a message of kind {message.kind.name}")
            reason, t = _STOP.unpack(message.data)
            if self._stop is None or reason > self._stop.reason:
                self._stop = Stop(Reason(reason), t)
        return self._stop

    def progress(self) -> int:
        """Drop the buffers of messages that have been sent; return how many are still to be sent."""
        if self._outstanding:
            done = set(MPI.Request.Testsome(self._outstanding) or ())
            if done:
                kept = [i for i in range(len(self._outstanding)) if i not in done]
                self._outstanding = [self._outstanding[i] for i in kept]
                self._buffers = [self._buffers[i] for i in kept]
        return len(self._outstanding)

    def close(self) -> None:
        """Wait until rank 0 has received all messages, and free the communicator. Collective.

        Ranks that arrive early test and sleep: blocking in `Free` would take a core that the last rank needs.
        """
        self._send_posted()
        while self.progress():
            time.sleep(LOOK_SECONDS)
        wait(self._comm.Ibarrier())
        self._comm.Free()

    def _send_posted(self) -> None:
        """Send what other threads have posted."""
        while not self._posted.empty():
            kind, data = self._posted.get()
            self._isend(kind, data, 0)

    def _isend(self, kind: Kind, data: bytes, to: int) -> None:
        self._outstanding.append(self._comm.Isend([data, len(data), MPI.BYTE], to, kind))
        self._buffers.append(data)
        self.sent[kind] += 1
        self.sent_bytes[kind] += len(data)

    def _receive(self, status: MPI.Status) -> Message:
        """Receive the message that a probe has shown. Only one thread calls MPI, so none other takes it."""
        source, tag, count = status.Get_source(), status.Get_tag(), status.Get_count(MPI.BYTE)
        data = bytearray(count)
        self._comm.Recv([data, count, MPI.BYTE], source, tag)
        if not 0 <= tag < len(Kind):
            raise MessageError(f"rank {source} sent a message with tag {tag}, which is not a kind of row")
        self.received[tag] += 1
        self.received_bytes[tag] += count
        return Message(Kind(tag), source, bytes(data))

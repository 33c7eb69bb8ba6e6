# SPDX-License-Identifier: Apache-2.0
"""Rows to rank 0 and stop messages from it: the only place with point-to-point calls.

A row is a fixed-width record of `results/file/schema.py` and travels as bytes; the tag tells its kind.
Candidates and history never come this way: the counts by kind show that in every result file.
"""

from __future__ import annotations

import queue
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from mpi4py import MPI

from aiperf_mpi.parallel.launch.collective import LOOK_SECONDS, wait

#: Messages that a rank may have under way; beyond it `send` waits until rank 0 has taken one.
MAX_OUTSTANDING = 256


class Kind(IntEnum):
    """What a message carries, in the order of `schema.ROW_MESSAGES`: a row to rank 0, or rank 0's word that
    the run ends (STOP). A rejected candidate is a row of kind TRIAL; FINAL is the last validation of the best
    weights, and SAMPLE what a node's monitor measured."""

    EPOCH = 0
    TRIAL = 1
    RANK = 2
    FINAL = 3
    SAMPLE = 4
    STOP = 5


class Reason(IntEnum):
    """Why the run ends; of several, the highest holds."""

    LIMIT = 1
    FULL = 2
    DRAIN = 3


_STOP = struct.Struct("<qd")


@dataclass(frozen=True, slots=True)
class Message:
    """One message as rank 0 received it."""

    kind: Kind
    source: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Stop:
    """Rank 0's word that the run ends, and since when, in seconds of core time."""

    reason: Reason
    t: float


class MessageError(RuntimeError):
    """A message that no rank of this program sends."""


class Messages:
    """One rank's end of the messages; made by all ranks of `comm` together (it duplicates the communicator).

    Nothing here blocks but `send` beyond MAX_OUTSTANDING and `close`; both sleep between their looks. The
    messages of one rank arrive in the order in which it sent them, of whatever kinds. Only the main thread
    sends; what another thread posts leaves with the main thread's next call.

    Attributes:
        sent, received: messages by kind (int64[len(Kind)]).
        sent_bytes, received_bytes: their payloads' bytes by kind (int64[len(Kind)]).
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm = comm.Dup()
        self.rank, self.size = comm.rank, comm.size
        self.sent, self.received = np.zeros((2, len(Kind)), np.int64)
        self.sent_bytes, self.received_bytes = np.zeros((2, len(Kind)), np.int64)
        self._outstanding: list[MPI.Request] = []
        self._buffers: list[bytes] = []
        self._stop: Stop | None = None
        self._posted: queue.SimpleQueue[tuple[Kind, bytes]] = queue.SimpleQueue()

    def post(self, kind: Kind, row: bytes | np.void) -> None:
        """From any thread: have the main thread send a row to rank 0 with its next call, before anything
        else."""
        self._posted.put((kind, row if isinstance(row, bytes) else row.tobytes()))

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

    def poll(self, most: int = 1000) -> list[Message]:
        """On rank 0: the rows that have arrived, at most `most` of them. Raises MessageError for a foreign
        tag."""
        self.progress()
        messages: list[Message] = []
        status = MPI.Status()
        while len(messages) < most and self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            message = self._receive(status)
            if message.kind is Kind.STOP:
                raise MessageError(f"rank {message.source} sent a stop message to rank 0")
            messages.append(message)
        return messages

    def stop(self, reason: Reason, t: float) -> None:
        """On rank 0: tell all other ranks that the run ends, since `t` (core seconds); a higher reason may
        follow."""
        if self._stop is not None and reason <= self._stop.reason:
            return
        self._stop = Stop(reason, t)
        data = _STOP.pack(reason, t)
        for rank in range(1, self.size):
            self._isend(Kind.STOP, data, rank)
        self.progress()

    def stop_requested(self) -> Stop | None:
        """What rank 0 said about the end, None while it has not; looks for its messages on the other
        ranks."""
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
        """Forget the sent messages that have left; returns how many have not."""
        if self._outstanding:
            done = set(MPI.Request.Testsome(self._outstanding) or ())
            if done:
                kept = [i for i in range(len(self._outstanding)) if i not in done]
                self._outstanding = [self._outstanding[i] for i in kept]
                self._buffers = [self._buffers[i] for i in kept]
        return len(self._outstanding)

    def close(self) -> None:
        """Wait until all sent messages have left (rank 0 must take them), and free the communicator.
        Collective.

        Who is early sleeps between its looks: in `Free` it would take a core from the rank that all wait for.
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
        """The message that a probe found; one thread calls MPI, so that no one else can take it."""
        source, tag, count = status.Get_source(), status.Get_tag(), status.Get_count(MPI.BYTE)
        data = bytearray(count)
        self._comm.Recv([data, count, MPI.BYTE], source, tag)
        if not 0 <= tag < len(Kind):
            raise MessageError(f"rank {source} sent a message with tag {tag}, which is no kind of row")
        self.received[tag] += 1
        self.received_bytes[tag] += count
        return Message(Kind(tag), source, bytes(data))

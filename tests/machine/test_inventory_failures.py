# SPDX-License-Identifier: Apache-2.0
"""No probe of the inventory raises or hangs: it records why it has nothing."""

from __future__ import annotations

import json
import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from aiperf_mpi.machine import filesystems, interconnect, rapl
from aiperf_mpi.machine.accelerators import NoAccelerators, open_accelerators, open_nvidia
from aiperf_mpi.machine.filesystems import file_systems, places
from aiperf_mpi.machine.host import Host
from aiperf_mpi.machine.inventory import describe_node, inventory
from aiperf_mpi.machine.monitor import Probe, Sampler
from aiperf_mpi.probe import NotKnown, probe

#: What the inventory asks: each is made to fail.
ASKED: list[tuple[Any, str]] = [
    (socket, "gethostname"),
    (platform, "platform"),
    (platform, "release"),
    (platform, "processor"),
    (platform, "machine"),
    (psutil, "virtual_memory"),
    (psutil, "cpu_count"),
    (psutil, "cpu_freq"),
    (psutil, "cpu_times"),
    (psutil, "disk_partitions"),
    (psutil, "disk_io_counters"),
    (psutil, "net_io_counters"),
    (psutil, "Process"),
    (os, "sched_getaffinity"),
    (os, "statvfs"),
    (os.path, "realpath"),
    (tempfile, "gettempdir"),
    (metadata, "version"),
    (Path, "read_text"),
    (Path, "read_bytes"),
    (Path, "is_file"),
    (Path, "is_dir"),
    (Path, "exists"),
    (Path, "glob"),
    (Path, "rglob"),
    (Path, "resolve"),
    (interconnect, "interfaces"),
    (interconnect, "rdma_devices"),
    (filesystems, "_mounts"),
    (rapl.Zone, "read"),
]

#: What a system may answer with, other than the value.
FAILURES: list[BaseException] = [
    OSError(5, "Input/output error", "/sys/\udcff"),
    PermissionError(13, "Permission denied"),
    psutil.AccessDenied(1),
    ValueError("invalid literal for int(): ''"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    SystemExit(1),
]


def everything() -> dict[str, Any]:
    """Take the inventory of a run as the ranks do."""
    where = places("/tmp/run", "/nowhere")
    return {
        **inventory({}),
        "file_systems": file_systems(where),
        "nodes": [describe_node(where, open_accelerators(()), (), "no counter")],
    }


@pytest.mark.parametrize("place", range(len(ASKED)), ids=lambda place: f"{ASKED[place][1]}")
def test_a_probe_that_fails_leaves_a_reason(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name = ASKED[place]
    failure = FAILURES[place % len(FAILURES)]

    def fail(*arguments: Any, **options: Any) -> NoReturn:
        raise failure

    monkeypatch.setattr(owner, name, fail)
    described, warned = everything(), []
    sampler = Sampler(0, Probe(Host(), NoAccelerators("none"), 0, ()), warned.append)
    if isinstance(failure, Exception):
        sampler.begin()
        sampler.measure(1.0)
        sampler.row()
    monkeypatch.undo()
    text = json.dumps(described)
    assert json.loads(text) == described and set(described) == set(everything())
    assert not [value for value in leaves(described) if value in ("", None, [], {})], described


def leaves(value: Any) -> list[Any]:
    """Return the values of an inventory except the source's, which may be empty."""
    if isinstance(value, dict) and value:
        return [
            leaf
            for key, entry in value.items()
            if key not in ("source", "environment")
            for leaf in leaves(entry)
        ]
    if isinstance(value, list) and value:
        return [leaf for entry in value for leaf in leaves(entry)]
    return [value]


def test_a_dead_network_file_system_takes_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiperf_mpi.probe.PROBE_SECONDS", 0.2)
    monkeypatch.setattr(probe, "__kwdefaults__", {"seconds": 0.2})
    released = threading.Event()
    monkeypatch.setattr(os, "statvfs", lambda path: released.wait(60))
    begun = time.monotonic()
    found = file_systems({"output": "/net/dead", "data": ""})
    released.set()
    assert found["output"] == "not known: the file system of /net/dead: no answer in 0.2 s"
    assert time.monotonic() - begun < 10


def test_a_value_a_reason_or_the_calling_thread() -> None:
    assert probe("the answer", lambda: 42) == 42
    here = threading.current_thread()
    assert probe("the thread", threading.current_thread, seconds=None) is here
    assert probe("the thread", threading.current_thread) is not here
    failed = probe("the answer", int, "x", seconds=None)
    assert isinstance(failed, NotKnown) and failed.startswith(
        "not known: the answer: ValueError: invalid literal"
    )
    named = probe("the file", open, "/nowhere/\udcff")
    assert named == "not known: the file: FileNotFoundError: /nowhere/?: No such file or directory"
    assert len(probe("a long story", lambda: int("x" * 4000))) < 400


def test_without_a_thread_it_is_asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert probe("the answer", lambda: 42) == 42


class NvmlError(Exception):
    """Stands for pynvml's error."""


class Nvml:
    """Stands for a pynvml that opens its devices, and then raises `error` from every other call."""

    NVMLError, NVML_CLOCK_SM, NVML_CLOCK_MEM = NvmlError, 0, 1

    def __init__(self, error: Exception) -> None:
        self.error = error

    def nvmlInit(self) -> None:
        """Succeed."""

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        """Return a handle."""
        return number

    nvmlDeviceGetHandleByUUID: Callable[..., Any] = nvmlDeviceGetHandleByIndex

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> NoReturn:
            raise self.error

        return call


@pytest.mark.parametrize(
    "error", [NvmlError("lost"), OSError(5, "I/O"), AttributeError("nvmlX"), ValueError("NUL")]
)
def test_a_driver_may_raise_anything(error: Exception) -> None:
    devices = open_nvidia(["0", "1"], Nvml(error))
    described = devices.describe()
    assert len(described) == 2 and "not reported by NVML" in described[0]["name"]
    warned: list[str] = []
    sampler = Sampler(0, Probe(Host(), devices, 2, ()), warned.append)
    sampler.begin()
    sampler.measure(1.0)
    assert sampler.row()["devices"] == 2


def test_devices_that_stop_answering_are_told_once() -> None:
    class Breaking:
        why = ""

        def describe(self) -> list[dict[str, Any]]:
            """Return nothing; no test asks."""
            return []

        def read(self) -> NoReturn:
            """Fail as a driver that was unloaded does."""
            raise RuntimeError("the driver is gone")

    warned: list[str] = []
    sampler = Sampler(0, Probe(Host(), Breaking(), 3, ()), warned.append)
    sampler.begin()
    for t in (1.0, 2.0):
        sampler.measure(t)
    assert sampler.row()["devices"] == 3
    assert sum("RuntimeError: the driver is gone" in text for text in warned) == 1

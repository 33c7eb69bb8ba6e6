# SPDX-License-Identifier: Apache-2.0
"""The writer process and its client: real processes, real signals, real file-size limits."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi.launchers import LAUNCHER_PREFIXES
from aiperf_mpi.planning.folder import OWNER, claim
from aiperf_mpi.results.file.rows import EPOCH_ROW, RunHeader, new_row
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import client as client_module
from aiperf_mpi.results.output.client import WriterClient
from aiperf_mpi.results.output.journal import replay
from aiperf_mpi.results.output.package import MANIFEST, SUMMARY, check_manifest
from aiperf_mpi.results.output.process import JOURNAL, PARTIAL, RESULT
from tests.helpers.results.example_run import Example, example_run

START = "2026-01-02T03:04:05Z"


@pytest.fixture
def client() -> Iterator[WriterClient]:
    """Start a writer process, and end it after the test."""
    started = WriterClient.start()
    yield started
    if not started.status().finished:
        started.abandon()


def wait_for(condition: Callable[[], object], client: WriterClient, seconds: float = 20.0) -> None:
    """Pump until `condition` holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"waited {seconds} s in vain; {client.status()}"
        client.pump()
        time.sleep(0.005)


def send_open(client: WriterClient, header: RunHeader, folder: Path, **seconds: float) -> None:
    """Make the folder the run's, as rank 0 does, and send the start of the run."""
    claim(folder, header.run_id)
    client.send_open(header, folder, **seconds)


def close(client: WriterClient, example: Example) -> client_module.WriterStatus:
    stop = example.stop()
    return client.close(stop["end"], stop["core_seconds"], stop["total_seconds"], timeout=60)


def test_a_run_becomes_a_valid_result(client: WriterClient, tmp_path: Path) -> None:
    example, folder = example_run(), tmp_path / "out"
    send_open(client, example.header, folder)
    client.send_start(START)
    wait_for((folder / PARTIAL).exists, client)
    example.send(client)
    turns = []
    stop = example.stop()
    status = client.close(
        stop["end"],
        stop["core_seconds"],
        stop["total_seconds"],
        between=lambda: turns.append(time.monotonic()),
    )

    assert (status.errors, status.result, status.finished) == ((), str(folder / RESULT), True)
    verdict = judge(status.result)
    assert verdict.valid, verdict.reasons
    assert sorted(entry.name for entry in folder.iterdir()) == [JOURNAL, MANIFEST, OWNER, RESULT, SUMMARY]
    assert check_manifest(folder) == []
    # Rank 0 was called while it waited, and no pause between the calls was long.
    assert max(np.diff(turns)) < 0.5


@pytest.mark.full
def test_the_partial_result_begins_at_core_start_and_grows(client: WriterClient, tmp_path: Path) -> None:
    example = example_run()
    send_open(client, example.header, tmp_path, partial_seconds=0.2)
    client.send_start(START)
    partial = tmp_path / PARTIAL

    def epochs() -> int:
        with h5py.File(partial, "r", locking=False) as file:
            return int(file.attrs["n_epochs"])

    wait_for(partial.exists, client)
    assert epochs() == 0
    example.send(client)
    # Building takes some 0.1 s of a core, so at one percent of the time the next one comes after some 10 s.
    wait_for(lambda: epochs() == len(example.epochs), client, seconds=60)

    # The file is a result that can be judged, and invalid, as the run has not ended.
    verdict = judge(partial)
    assert (verdict.valid, verdict.end) == (False, "running")
    assert "V21" in verdict.reason_ids


def test_rebuilding_the_partial_result_takes_one_percent_of_time(
    client: WriterClient, tmp_path: Path
) -> None:
    # With an interval of 0 s, only the rule of one percent separates them: building takes b, so 100 b
    # pass between.
    send_open(client, example_run().header, tmp_path, partial_seconds=0.0)
    client.send_start(START)
    seen, limit = set(), time.monotonic() + 4.0
    while time.monotonic() < limit:
        client.pump()
        if (tmp_path / PARTIAL).exists():
            seen.add((tmp_path / PARTIAL).stat().st_mtime_ns)
        time.sleep(0.005)
    # Building the empty run takes more than 5 ms of a core, so more than 0.5 s pass between two: at most 8 in
    # 4 s.
    assert 1 <= len(seen) <= 8


def test_signals_that_end_a_job_do_not_end_the_writer(client: WriterClient, tmp_path: Path) -> None:
    example = example_run()
    send_open(client, example.header, tmp_path)
    wait_for(lambda: client.status().opened, client)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(client.pid, number)
    client.send_start(START)
    example.send(client)
    assert judge(close(client, example).result).valid


def test_the_writer_imports_neither_mpi_nor_jax(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "HYDI_CONTROL_FD"):
        monkeypatch.setenv(name, "0")
    client = WriterClient.start()
    send_open(client, example_run().header, tmp_path)
    wait_for(lambda: client.status().opened, client)
    environment = Path(f"/proc/{client.pid}/environ").read_text()
    libraries = Path(f"/proc/{client.pid}/maps").read_text()
    session = os.getsid(client.pid)
    client.abandon()
    assert not any(name.startswith(LAUNCHER_PREFIXES) for name in environment.split("\0"))
    assert "libmpi" not in libraries and "jaxlib" not in libraries
    assert session != os.getsid(0)


def test_rank_0_that_is_killed_leaves_journal_and_partial_result(tmp_path: Path) -> None:
    # A parent that sends the example and then waits to be killed, as rank 0 would be.
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from aiperf_mpi.planning.folder import claim\n"
        "from aiperf_mpi.results.output.client import WriterClient\n"
        "from tests.helpers.results.example_run import example_run\n"
        "client = WriterClient.start(); example = example_run()\n"
        "claim(Path(sys.argv[1]), example.header.run_id)\n"
        "client.send_open(example.header, sys.argv[1]); client.send_start('2026-01-02T03:04:05Z')\n"
        "example.send(client)\n"
        "while client.status().queued_bytes: client.pump()\n"
        "print(client.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=root, text=True
    ) as parent:
        assert parent.stdout is not None
        writer = int(parent.stdout.readline())
        parent.kill()
    limit = time.monotonic() + 20
    while Path(f"/proc/{writer}").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    assert not Path(f"/proc/{writer}").exists(), "the writer outlived its input"

    example = example_run()
    run = replay(tmp_path / JOURNAL)
    assert np.array_equal(run.epochs["trial_id"], example.epochs["trial_id"])
    assert len(run.trials) == len(example.trials) and run.end == "killed"
    verdict = judge(tmp_path / PARTIAL)
    assert (verdict.end, verdict.trials, verdict.valid) == ("killed", 6, False)


@pytest.mark.parametrize("limit_bytes", [20_000, 60_000])
def test_a_file_size_limit_leaves_the_journal_whole(
    client: WriterClient, tmp_path: Path, limit_bytes: int
) -> None:
    example = example_run()
    send_open(client, example.header, tmp_path)
    wait_for(lambda: client.status().opened, client)
    resource.prlimit(client.pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    client.send_start(START)
    for _ in range(20):
        example.send(client)
    wait_for(lambda: client.status().errors, client)
    assert any("File too large" in error for error in client.status().errors)

    status = close(client, example)
    journal = (tmp_path / JOURNAL).read_bytes()
    assert status.finished and len(journal) <= limit_bytes
    assert journal.endswith(b"\n") and not replay(tmp_path / JOURNAL).problems
    # The result of 80 kB does not fit either: that is reported, and no incomplete file is left.
    assert status.result == "" and any(RESULT in error for error in status.errors)
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name.endswith((".tmp", RESULT))]


@pytest.mark.parametrize("loss", ["removed", "moved", "emptied", "another run", "no space", "a journal"])
def test_a_folder_lost_before_the_start_is_reported(client: WriterClient, tmp_path: Path, loss: str) -> None:
    """Between its claim and the core time, something happens to the folder: the writer makes no other one."""
    header, folder = example_run().header, tmp_path / "out"
    claimed = claim(folder, header.run_id)
    part = {
        "removed": "was moved or removed",
        "moved": "was moved or removed",
        "emptied": "owner.json was removed",
        "another run": "belongs to another run now",
        "no space": "the file would be larger than allowed",
        "a journal": "exists already",
    }[loss]
    if loss in ("removed", "another run"):
        claimed.remove()
    if loss == "another run":
        claim(folder, "other")
    if loss == "moved":
        folder.rename(tmp_path / "moved")
    if loss == "emptied":
        (folder / OWNER).unlink()
    if loss == "a journal":
        (folder / JOURNAL).write_text("precious")
    if loss == "no space":
        resource.prlimit(client.pid, resource.RLIMIT_FSIZE, (0, 0))
    before = sorted(tmp_path.rglob("*"))
    client.send_open(header, folder)
    wait_for(lambda: client.status().errors, client)
    assert part in client.status().errors[0] and str(folder) in client.status().errors[0]
    assert not client.status().opened
    assert loss == "no space" or sorted(tmp_path.rglob("*")) == before
    status = client.close("drained", 1.0, 1.0)
    assert status.finished and not status.result


def test_a_run_that_ends_before_its_core_time_leaves_nothing(tmp_path: Path) -> None:
    """Rank 0 was killed after it made its folder: the writer removes it, and nothing of another run."""
    header, client = example_run().header, WriterClient.start()
    claim(tmp_path / "runs" / "other", "other")
    claim(tmp_path / "runs" / "a" / "b", header.run_id, client.send_folder)
    client.send_open(header, tmp_path / "runs" / "a" / "b")
    wait_for(lambda: client.status().opened, client)
    client.abandon()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_a_journal_of_another_run_is_not_removed(tmp_path: Path) -> None:
    """The folder was removed before the core time, and another run has made it anew."""
    header, folder, client = example_run().header, tmp_path / "out", WriterClient.start()
    claim(folder, header.run_id, client.send_folder)
    client.send_open(header, folder)
    wait_for(lambda: client.status().opened, client)
    shutil.rmtree(folder)
    claim(folder, "other")
    (folder / JOURNAL).write_text("precious")
    client.abandon()
    assert (folder / JOURNAL).read_text() == "precious" and (folder / OWNER).exists()


@pytest.mark.parametrize("content", [None, b"", b"\0" * 40])
def test_a_result_is_written_next_to_the_open_journal(
    client: WriterClient, tmp_path: Path, content: bytes | None
) -> None:
    """The owner file was removed or damaged in the core time, but the folder still has this run's journal."""
    example = example_run()
    send_open(client, example.header, tmp_path)
    wait_for(lambda: client.status().opened, client)
    (tmp_path / OWNER).unlink()
    if content is not None:
        (tmp_path / OWNER).write_bytes(content)
    client.send_start(START)
    example.send(client)
    status = close(client, example)
    assert not status.errors and judge(status.result).valid


@pytest.mark.parametrize("owner", ["none", "other"])
def test_no_result_is_written_where_another_journal_is(
    client: WriterClient, tmp_path: Path, owner: str
) -> None:
    """The folder was moved away, and another one with a journal has its name."""
    example, folder = example_run(), tmp_path / "out"
    send_open(client, example.header, folder)
    wait_for(lambda: client.status().opened, client)
    folder.rename(tmp_path / "moved")
    folder.mkdir()
    if owner == "other":
        claim(folder, "other")
    (folder / JOURNAL).write_text("precious")
    before = sorted(folder.iterdir())
    client.send_start(START)
    example.send(client)
    status = close(client, example)
    assert not status.result and str(folder) in status.errors[0]
    assert sorted(folder.iterdir()) == before


def test_a_torn_record_is_refused_and_reported(client: WriterClient, tmp_path: Path) -> None:
    example = example_run()
    send_open(client, example.header, tmp_path)
    record = bytearray(example.records[0].tobytes())
    record[20] ^= 1
    client.send_record(0, bytes(record))
    wait_for(lambda: client.status().errors, client)
    assert "record of slot 0 is torn" in client.status().errors[0]


def test_a_writer_that_died_is_reported(client: WriterClient, tmp_path: Path) -> None:
    example = example_run()
    send_open(client, example.header, tmp_path)
    wait_for(lambda: client.status().opened, client)
    os.kill(client.pid, signal.SIGKILL)
    wait_for(lambda: client.status().finished, client)
    assert client.status().errors == ("the result writer ended early, with exit code -9",)
    example.send(client)
    assert close(client, example).result == ""


def test_sends_never_wait_for_a_writer_that_sleeps(tmp_path: Path) -> None:
    # The queue takes 1 MiB; the writer is stopped, so what its pipe does not take stays in the queue.
    client = WriterClient.start(queue_bytes=1 << 20)
    send_open(client, example_run().header, tmp_path)
    wait_for(lambda: client.status().opened, client)
    os.kill(client.pid, signal.SIGSTOP)
    row = new_row(EPOCH_ROW, trial_id=0).tobytes()
    slowest = 0.0
    for _ in range(9_000):
        start = time.monotonic()
        client.send_epoch(row)
        slowest = max(slowest, time.monotonic() - start)
    assert slowest < 0.2 and not client.status().errors
    assert 0 < client.status().queued_bytes <= 1 << 20

    # 20,000 rows of 93 bytes are more than pipe and queue take: that ends the run, and rank 0 does not wait.
    for _ in range(11_000):
        client.send_epoch(row)
    assert "lags by more than 1 MiB" in client.status().errors[0]
    os.kill(client.pid, signal.SIGCONT)
    wait_for(lambda: client.status().queued_bytes == 0, client)
    client.abandon()


def test_a_client_that_is_let_go_leaves_nothing_behind(tmp_path: Path) -> None:
    client = WriterClient.start()
    client.abandon()
    assert client.status().finished and not Path(f"/proc/{client.pid}").exists()
    assert list(tmp_path.iterdir()) == []

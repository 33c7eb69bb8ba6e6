# SPDX-License-Identifier: Apache-2.0
"""The lock of an output folder: one owner, real processes, real deaths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.results.output import lock as lock_module
from aiperf_mpi.results.output.lock import LOCK, Holder, acquire, read_holder

#: A process that takes the lock of a folder, says so, and waits for its end.
OWNER = (
    "import sys, time; from pathlib import Path\n"
    "from aiperf_mpi.results.output.lock import acquire\n"
    "held = acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)\n"
)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def elsewhere(folder: Path, **changes: object) -> Holder:
    """Write the lock of a process on another host, and return it."""
    holder = Holder("token", "elsewhere", "boot", "space", 4711, 1, "2026-01-02T03:04:05+00:00")
    holder = replace(holder, **changes)  # type: ignore[arg-type]
    (folder / LOCK).write_text(json.dumps(asdict(holder)))
    return holder


def test_a_second_process_is_refused_by_the_name_of_the_first(
    owner: subprocess.Popen[str], tmp_path: Path
) -> None:
    begun = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        acquire(tmp_path, "--resume", patience=0.5)
    assert str(refused.value).startswith(f"--resume {tmp_path}: process {owner.pid} on host ")
    assert str(refused.value).endswith("works in this folder; wait until it has ended, or end it")
    assert 0.5 <= time.monotonic() - begun < 5


def test_a_dead_owner_of_this_host_loses_the_lock_at_once(
    owner: subprocess.Popen[str], tmp_path: Path
) -> None:
    owner.kill()
    owner.wait()
    begun = time.monotonic()
    acquire(tmp_path).release()
    assert time.monotonic() - begun < 1


def test_an_owner_that_is_about_to_end_is_waited_for(tmp_path: Path, owner: subprocess.Popen[str]) -> None:
    killer = subprocess.Popen(
        [sys.executable, "-c", f"import time, os; time.sleep(0.5); os.kill({owner.pid}, 9)"]
    )
    # A zombie is dead, too: this test is its parent, and has not waited for it.
    acquire(tmp_path, patience=20).release()
    killer.wait()


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path: Path) -> None:
    host, boot, space = lock_module._place()
    elsewhere(tmp_path, host=host, boot=boot, space=space, pid=os.getpid(), started=1)
    acquire(tmp_path, patience=0).release()


def test_a_host_that_has_started_again_has_no_owner(tmp_path: Path) -> None:
    elsewhere(tmp_path, host=lock_module._place()[0], boot="before")
    acquire(tmp_path, patience=0).release()


def test_an_owner_elsewhere_loses_the_lock_after_its_silence(tmp_path: Path) -> None:
    elsewhere(tmp_path)
    begun = time.monotonic()
    acquire(tmp_path, silent=1.0).release()
    assert 1.0 <= time.monotonic() - begun < 5
    assert os.listdir(tmp_path) == []


def test_a_heartbeat_elsewhere_shows_that_the_owner_lives(tmp_path: Path) -> None:
    holder = elsewhere(tmp_path)
    beat = (
        "import sys, time; time.sleep(0.6); from pathlib import Path\n"
        f"Path(sys.argv[1]).write_text({json.dumps(json.dumps(asdict(replace(holder, beats=1))))})\n"
    )
    other = subprocess.Popen([sys.executable, "-c", beat, str(tmp_path / LOCK)])
    with pytest.raises(ConfigError, match="process 4711 on host elsewhere"):
        acquire(tmp_path, silent=20.0)
    other.wait()


def test_a_lock_that_cannot_be_read_is_lost_after_the_silence(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("{")
    acquire(tmp_path, silent=0.5).release()


def test_the_owner_sees_that_another_one_has_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = acquire(tmp_path)
    assert held.lost() == ""
    (tmp_path / LOCK).unlink()
    elsewhere(tmp_path)
    # It looks once in a heartbeat.
    assert held.lost() == ""
    monkeypatch.setattr(held, "_look_at", 0.0)
    assert "process 4711 on host elsewhere" in held.lost()
    # It does not remove the lock of the other one.
    held.release()
    holder = read_holder(tmp_path)
    assert holder is not None and holder.token == "token"


def test_heartbeats_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT_SECONDS", 0.02)
    held = acquire(tmp_path)
    limit = time.monotonic() + 10
    while (holder := read_holder(tmp_path)) is None or holder.beats < 3:
        assert time.monotonic() < limit
        time.sleep(0.01)
    held.release()
    assert os.listdir(tmp_path) == []


def test_of_many_processes_one_gets_a_dead_owners_lock(tmp_path: Path) -> None:
    """Four processes find the same dead owner: one has the folder, the others are refused by its name."""
    elsewhere(tmp_path, host=lock_module._place()[0], boot="before")
    program = (
        "import sys, time; from pathlib import Path\n"
        "from aiperf_mpi.config import ConfigError\n"
        "from aiperf_mpi.results.output.lock import acquire\n"
        "try: held = acquire(Path(sys.argv[1]), patience=3.0)\n"
        "except ConfigError as error: print('refused'); sys.exit()\n"
        "print('held'); sys.stdout.flush(); time.sleep(6); held.release()\n"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [job.communicate(timeout=60)[0].strip() for job in jobs]
    assert sorted(said) == ["held", "refused", "refused", "refused"]
    assert os.listdir(tmp_path) == []

# SPDX-License-Identifier: Apache-2.0
"""The output folder of a run has one owner, whatever else starts at the same moment."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.config.paths import expanded
from aiperf_mpi.planning.folder import OWNER, RunFolder, Taken, claim, default_folders, lost, read_owner
from aiperf_mpi.planning.storage import claim_output
from aiperf_mpi.printable import named
from tests.helpers.launch import ROOT

DEMO = load("demo")

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")


def refusal(folder: Path, run_id: str = "other") -> str:
    """Return the one line by which the claim of a folder is refused."""
    with pytest.raises(ConfigError) as caught:
        claim(folder, run_id)
    text = str(caught.value)
    assert text.isprintable() and text.startswith(f"--output {named(folder)}: ") and "; " in text
    return text


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount a small file system on a new folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, timeout=10).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=10)


def without_rights(code: str) -> str:
    """Return what a Python program prints as root without the right to pass permissions."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can give up its rights, by setpriv")
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60).stdout


CLAIM = """
import sys
from pathlib import Path
from aiperf_mpi.config import ConfigError
from aiperf_mpi.planning.folder import claim
try: claim(Path({folder!r}), "other"); print("claimed")
except ConfigError as error: print(error)
"""


# -- one owner -------------------------------------------------------------------------------------


def test_a_claim_is_undone_to_the_last_folder(tmp_path: Path) -> None:
    folder = claim(tmp_path / "a" / "b" / "c", "mine")
    assert folder.created == (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c")
    owner = read_owner(folder.path)
    assert owner is not None and (owner.run_id, owner.pid) == ("mine", os.getpid()) and not folder.lost()
    assert RunFolder.from_dict(json.loads(json.dumps(folder.to_dict()))) == folder
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_empty_folder_stays_after_a_refusal(tmp_path: Path) -> None:
    folder = claim(tmp_path, "mine")
    assert folder.created == () and [path.name for path in tmp_path.iterdir()] == [OWNER]
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_second_run_is_told_who_owns_the_folder(tmp_path: Path) -> None:
    first = claim(tmp_path / "run", "mine")
    said = refusal(tmp_path / "run")
    assert f"belongs to another run (process {os.getpid()} on host " in said and ", started 20" in said
    assert not first.lost(), "the refused run removed the owner"
    (tmp_path / "run" / OWNER).write_text('{"run_id": 1, "host": "h\\nAIPERF_MPI status: VALID"}')
    assert "its owner file cannot be read" in refusal(tmp_path / "run")


@pytest.mark.parametrize("step", ["write", "fsync", "listdir"])
def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A signal ends the claim at any step, also while the owner file has half of its content."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"os.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        claim(tmp_path / "runs" / "a", "mine")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_removing_spares_what_others_made(tmp_path: Path) -> None:
    first = claim(tmp_path / "runs" / "first", "mine")
    second = claim(tmp_path / "runs" / "second", "other")
    first.remove()
    assert not second.lost() and not first.path.exists()
    (second.path / "journal.jsonl").write_text("kept")
    second.remove()
    assert [path.name for path in second.path.iterdir()] == ["journal.jsonl"]


RACE = """
import sys, time
from pathlib import Path
from aiperf_mpi.config import load
from aiperf_mpi.planning.folder import Taken, claim
from aiperf_mpi.planning.storage import claim_output
name, start, rounds = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
demo, won = load("demo"), 0
for number in range(rounds):
    while time.time() < start + 0.02 * number:
        time.sleep(0.0005)
    try: claim(Path(f"shared/{number}/run"), name); won += 1
    except Taken: pass
print(won, *(claim_output(demo, 1, name).path for _ in range(2)))
"""


def test_of_many_runs_at_one_moment_one_has_the_folder(tmp_path: Path) -> None:
    """Four processes claim 30 folders, each at one moment, and then make folders named by the time."""
    import time

    env, start, rounds = {**os.environ, "PYTHONPATH": str(ROOT)}, time.time() + 3, 30
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, f"run{number}", str(start), str(rounds)],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    said = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert sum(int(words[0]) for words in said) == rounds
    own = [name for words in said for name in words[1:]]
    assert len(set(own)) == 8 and all(Path(name).parent == tmp_path / "runs" for name in own)
    owners = [read_owner(tmp_path / "shared" / str(number) / "run") for number in range(rounds)]
    assert all(owner is not None for owner in owners)


def test_parents_that_a_refused_run_removes_are_made_again(tmp_path: Path) -> None:
    """One thread makes and removes the parent without end; no claim below it may fail for that."""
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            claim(tmp_path / "runs" / "other", "other").remove()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for number in range(60):
            claim(tmp_path / "runs" / str(number), "mine").remove()
    finally:
        stop.set()
        thread.join()
    # The parent stays where its maker left it to the other run; it is empty.
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "runs"])


def test_default_names_are_of_one_second() -> None:
    names = [str(name) for name, _ in zip(default_folders(0.0), range(3), strict=False)]
    assert names[0].startswith("runs/aiperf_mpi-19") and names[1:] == [f"{names[0]}-2", f"{names[0]}-3"]


# -- places that cannot be used --------------------------------------------------------------------


def test_other_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink("loop", tmp_path / "loop")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for name, part in (
        ("file", "a file, not a folder; name another folder"),
        ("file/below/x", "a part of the path is a file"),
        ("fifo", "a FIFO, not a folder"),
        ("/dev/null", "a device, not a folder"),
        ("dangling", "is a link to nowhere, which does not exist"),
        ("dangling/x", "is a link to nowhere, which does not exist"),
        ("loop/x", "links form a loop"),
        ("full", "not empty; a run writes into a new folder, name another one"),
        ("a/" + "n" * 300, "the name is longer than"),
        ("/proc/aiperf_mpi", "the file system creates nothing here"),
        ("/sys/aiperf_mpi/x", "may not write here"),
    ):
        assert part in refusal(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_variable_in_the_name_of_an_existing_folder_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "$NOWHERE_1").mkdir()
    claim(expanded("--output", tmp_path / "$NOWHERE_1" / "runs" / "a"), "mine").remove()
    os.symlink("nowhere", tmp_path / "$LINK")
    assert "$LINK is a link to nowhere" in refusal(tmp_path / "$LINK" / "x")


def test_a_link_to_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    os.symlink("place", tmp_path / "link")
    claim(tmp_path / "link", "mine").remove()
    assert (tmp_path / "link").is_symlink() and list((tmp_path / "place").iterdir()) == []


def test_folders_that_this_user_may_not_write_or_enter(tmp_path: Path) -> None:
    for mode, below, part in (
        (0o555, "run", "may not write here; name another folder"),
        (0o444, "run/x", "may not enter the folder"),
        (0o000, "run", "may not enter the folder"),
        (0o555, "", "may not write here"),
        (0o333, "", "has no permission for it"),
    ):
        closed = tmp_path / f"closed-{mode:o}-{below.count('/')}-{len(below)}"
        closed.mkdir()
        closed.chmod(mode)
        said = without_rights(CLAIM.format(folder=str(closed / below)))
        assert said.startswith(f"--output {closed / below}: ") and part in said
        closed.chmod(0o755)
        assert list(closed.iterdir()) == []


@root_only
def test_a_full_and_a_read_only_file_system(tmp_path: Path) -> None:
    with mounted(tmp_path / "full", "-o", "size=64k") as full:
        with open(full / "filler", "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        said = refusal(full / "run")
        assert "no space is left on the file system; make room" in said
        assert [path.name for path in full.iterdir()] == ["filler"]
    with mounted(tmp_path / "inodes", "-o", "nr_inodes=3") as inodes:
        with pytest.raises(ConfigError, match="no space is left|takes . more; remove files"):
            claim_output(load("demo", output=str(inodes / "run")), 1, "mine")
        assert list(inodes.iterdir()) == []
    with mounted(tmp_path / "few", "-o", "nr_inodes=12") as few:
        with pytest.raises(ConfigError, match="makes up to 18 files, but the file system takes"):
            claim_output(load("demo", output=str(few / "run")), 1, "mine")
        assert list(few.iterdir()) == []
    with mounted(tmp_path / "readonly", "-o", "ro") as readonly:
        for folder in (readonly, readonly / "run"):
            assert "the file system is read-only; name another folder" in refusal(folder)


@root_only
def test_an_immutable_folder(tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir()
    if subprocess.run(["chattr", "+i", tmp_path / "fixed"], capture_output=True, timeout=10).returncode:
        pytest.skip("this file system has no immutable folders")
    try:
        assert "may not write here" in refusal(tmp_path / "fixed")
    finally:
        subprocess.run(["chattr", "-i", tmp_path / "fixed"], check=True, timeout=10)


def test_a_limit_of_the_size_of_files(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(
            ConfigError, match=r"limit of this process \(ulimit -f\) is 1\.0 MiB; raise the limit.*ulimit -f"
        ):
            claim_output(load("demo", output=str(tmp_path / "run")), 1, "mine")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_leaves_nothing(tmp_path: Path) -> None:
    """Weights of a trillion replicas fit on no disk."""
    with pytest.raises(ConfigError, match=r"may write .* GiB, but .* GiB are free; make room"):
        claim_output(load("demo", output=str(tmp_path / "a" / "b")), 10**12, "mine")
    assert list(tmp_path.iterdir()) == []


# -- after the claim -------------------------------------------------------------------------------


def test_a_folder_that_is_lost_after_the_claim(tmp_path: Path) -> None:
    folder = claim(tmp_path / "run", "mine")
    assert lost(folder.path, "mine") == ""
    os.rename(folder.path, tmp_path / "moved")
    assert "was moved or removed after this run had created it; start the run again" in folder.lost()
    (tmp_path / "run").mkdir()
    assert f"its {OWNER} was removed" in folder.lost()
    claim(tmp_path / "run", "other")
    assert "belongs to another run now (process " in folder.lost()
    folder.remove()
    assert not lost(tmp_path / "run", "other"), "the owner file of another run was removed"


def test_taken_is_an_error_of_the_configuration() -> None:
    assert issubclass(Taken, ConfigError)

# SPDX-License-Identifier: Apache-2.0
"""Folders on real file systems that are full, read-only or small: the finding names the step that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.config.programs import cache_place
from aiperf_mpi.planning import storage
from aiperf_mpi.site import folders, output
from tests.helpers.launch import ROOT, variables
from tests.helpers.namespaces import with_mounts

DEMO = load("demo")

#: Print what `doctor` finds of the folders in the arguments: output and scratch.
PROGRAM = """
import json, sys
from pathlib import Path
from aiperf_mpi.config import load
from aiperf_mpi.site import folders, output
config = load("demo", sets=sys.argv[2:], output=sys.argv[1])
made, found = output.try_output(config, 1)
if made is not None:
    folders.remove(made)
found += output.try_scratch(config)
print(json.dumps([finding.to_dict() for finding in found]))
"""


def on_mount(options: str, where: Path, path: Path, *sets: str, after: str = "true") -> list[dict[str, str]]:
    """Return the findings for the output `path` with a tmpfs of these options at `where`."""
    mounts = [f"mount -t tmpfs -o {options} tmpfs '{where}'", after]
    command = with_mounts(mounts, [sys.executable, "-c", PROGRAM, str(path), *sets])
    done = subprocess.run(
        command, env=variables("mpich"), cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_folder_that_is_fine_is_left_as_it_was(tmp_path: Path) -> None:
    config = load("demo", output=str(tmp_path / "a" / "b"))
    made, found = output.try_output(config, 1)
    assert made == tmp_path / "a" / "b"
    assert [finding.level for finding in found] == ["ok"] and "free for at most" in found[0].text
    assert output.try_seen(made, 3) == ()
    folders.remove(made)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    made, (found,) = output.try_output(load("demo", output=str(tmp_path)), 1)
    assert made is None and found.level == "fail" and "not empty" in found.text


def test_an_empty_output_stays_empty(tmp_path: Path) -> None:
    made, found = output.try_output(load("demo", output=str(tmp_path)), 1)
    assert made is not None and found[0].level == "ok"
    folders.remove_all()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made, (found,) = output.try_output(load("demo", output=str(tmp_path / "file" / "x")), 1)
    assert made is None and found.level == "fail" and "file" in found.text


def test_a_host_that_does_not_see_the_output(tmp_path: Path) -> None:
    (found,) = output.try_seen(tmp_path / "not" / "there", 3)
    assert found.level == "fail" and "share" in found.remedy


def test_only_our_own_folders_are_removed(tmp_path: Path) -> None:
    theirs = tmp_path / f"{folders.PREFIX}theirs"
    theirs.mkdir()
    folders.remove(theirs)
    folders.remove_all()
    assert theirs.is_dir()


@pytest.mark.parametrize(
    ("options", "after", "words"),
    [
        # 64 KiB cannot hold the 256 KiB of a try.
        ("size=64k", "true", "the run may write"),
        # 64 MiB hold a try, but not the 73 MiB of the demo.
        ("size=64m", "true", "the run may write 74 MiB, but 63 MiB are free"),
        # One name is left, or two: for the folder, and for its owner file.
        ("size=200m,nr_inodes=2", "true", "no space is left"),
        ("size=200m,nr_inodes=3", "true", "makes up to"),
        ("size=200m", "mount -o remount,ro '{}'", "read-only"),
    ],
)
def test_a_file_system_that_cannot_be_written(tmp_path: Path, options: str, after: str, words: str) -> None:
    found, _ = on_mount(options, tmp_path, tmp_path / "run", after=after.format(tmp_path))
    assert found["level"] == "fail" and found["subject"] == "output" and found["remedy"]
    assert words in found["text"], found["text"]


def test_a_file_system_that_executes_nothing_is_fine(tmp_path: Path) -> None:
    found, _ = on_mount("size=200m,noexec", tmp_path, tmp_path / "run")
    assert found["level"] == "ok"


def test_a_scratch_folder_that_is_full(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    _, found = on_mount("size=64k", scratch, tmp_path / "run", f"parallel.cache={scratch}/programs")
    assert (found["level"], found["subject"]) == ("fail", "scratch")
    assert found["text"].startswith("parallel.cache: ") and "cannot be written" in found["text"]


def test_a_lock_that_is_held_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file system without locks, which no mount of this machine is.
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folders.fcntl, "flock", refuse)
    (found,) = folders.judge_scratch("TMPDIR", tmp_path)
    assert found.level == "warn" and "No locks available" in found.text and "local disk" in found.remedy
    made, found_of_output = output.try_output(load("demo", output=str(tmp_path / "run")), 1)
    assert [one.level for one in found_of_output] == ["ok", "warn"]
    folders.remove_all()


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (2**20, "1.0 MiB"), (15 * 2**30, "15 GiB"), (3e18, "2665 PiB")],
)
def test_sizes_in_words(count: float, text: str) -> None:
    # 3e18 / 2^50 = 2664.53 PiB
    assert folders.size(count) == text


def test_a_claim_that_is_late_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is made after its try was given up, and everything else given back."""
    made, given_back = threading.Event(), threading.Event()

    def slow(config: Config, replicas: int, path: Path) -> None:
        made.set()
        given_back.wait(10)

    monkeypatch.setattr(storage, "_check_space", slow)
    config = load("demo", output=str(tmp_path / "a" / "run"))
    found: list[object] = []
    claim = threading.Thread(target=lambda: found.append(output.try_output(config, 1)))
    claim.start()
    made.wait(10)
    # A file of another host is there, which tries the folder at that moment.
    (tmp_path / "a" / "run" / "rank-3").touch()
    folders.remove_all()
    assert list(tmp_path.iterdir()) == []
    given_back.set()
    claim.join(10)
    assert found and list(tmp_path.iterdir()) == [] and not folders.undo


def test_a_folder_that_is_made_after_it_was_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def late(path: Path, mode: int = 0o777) -> None:
        folders.remove_all()
        make(path, mode)

    monkeypatch.setattr("os.mkdir", late)
    made, (found,) = output.try_output(load("demo", output=str(tmp_path / "a" / "run")), 1)
    assert made is None and found.level == "fail" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "name"), [("", "TMPDIR"), ("x", "parallel.cache"), (None, "JAX_COMPILATION")]
)
def test_the_scratch_folder_is_that_of_a_run(
    setting: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    if setting is None:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    sets = [f"parallel.cache={tmp_path / setting}"] if setting else []
    (found,) = output.try_scratch(load("demo", sets=sets))
    assert found.level == "ok" and found.text.startswith(name)
    # A run refuses such a folder, and so does the check, by the same words.
    (tmp_path / "file").touch()
    config = load("demo", sets=[f"parallel.cache={tmp_path / 'file'}"])
    with pytest.raises(ConfigError) as refused:
        cache_place(config.parallel.cache)
    assert str(output.try_scratch(config)[0]) == str(refused.value)


def test_a_tmpdir_that_python_passes_over_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = str(tmp_path / "job.4711")
    monkeypatch.setenv("TMPDIR", gone)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)
    found = output.try_scratch(DEMO)
    assert [one.level for one in found] == ["warn", "ok"]
    assert gone in found[0].text and "unset TMPDIR" in found[0].remedy


@pytest.mark.parametrize("before", ["ulimit -f 60", "ulimit -f 1500"])
def test_a_limit_on_files_is_told_once(tmp_path: Path, before: str) -> None:
    """MPI's files of 16 MiB count; both folders have the same finding, which is shown once."""
    command = ["bash", "-c", f'{before} && exec "$@"', "bash", sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        [*command, str(tmp_path / "run")], env=variables("mpich"), cwd=ROOT, capture_output=True, text=True
    )
    first, second = json.loads(done.stdout)
    assert first == second and first["level"] == "fail" and "ulimit -f unlimited" in first["remedy"]


def test_a_umask_that_closes_own_files_is_told(tmp_path: Path) -> None:
    drop = "-dac_override,-dac_read_search"
    command = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}", sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        ["bash", "-c", 'umask 0777; exec "$@"', "bash", *command, str(tmp_path / "run")],
        env=variables("mpich") | {"TMPDIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "setpriv" in done.stderr:
        pytest.skip(f"this user may not give up capabilities: {done.stderr[:80]}")
    first, second = json.loads(done.stdout)
    assert first == second and first["level"] == "fail" and first["remedy"].startswith("umask 022")
    assert list(tmp_path.iterdir()) == []


def test_only_settings_that_help_are_advised(tmp_path: Path) -> None:
    """The demo's weights are small beside the 64 MiB for other programs; with many files they count."""
    found, _ = on_mount("size=20m", tmp_path, tmp_path / "run")
    assert "search." not in found["remedy"] and "result." not in found["remedy"]
    sets = ("result.keep_checkpoints=1000", "search.max_parameters=1000000")
    found, _ = on_mount("size=100m", tmp_path, tmp_path / "run", *sets)
    assert "result.keep_checkpoints" in found["remedy"], found

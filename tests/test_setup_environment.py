# SPDX-License-Identifier: Apache-2.0
"""bin/setup-environment on sites that lack something: it goes on, or says what to do. pip does not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.helpers import launch

#: What a checkout needs for its set-up.
FILES = ("bin/setup-environment", "setup.cfg", "pyproject.toml", "setup.py")

#: Programs of the script, for a PATH that has neither Python nor flock.
PROGRAMS = (*"bash dirname cat mkdir mv rm df awk mktemp rmdir env tail xargs sleep".split(),)

#: A flock that fails as on Lustre without locks.
NO_LOCKS = "#include <errno.h>\nint flock(int file, int operation) { errno = ENOLCK; return -1; }\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of the set-up alone, in a folder with a space and a letter that is not ASCII."""
    folder = tmp_path / "my bench ü"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(launch.ROOT / name, folder / name)
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A PATH with the programs of the script, but without Python, pip and flock."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in PROGRAMS:
        (folder / name).symlink_to(shutil.which(name) or name)
    return str(folder)


def set_up(checkout: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the set-up with these variables in addition; it must end within 30 s."""
    return subprocess.run(
        [str(checkout / "bin" / "setup-environment"), "demo"],
        env={**{name: value for name, value in os.environ.items() if "PIP_" not in name}, **env},
        capture_output=True,
        text=True,
        timeout=30,
    )


def refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Demand exit code 2, and these parts in the last line."""
    line = (done.stderr.strip().splitlines() or [""])[-1]
    assert done.returncode == 2 and line.startswith("setup: "), done.stderr
    assert all(part in line for part in parts), line


def python_that(folder: Path, cases: str) -> str:
    """Return a Python in which some calls fail: `cases` are those of a shell's case on its arguments."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\ncase "$*" in {cases} esac\nexec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def test_without_a_python(checkout: Path, bare: str) -> None:
    if Path("/usr/bin/python3").exists():
        env = {"PATH": bare, "AIPERF_MPI_PYTHON": "/nowhere/python"}
        refused(set_up(checkout, env), "AIPERF_MPI_PYTHON=/nowhere/python is not a Python from 3.11 to 3.13")
    else:
        refused(set_up(checkout, {"PATH": bare}), "found no Python from 3.11 to 3.13", "AIPERF_MPI_PYTHON")
    # Nothing is left locked.
    assert not (checkout / ".cache" / "setup.lock.d").exists()


@pytest.mark.parametrize("name", [".venv", ".venv-openmpi"])
def test_the_environment_of_another_folder_is_left_alone(name: str, checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (checkout / name).symlink_to(tmp_path / "other")
    refused(set_up(checkout, {}), f"{name} is a link to {tmp_path / 'other'}", f"rm {name}")
    assert not list((tmp_path / "other").iterdir())


def test_a_file_system_without_locks(checkout: Path, tmp_path: Path) -> None:
    compiler, library = shutil.which("cc") or shutil.which("gcc"), tmp_path / "no_locks.so"
    if compiler is None:
        pytest.skip("no C compiler makes the library in which flock fails")
    (tmp_path / "no_locks.c").write_text(NO_LOCKS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "no_locks.c"], check=True)
    env = {"LD_PRELOAD": str(library), "AIPERF_MPI_PYTHON": "/nowhere/python"}
    refused(set_up(checkout, env), "is not a Python from 3.11 to 3.13")
    assert not (checkout / ".cache" / "setup.lock.d").exists()


def test_a_folder_lock_waits_for_a_living_set_up_only(checkout: Path, bare: str) -> None:
    lock, host = checkout / ".cache" / "setup.lock.d", os.uname().nodename
    lock.mkdir(parents=True)
    with subprocess.Popen(["sleep", "3"]) as other:
        (lock / "holder").write_text(f"{host}:{other.pid}\n")
        # Only a process that is waited for is gone.
        threading.Thread(target=other.wait, daemon=True).start()
        begun = time.monotonic()
        done = set_up(checkout, {"PATH": bare, "HOSTNAME": host, "AIPERF_MPI_PYTHON": "/nowhere/python"})
    refused(done, "is not a Python")
    assert f"waiting for another set-up ({host}:{other.pid})" in done.stderr and time.monotonic() - begun > 1
    assert not lock.exists()


def test_of_many_that_find_a_killed_set_up_one_works_at_a_time(
    checkout: Path, bare: str, tmp_path: Path
) -> None:
    """Each reads the dead holder, and acts when the one before it has the lock already."""
    lock, inside, log = checkout / ".cache" / "setup.lock.d", tmp_path / "inside", tmp_path / "log"
    lock.mkdir(parents=True)
    host, gone = os.uname().nodename, subprocess.Popen(["true"])
    gone.wait()
    (lock / "holder").write_text(f"{host}:{gone.pid}\n")
    (Path(bare) / "cat").unlink()
    (Path(bare) / "cat").write_text(f'#!/bin/bash\n{shutil.which("cat")} "$@"; sleep 0.3\n')
    (Path(bare) / "cat").chmod(0o755)
    python = tmp_path / "python"
    words = f"mkdir '{inside}' || echo two at once; sleep 0.5; rmdir '{inside}'; echo done"
    python.write_text(f"#!/bin/bash\nexec >>'{log}' 2>&1\n{words}\nexit 1\n")
    python.chmod(0o755)
    env = {"PATH": bare, "HOSTNAME": host, "AIPERF_MPI_PYTHON": str(python)}
    threads = [threading.Thread(target=set_up, args=(checkout, env)) for _ in range(4)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert log.read_text().split("\n") == ["done"] * 4 + [""]
    assert not list(lock.parent.glob("setup.lock.*"))


def test_a_python_without_ensurepip_and_pip(checkout: Path, tmp_path: Path) -> None:
    cases = (
        '*without-pip*) ;; *"-m venv"*) echo "ensurepip is not available"; exit 1 ;; '
        '*"-m pip"*) echo "No module named pip" >&2; exit 1 ;;'
    )
    done = set_up(checkout, {"AIPERF_MPI_PYTHON": python_that(tmp_path, cases)})
    refused(done, "cannot make an environment with pip (see above)", "apt-get install python3-venv")
    assert "setup: ensurepip is not available" in done.stderr


def test_a_caller_whose_settings_break_python(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('of the caller')\n")
    # The Python that is asked for tells whether any of them reached it.
    cases = (
        '*"import sys, venv"*) env | grep -E "^(PYTHON|PIP_|VIRTUAL_ENV)" >"$(dirname "$0")/seen"; exit 1 ;;'
    )
    env = {
        "AIPERF_MPI_PYTHON": python_that(tmp_path, cases),
        "PYTHONPATH": str(tmp_path),
        "PYTHONHOME": "/nowhere",
        "PYTHONWARNINGS": "error",
        "PYTHONINSPECT": "1",
        "PYTHONUSERBASE": "/nowhere",
        "VIRTUAL_ENV": "/nowhere",
        "PIP_TARGET": "/nowhere",
        "PIP_PREFIX": "/nowhere",
        "PIP_NO_DEPS": "1",
        "PIP_USER": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PIP_INDEX_URL": "https://site/simple",
        "PIP_CONFIG_FILE": "/etc/site.conf",
        "CDPATH": "/tmp",
    }
    refused(set_up(checkout, env), "is not a Python from 3.11 to 3.13")
    kept = sorted((tmp_path / "seen").read_text().split())
    assert [entry for entry in kept if "DISABLE" not in entry and "PIP_CACHE" not in entry] == [
        "PIP_CONFIG_FILE=/etc/site.conf",
        "PIP_INDEX_URL=https://site/simple",
        "PIP_NO_INPUT=1",
        "PIP_REQUIRE_VIRTUALENV=0",
        "PIP_USER=0",
        "PYTHONNOUSERSITE=1",
    ]


@pytest.mark.parametrize(
    ("option", "part"),
    [("remount,bind,ro", "cannot write into"), ("size=50m", " MB free, but .venv needs 1500 MB")],
)
def test_a_read_only_and_a_full_disk(option: str, part: str, checkout: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    mount = 'mount -t tmpfs -o "${2#remount,bind,ro}" tmpfs "$1" && cp -r "$0"/. "$1"'
    if option.startswith("remount"):
        mount += ' && mount -o "$2" "$1"'
    script = f'{mount} && "$1"/bin/setup-environment demo'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, checkout, place, option]
    if subprocess.run([*command[:4], "true"], capture_output=True).returncode:
        pytest.skip("this machine does not allow a mount of one's own (unshare --user --mount)")
    env = {**os.environ, "AIPERF_MPI_PYTHON": sys.executable}
    done = subprocess.run([str(p) for p in command], env=env, capture_output=True, text=True, timeout=30)
    refused(done, part)


def test_an_environment_without_pip_is_not_replaced(checkout: Path) -> None:
    command = [sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")]
    subprocess.run(command, check=True, capture_output=True)
    (checkout / ".venv" / "mine").touch()
    refused(set_up(checkout, {}), "has no pip", "rm -r .venv")
    assert (checkout / ".venv" / "mine").exists()

# SPDX-License-Identifier: Apache-2.0
"""Where compiled programs are kept: a folder made for one run is removed, a given one stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.parallel.replica.cache import open_cache
from aiperf_mpi.parallel.replica.scratch import prefix

PROGRAM = """
import sys
import jax
from aiperf_mpi.parallel.replica.cache import open_cache
cache = open_cache(sys.argv[1], 3)
jax.jit(lambda x: x + 1)(1.0)
print(cache.folder, len(list(cache.folder.iterdir())) > 0, cache.ours)
"""


def cached(root: Path, configured: str, **variables: str) -> tuple[Path, bool, bool]:
    """Return the folder that a process used, whether it kept a program there, and whether it was its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, configured],
        cwd=root,
        capture_output=True,
        text=True,
        env={**env, "JAX_PLATFORMS": "cpu", **variables},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    folder, kept, ours = run.stdout.split()
    return Path(folder), kept == "True", ours == "True"


def test_a_fresh_folder_is_removed_at_the_end(root: Path, tmp_path: Path) -> None:
    # The remains of an aborted job are removed at the start.
    (tmp_path / f"{prefix()}left").mkdir()
    folder, kept, ours = cached(root, "", TMPDIR=str(tmp_path))
    assert folder.parent == tmp_path and folder.name.startswith(prefix()) and kept and ours
    assert not folder.exists() and list(tmp_path.iterdir()) == []


def test_a_configured_folder_stays_with_one_for_each_replica(root: Path, tmp_path: Path) -> None:
    folder, kept, ours = cached(root, str(tmp_path / "programs"))
    assert folder == tmp_path / "programs" / "replica-3" and kept and not ours and folder.is_dir()


def test_jaxs_own_folder_is_used_with_one_for_each_replica(root: Path, tmp_path: Path) -> None:
    given = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    folder, kept, ours = cached(root, "", **given)
    assert folder == tmp_path / "replica-3" and kept and not ours
    assert [path.name for path in tmp_path.iterdir()] == ["replica-3"]


def test_an_impossible_folder_is_refused_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for given, part in (
        (str(tmp_path / "file"), "a file, not a folder; name a folder on the node"),
        ("/proc/x", "/proc/x: the file system creates nothing here; name a folder on the node"),
        ("gs://bucket/x", "gs://bucket/x: is a URL"),
        ("$NOWHERE_1/x", "the variable $NOWHERE_1 in it is not set"),
        ("~nobody-of-this-name/x", "there is no user nobody-of-this-name"),
        (str(tmp_path / ("n" * 300)), "the name is longer"),
    ):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        with pytest.raises(ConfigError) as caught:
            open_cache(given, 0)
        assert str(caught.value).startswith("parallel.cache: ") and part in str(caught.value)
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
        with pytest.raises(ConfigError) as caught:
            open_cache("", 0)
        assert str(caught.value).startswith("JAX_COMPILATION_CACHE_DIR: ") and part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give up rights")
def test_a_folder_that_may_not_be_written(root: Path, tmp_path: Path) -> None:
    """JAX itself only warns when it writes the first program, in the core time."""
    (tmp_path / "replica-3").mkdir()
    (tmp_path / "replica-3").chmod(0o555)
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", PROGRAM]
    run = subprocess.run(
        [*command, str(tmp_path)],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    said = run.stderr.splitlines()[-1]
    assert (
        f"ConfigError: parallel.cache: {tmp_path}/replica-3: user 0 may not write here; name a folder" in said
    )


def test_a_host_without_a_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)

    def nothing() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nothing)
    with pytest.raises(ConfigError, match="no folder for temporary files can be written; set TMPDIR"):
        open_cache("", 0)

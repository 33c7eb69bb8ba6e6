# SPDX-License-Identifier: Apache-2.0
"""doctor tries the folder to which a run would copy its packed pictures, and leaves nothing there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aiperf_mpi.config import Config, ConfigError, load
from aiperf_mpi.data.catalogue import resolved
from aiperf_mpi.data.staging import Work, plan
from aiperf_mpi.site import folders, staging
from tests.helpers.launch import python, variables
from tests.helpers.namespaces import broken
from tests.helpers.packed import numbered_set

#: Judge the staging of a set, as `doctor` does.
JUDGE = """
import sys
from aiperf_mpi.config import load
from aiperf_mpi.data.catalogue import resolved
from aiperf_mpi.site import staging
sets = ["data.name='images'", "data.channels=3", "data.image_size=16", f"data.path='{sys.argv[1]}'"]
print(*staging.judge(resolved(load("demo", sets=sets, stage=sys.argv[2]))))
"""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Return the configuration of a run on packed pictures, with a folder for copies."""
    (tmp_path / "source").mkdir()
    numbered_set(tmp_path / "source")
    sets = ["data.name='images'", "data.image_size=16", f"data.path='{tmp_path}/source'", "data.channels=3"]
    return resolved(load("demo", sets=sets, stage=str(tmp_path / "stage")))


def test_nothing_is_said_where_nothing_is_copied(config: Config) -> None:
    assert staging.judge(load("demo")) == ()
    without = load("demo", sets=["data.name='images'", "data.channels=3", f"data.path='{config.data.path}'"])
    assert staging.judge(without) == ()


def test_a_folder_is_tried_and_left_as_it_was(config: Config) -> None:
    before = sorted(Path(config.data.stage).parent.rglob("*"))
    (finding,) = staging.judge(config)
    assert (finding.level, finding.subject) == ("ok", "staging")
    # 5 + 2 shards of pictures of 32 x 32 x 3 bytes.
    need = sum(path.stat().st_size for path in Path(config.data.path).glob("*.h5"))
    assert (
        "written, renamed, locked; " in finding.text and f"for {folders.size(need)} to copy" in finding.text
    )
    assert sorted(Path(config.data.stage).parent.rglob("*")) == before


def test_a_copy_that_is_there(config: Config) -> None:
    work = Work(plan(config), 2)
    while not work.ended():
        pass
    work.conclude()
    (finding,) = staging.judge(config)
    assert finding.level == "ok" and "the copy is there" in finding.text
    (Path(config.data.stage) / plan(config).manifest.sha256[:16] / "val-00000.h5").unlink()
    (finding,) = staging.judge(config)
    size = (Path(config.data.path) / "val-00000.h5").stat().st_size
    assert finding.level == "ok" and f"for {folders.size(size)} to copy" in finding.text


@pytest.mark.parametrize(
    ("mount", "part"),
    [
        ("-o size=200k", "the copy needs"),
        ("-o ro", "the file system is read-only; name a folder of each node"),
    ],
)
def test_a_folder_without_room(mount: str, part: str, config: Config) -> None:
    Path(config.data.stage).mkdir()
    done = broken(
        [f"mount -t tmpfs {mount} tmpfs {config.data.stage}"],
        [python("mpich"), "-c", JUDGE, config.data.path, config.data.stage],
        variables("mpich"),
    )
    assert part in done.stdout and not done.stderr, done.stdout + done.stderr
    assert not os.listdir(config.data.stage)


def test_only_packed_pictures_are_copied() -> None:
    with pytest.raises(ConfigError, match="data.name = 'digits' is not read from packed pictures"):
        resolved(load("demo", stage="/somewhere"))

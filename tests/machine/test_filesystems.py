# SPDX-License-Identifier: Apache-2.0
"""File systems of paths, from a table of mounts in the kernel's form."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from aiperf_mpi.machine.filesystems import file_systems, places

Mounted = Callable[[bytes], None]


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """A function that replaces the kernel's table of mounts."""

    def replace(table: bytes) -> None:
        proc = tmp_path / "proc"
        (proc / "self").mkdir(parents=True)
        (proc / "self" / "mounts").write_bytes(table)
        monkeypatch.setattr(psutil, "PROCFS_PATH", str(proc))

    return replace


def described(path: Path | str) -> dict[str, Any]:
    """Describe the file system of one path."""
    system = file_systems({"it": str(path)})["it"]
    assert isinstance(system, dict)
    return system


def test_the_most_specific_mount_counts(tmp_path: Path, mounted: Mounted) -> None:
    mounted(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/scratch {tmp_path} lustre rw 0 0\n"
        f"tmpfs {str(tmp_path)[:-1]} tmpfs rw 0 0\n".encode()
    )
    assert described(f"{tmp_path}/not/there/yet")["type"] == "lustre"
    assert described(tmp_path)["device"] == "server:/scratch" and described("/")["type"] == "ext4"
    assert file_systems({"data": ""}) == {"data": "none: no path is set"}


def test_the_last_of_equal_mounts_covers_the_others(tmp_path: Path, mounted: Mounted) -> None:
    mounted(f"/dev/sda1 / ext4 rw 0 0\na {tmp_path} nfs rw 0 0\nb {tmp_path} nfs4 rw 0 0\n".encode())
    assert (described(tmp_path)["device"], described(tmp_path)["type"]) == ("b", "nfs4")


def test_a_bind_mount_has_its_own_mount_point(tmp_path: Path, mounted: Mounted) -> None:
    (tmp_path / "data").mkdir()
    mounted(f"/dev/sda1 / ext4 rw 0 0\n/dev/sda1 {tmp_path}/data ext4 rw,bind 0 0\n".encode())
    assert described(tmp_path / "data" / "set")["mount"] == f"{tmp_path}/data"
    assert described(tmp_path)["mount"] == "/"


@pytest.mark.parametrize("name", ["with blank", "with\ttab", "with\\backslash", "with\nline"])
def test_escapes_in_mount_points_are_decoded(name: str, tmp_path: Path, mounted: Mounted) -> None:
    (tmp_path / name).mkdir()
    text = f"{tmp_path}/{name}"
    for character in "\\ \t\n":
        text = text.replace(character, f"\\{ord(character):03o}")
    mounted(f"/dev/sda1 / ext4 rw 0 0\nnone {text} nfs4 rw 0 0\n".encode())
    system = described(tmp_path / name)
    assert (system["mount"], system["type"], system["device"]) == (f"{tmp_path}/{name}", "nfs4", "none")


def test_mount_points_that_are_not_utf8_can_be_stored(tmp_path: Path, mounted: Mounted) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    mounted(b"/dev/sda1 / ext4 rw 0 0\nserver:/x " + folder + b" nfs rw 0 0\n")
    (tmp_path / "link").symlink_to(os.fsdecode(folder))
    system = described(tmp_path / "link")
    assert system["type"] == "nfs" and system["mount"] == f"{tmp_path}/caf\ufffd"
    assert json.dumps(system, ensure_ascii=False).encode()


def test_a_system_without_a_table_reports_no_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "none"))
    system = described(tmp_path)
    assert system["type"] == "not reported by the system"
    assert system["bytes"] == shutil.disk_usage(tmp_path).total


def test_a_mount_that_cannot_be_read_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(path: Path) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "statvfs", removed)
    assert file_systems({"data": str(tmp_path)}) == {"data": f"{tmp_path}: Stale file handle"}


def test_this_hosts_file_systems_are_real(tmp_path: Path) -> None:
    output = file_systems(places(str(tmp_path), ""))["output"]
    assert isinstance(output, dict) and output["bytes"] == shutil.disk_usage(tmp_path).total
    assert os.path.ismount(output["mount"]) and output["type"] and 0 < output["free_bytes"] <= output["bytes"]

# SPDX-License-Identifier: Apache-2.0
"""HDF5's own reports of damaged files, in plain words; the library writes them, no text is made up here."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import hdf5


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """Return the bytes of an HDF5 file with one array of 4,000 bytes."""
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["a"] = np.zeros(1000, np.float32)
    return (tmp_path / "whole.h5").read_bytes()


def test_reasons_of_damaged_files(whole: bytes, tmp_path: Path) -> None:
    """A file's version, the ninth byte, is changed to one that no library has."""
    for content, expected in (
        (b"", "it is not an HDF5 file"),
        (b"x" * 5000, "it is not an HDF5 file"),
        (whole[:3000], f"it is truncated: 3000 of {len(whole)} bytes are there"),
        (whole[:8] + b"\x63" + whole[9:], "HDF5 cannot read it (bad superblock version number)"),
    ):
        path = tmp_path / "damaged.h5"
        path.write_bytes(content)
        with pytest.raises(OSError) as caught:
            h5py.File(path, "r")
        assert hdf5.reason(caught.value) == expected


def test_reasons_of_the_system_and_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        h5py.File(tmp_path / "absent.h5", "r")
    assert "No such file or directory" in hdf5.reason(caught.value)
    assert hdf5.reason(RuntimeError()) == "HDF5 cannot read it (RuntimeError)"
    assert "\n" not in hdf5.reason(OSError("a\nAIPERF_MPI status: VALID"))


def test_a_link_next_to_the_file_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user who may write into the folder has put links at the temporary names, known or guessed."""
    (tmp_path / "precious").write_bytes(b"old")
    os.symlink("precious", tmp_path / ".result.h5.tmp")
    hdf5.write(tmp_path / "result.h5", b"new")
    assert (tmp_path / "precious").read_bytes() == b"old" and (tmp_path / "result.h5").read_bytes() == b"new"
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    os.symlink("precious", tmp_path / ".aiperf_mpi-guessed.tmp")
    with pytest.raises(FileExistsError, match="result.h5"):
        hdf5.write(tmp_path / "result.h5", b"newer")
    assert (tmp_path / "precious").read_bytes() == b"old" and (tmp_path / "result.h5").read_bytes() == b"new"
    assert (tmp_path / ".aiperf_mpi-guessed.tmp").is_symlink(), "the other's link was removed"

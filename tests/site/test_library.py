# SPDX-License-Identifier: Apache-2.0
"""The MPI library and the launcher in the search path, by what real launchers print."""

from __future__ import annotations

from pathlib import Path

import pytest

from aiperf_mpi.site.library import judge, launcher_in_path, vendor_of

MPICH = {"vendor": "MPICH", "version": "5.0.2"}


@pytest.mark.parametrize(
    ("text", "vendor"),
    [
        ("HYDRA build details:\n    Version: 4.0.2\n", "MPICH"),
        ("mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n", "Open MPI"),
        ("mpiexec (Open MPI) 5.0.11\n", "Open MPI"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 20230619\n", "Intel MPI"),
        ("mpiexec: a script of this site", ""),
    ],
)
def test_the_vendor_of_a_launcher(text: str, vendor: str) -> None:
    assert vendor_of(text) == vendor


def test_a_library_and_its_launcher() -> None:
    (found,) = judge(MPICH, "mpiexec -n N x", ("/usr/bin/mpiexec", "MPICH"))
    assert found.level == "ok" and "mpiexec -n N x" in found.text


def test_the_launcher_of_another_mpi_in_the_path() -> None:
    (found,) = judge(MPICH, "/venv/bin/mpiexec -n N x", ("/usr/bin/mpiexec", "Open MPI"))
    assert found.level == "warn" and "/usr/bin/mpiexec is that of Open MPI" in found.text
    assert found.remedy == "start the run by: /venv/bin/mpiexec -n N x"


def test_a_library_that_the_environment_preloads(monkeypatch: pytest.MonkeyPatch) -> None:
    # The command to type would be that of the same launcher, which does not help.
    monkeypatch.setenv("LD_PRELOAD", "/opt/mpi/libmpi.so.40")
    told = {"vendor": "Open MPI", "version": "5.0.11"}
    (found,) = judge(told, "/venv/bin/mpiexec -n N x", ("/venv/bin/mpiexec", "MPICH"))
    assert found.level == "fail" and found.remedy == "unset LD_PRELOAD"
    assert "LD_PRELOAD=/opt/mpi/libmpi.so.40 loads Open MPI 5.0.11, but" in found.text


def test_no_library() -> None:
    (found,) = judge({"error": "ImportError: libmpi.so.12:\ncannot open"}, "", ("", ""))
    assert found.level == "fail" and "libmpi.so.12: cannot open" in found.text and "[mpich]" in found.remedy


def test_the_launcher_in_the_path_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mpiexec"
    program.write_text("#!/bin/sh\necho 'mpiexec (OpenRTE) 4.1.4'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert launcher_in_path() == (str(program), "Open MPI")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert launcher_in_path() == ("", "")

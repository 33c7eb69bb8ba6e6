# SPDX-License-Identifier: Apache-2.0
"""Text in a file that imitates the program's output, and scores that a file claims."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import ATTRIBUTES, DOCUMENTS, TABLES
from tests.helpers.results.agreement import command
from tests.helpers.results.changes import changed

# Each test writes and judges a whole file.
pytestmark = pytest.mark.slow

#: A line as the verdict of the best official run of all times would have it.
LIE = "AIPERF_MPI score_ops: 9.900000e+99 op/s"


def printed_of(file: Path) -> tuple[int, str]:
    """Return the exit code of `verify`, and all that verify, report, compare and the HTML page print."""
    printed, code = [], -1
    page = file.with_suffix(".html")
    for words in (["verify"], ["report"], ["compare"], ["report", "--html", str(page)]):
        done = command(*words, file)
        code = done.returncode if words == ["verify"] else code
        printed += [done.stdout, done.stderr]
    return code, "\n".join([*printed, page.read_text(encoding="utf-8")])


def test_text_of_a_file_never_imitates_the_verdict(path: Path, tmp_path: Path) -> None:
    """Every text in the file is a score, on a line of its own and after an escape that wipes the screen."""
    loud = f"\x1b[2J\r\n{LIE}\u2028\u202e<script>alert(1)</script>"

    def change(file: h5py.File) -> None:
        for table in TABLES.values():
            for column in table.columns:
                if column.dtype == "str":
                    file[table.name][column.name][...] = loud
        resultfile.set_attributes(file, {a.name: loud for a in ATTRIBUTES if a.dtype == "str"})
        for name in DOCUMENTS:
            file[name][()] = loud

    assert not changed(path, tmp_path, change).valid
    code, printed = printed_of(tmp_path / "changed.h5")
    assert code == 3 and "INVALID" in printed
    assert (
        "AIPERF_MPI score" not in printed
        and "\x1b" not in printed
        and "\r" not in printed
        and "\u202e" not in printed
    )
    assert (
        "<script" not in (tmp_path / "changed.html").read_text(encoding="utf-8")
        and "Traceback" not in printed
    )
    assert not re.search(r"(?m)^AIPERF_MPI \w*(?:score_ops|trial_rate)", printed)

    # The same in unchecked places, so that the file stays valid: its own rate is printed, and no other.
    def words(file: h5py.File) -> None:
        resultfile.set_attributes(file, {"end_cause": loud, "aiperf_mpi_version": loud})
        file["trials/cause"][...] = loud
        file["ranks/hostname"][...] = [name + loud for name in file["ranks/hostname"].asstr()[...]]
        file["ranks/device_uuid"][...] = [why + loud for why in file["ranks/device_uuid"].asstr()[...]]

    assert changed(path, tmp_path, words).valid
    code, printed = printed_of(tmp_path / "changed.h5")
    assert code == 0 and "AIPERF_MPI score" not in printed and "\x1b" not in printed
    assert len(set(re.findall(r"AIPERF_MPI trial_rate_ops: (.*)", printed))) == 1


def test_no_command_prints_a_score_of_an_invalid_file(path: Path, tmp_path: Path) -> None:
    """A file claims to be a valid official run with a score, in every attribute and in its series."""

    def change(file: h5py.File) -> None:
        values = {
            "class": "official",
            "division": "closed",
            "valid": 1,
            "invalid_reasons": "[]",
            "score_ops": 9.9e99,
            "score_regulated": 9.9e99,
            "trial_rate_ops": 9.9e99,
            "unscored_rate_ops": 9.9e99,
        }
        resultfile.set_attributes(file, values)
        for name in ("rate", "regulated", "cumulative_ops_f64"):
            file["score_series"][name][...] = 9.9e99

    assert not changed(path, tmp_path, change).valid
    code, printed = printed_of(tmp_path / "changed.h5")
    # The rate of the rows is printed under the name of an unscored rate. The claims of the file are only in
    # reasons, and its series is nowhere.
    assert code == 3 and "unscored_rate_ops" in printed
    assert not re.search(r"AIPERF_MPI (score|trial_rate)|<dt>(score|trial_rate)|[Ss]core \(op/s\)", printed)
    claims = [line for line in printed.splitlines() if "9.9e+99" in line or "9.900000e+99" in line]
    assert claims and all("but the rows give" in line or "instead of" in line for line in claims), claims

    # The archive for a ranking is refused without a number.
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "changed.h5").rename(folder / "result.h5")
    archive = str(tmp_path / "a.tar.gz")
    submit = [sys.executable, "-m", "aiperf_mpi.results.output.submit", str(folder), "--output", archive]
    done = subprocess.run(submit, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3 and done.stdout == "" and not (tmp_path / "a.tar.gz").exists()


@pytest.mark.parametrize("run_id", ["../../home", "a/b", "", "a\nb", "x" * 65])
def test_a_run_cannot_choose_its_place_in_the_archive(run_id: str, path: Path, tmp_path: Path) -> None:
    verdict = changed(path, tmp_path, lambda file: resultfile.set_attributes(file, {"run_id": run_id}))
    assert "I03" in verdict.reason_ids


def test_summary_of_an_invalid_run_has_no_score(path: Path, tmp_path: Path) -> None:
    changed(path, tmp_path, lambda file: resultfile.set_attributes(file, {"score_ops": 1e99, "valid": 1}))
    done = command("verify", "--json", tmp_path / "changed.h5")
    data = json.loads(done.stdout)
    assert done.returncode == 3 and data["status"] == "INVALID"
    assert data["score_ops"] is data["score_regulated"] is data["trial_rate_ops"] is None

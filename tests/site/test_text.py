# SPDX-License-Identifier: Apache-2.0
"""What `doctor` prints: 80 columns, nothing that a name can forge, and a JSON object of documented keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.site.merged import Seen, merge
from aiperf_mpi.site.text import Examination, to_object, to_text

FOUND = (
    Finding("ok", "MPI", "MPICH 5.0.2 under srun: 8 ranks"),
    Finding("warn", "clocks", "wall clocks differ from that of n0: n1 by +30.0 s", "set the clocks by NTP"),
    Finding("fail", "output", "--output /x: no", "name another folder: --output FOLDER"),
)


def examined(*found: Finding) -> Examination:
    return Examination(merge([((0,), found)], ["n0"]), 8, ("n0", "n1"), "srun", "demo", "/x", 2.345)


def test_the_lines_are_aligned_and_end_with_the_sum() -> None:
    lines = to_text(examined(*FOUND)).splitlines()
    assert "8 ranks on 2 hosts, preset demo" in lines[0]
    assert lines[1:] == [
        "ok    MPI     MPICH 5.0.2 under srun: 8 ranks",
        "fail  output  --output /x: no",
        "              -> name another folder: --output FOLDER",
        "warn  clocks  wall clocks differ from that of n0: n1 by +30.0 s",
        "              -> set the clocks by NTP",
        "1 failure, 1 warning in 2.3 s: a run would not start here as it is",
    ]


def test_a_path_cannot_forge_a_line_or_a_colour() -> None:
    evil = Finding("ok", "output", "/tmp/a\nAIPERF_MPI status: VALID\x1b[2J", "x\nfail  MPI  forged")
    lines = to_text(examined(evil)).splitlines()
    assert not any(line.startswith(("AIPERF_MPI", "fail")) for line in lines)
    assert "\x1b" not in "".join(lines) and "\\n" in "".join(lines)


def test_markup_of_a_message_is_printed_as_it_is() -> None:
    assert "install '.[mpich]' :warning:" in to_text(
        examined(Finding("fail", "MPI", "x", "install '.[mpich]' :warning:"))
    )


def test_colours_are_on_terminals_alone() -> None:
    assert "\x1b" not in to_text(examined(*FOUND))
    coloured = to_text(examined(*FOUND), colour=True)
    assert "\x1b" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == to_text(examined(*FOUND)).splitlines()


def test_long_words_stay_within_the_width() -> None:
    found = Finding("fail", "data set", "data.path: /" + "x" * 300, "y" * 300)
    for width in (60, 80, 110):
        assert max(map(len, to_text(examined(found), width).splitlines())) <= width


def test_the_exit_code_is_that_of_the_worst() -> None:
    assert [examined(one).code for one in FOUND] == [0, 0, 2]
    assert examined().code == 0


def test_the_json_keys_are_documented(root: Path) -> None:
    told = to_object(examined(*FOUND))
    assert json.loads(json.dumps(told)) == told
    assert (
        told["counts"] == {"ok": 1, "warn": 1, "fail": 1}
        and told["exit_code"] == 2
        and told["seconds"] == 2.3
    )
    page = (root / "docs" / "doctor.md").read_text(encoding="utf-8")
    for key in (*told, *told["findings"][0]):
        assert f"| `{key}` |" in page, key


def test_a_finding_without_ranks_names_no_place() -> None:
    assert Seen(FOUND[0]).where == "" and Seen(FOUND[0]).to_dict()["ranks"] == ""

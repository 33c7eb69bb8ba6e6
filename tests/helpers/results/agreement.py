# SPDX-License-Identifier: Apache-2.0
"""Compare all outputs on a run: what it printed, its exit code, `verify` with its exit code and JSON,
result.json, the attributes of the file, the report as text and as a page."""

from __future__ import annotations

import io
import json
import math
import re
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import h5py
import jsonschema
import pytest

from aiperf_mpi.__main__ import main
from aiperf_mpi.opcount.rates import exact_text
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.judge.judge import Verdict
from aiperf_mpi.results.output import package
from aiperf_mpi.results.report.html import html_report
from aiperf_mpi.results.report.text import text_report
from aiperf_mpi.results.report.verdict import exit_code, rate_pairs, reason_lines, verdict_lines

RATES = ("score_ops", "score_regulated", "trial_rate_ops", "unscored_rate_ops")


@dataclass(frozen=True)
class Output:
    """What a subcommand printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def command(*words: object) -> Output:
    """Run a subcommand of the command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return Output(code, out.getvalue(), err.getvalue())


def pairs_of(text: str) -> dict[str, str]:
    """Return the lines of a verdict in a text by key, each of which must be there once."""
    lines = [line.removeprefix("AIPERF_MPI ") for line in text.splitlines() if line.startswith("AIPERF_MPI ")]
    pairs = dict(line.split(": ", 1) for line in lines)
    assert len(pairs) == len(lines), "a key is printed twice"
    return pairs


def assert_all_agree(file: Path, *, out: str | None = None, code: int | None = None) -> Verdict:
    """Fail if any two outputs on a result file differ; return the verdict.

    Arguments:
        out, code: what the run itself printed, and its exit code, if there was a run.
    """
    verdict = judge.judge(file)
    text, as_json = command("verify", file), command("verify", "--json", file)
    assert text.returncode == as_json.returncode == (0 if verdict.valid else 3)
    assert text.stderr == as_json.stderr == ""
    pairs = pairs_of(text.stdout)
    assert [f"AIPERF_MPI {key}: {value}" for key, value in pairs.items()] == verdict_lines(verdict)
    data = json.loads(as_json.stdout)
    jsonschema.validate(data, package.summary_schema())

    # The run itself: the same lines; its exit code is 4 where it was drained, whatever the verdict.
    if out is not None:
        assert pairs_of(out) == pairs
    if code is not None:
        assert code == exit_code(verdict) == (4 if pairs["end"] == "drained" else text.returncode)
    if (file.parent / package.SUMMARY).exists():
        assert as_json.stdout == (file.parent / package.SUMMARY).read_text(encoding="utf-8")

    # The report, and the page: the verdict first, then its reasons.
    words = text_report(file)
    assert pairs_of(words) == pairs and words.startswith(f"AIPERF_MPI status: {pairs['status']}\n")
    page = html_report(file)
    assert re.findall(r'<h1 class="(\w+)">(\w+)</h1>', page) == [(pairs["status"], pairs["status"])]
    shown = {key: unescape(value) for key, value in re.findall(r"<dt>(\w+)</dt><dd>(.*?)</dd>", page)}
    assert shown | {"status": pairs["status"]} == pairs
    listed = re.search(r'<ul class="reasons">(.*?)</ul>', page)
    found = re.findall("<li>(.*?)</li>", listed[1]) if listed else []
    assert [unescape(item) for item in found] == reason_lines(verdict)
    assert not verdict.valid or f"<strong>{next(rate_pairs(verdict))[1]}</strong>" in page
    _attributes_agree(file, verdict, pairs, data)
    return verdict


def _attributes_agree(file: Path, verdict: Verdict, pairs: dict[str, str], data: dict) -> None:
    """Fail if the attributes of a file differ from the verdict, its lines, or its JSON."""
    with h5py.File(file) as result:
        stored = dict(result.attrs)
    assert pairs["status"] == data["status"] == ("VALID" if stored["valid"] else "INVALID")
    assert pairs["end"] == data["end"] == stored["end"]
    assert data["total_ops"] == stored["total_ops"]
    if not verdict.valid:
        assert pairs["reasons"] == ",".join(dict.fromkeys(r["id"] for r in data["reasons"]))
    assert ("trial_rate_ops" in pairs) == (verdict.valid and verdict.cls == "trial")

    # A file that was never completed holds no verdict, and no rate that counts.
    if not stored["complete"]:
        assert not verdict.valid and all(math.isnan(stored[name]) for name in RATES[:3])
        return
    assert pairs["class"] == data["class"] == stored["class"]
    assert pairs["division"] == data["division"] == stored["division"]
    assert [[r["id"], r["text"]] for r in data["reasons"]] == json.loads(stored["invalid_reasons"])
    for name in RATES:
        if data[name] is None:
            assert math.isnan(stored[name]) and pairs.get(name, "nan op/s") == "nan op/s"
        else:
            assert data[name] == stored[name] and pairs[name] == exact_text(stored[name])
    for name in ("best_error", "error_final", "core_seconds"):
        value = math.nan if data[name] is None else data[name]
        assert float(pairs[name]) == pytest.approx(value, abs=5e-4, nan_ok=True)
        assert value == stored[name] or (math.isnan(value) and math.isnan(stored[name]))

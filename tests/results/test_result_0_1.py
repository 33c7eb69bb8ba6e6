# SPDX-License-Identifier: Apache-2.0
"""A result of version 0.1 (schema 1.0), a demo run, reads today as it did then, and so does its journal.

`result-0.1.expected.json` holds the output of version 0.1 for it, by its own command line: `verify --json`,
the verdict's lines, `compare --json` of the file with itself, and the same for what `verify --repair` makes
of the whole journal and of its first 90 lines (a run that was killed). Words may differ; identifiers,
severities, outcomes, numbers, keys and exit codes may not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import h5py
import pytest

from aiperf_mpi.__main__ import main
from aiperf_mpi.results.file import resultfile
from aiperf_mpi.results.file.schema import SCHEMA_VERSION
from tests.helpers.results.changes import changed

DATA = Path(__file__).resolve().parent.parent / "data"
RESULT, JOURNAL = DATA / "result-0.1.h5", DATA / "result-0.1.journal.jsonl"
EXPECTED = json.loads((DATA / "result-0.1.expected.json").read_text())

#: What the repaired results are made of: lines of the journal that are left.
LINES = {"repaired": 101, "killed": 90}

#: Keys with values that are words for people.
WORDS = ("about", "limit", "text", "notes", "file", "files", "unit", "origin")

_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def without_words(value: Any, key: str = "") -> Any:
    """A JSON value whose texts for people are left out; of what a check measured the numbers stay, of what it
    found wrong how many there are."""
    if key in WORDS:
        return None
    if key == "measured":
        return _NUMBER.findall(value)
    if key == "wrong":
        return len(value)
    if isinstance(value, dict):
        return {name: without_words(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [without_words(entry) for entry in value]
    return value


def verdict_of(file: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the command line says of a file, in the form of EXPECTED."""
    code = main(["verify", str(file), "--json"])
    verdict = json.loads(capsys.readouterr().out)
    code_of_text = main(["verify", str(file)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("AIPERF_MPI ")]
    # The reasons in words, and the rate with a prefix, are later lines.
    lines = [line for line in lines if not line.startswith(("AIPERF_MPI why: ", "AIPERF_MPI rate: "))]
    # Checks that came later are not compared; they must not find anything wrong.
    known = [finding["id"] for finding in EXPECTED["result"]["json"]["findings"]]
    assert all(finding["passed"] for finding in verdict["findings"] if finding["id"] not in known)
    verdict["findings"] = [finding for finding in verdict["findings"] if finding["id"] in known]
    return {"exit": code, "exit_text": code_of_text, "json": verdict, "lines": lines}


def test_the_result_reads_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert without_words(verdict_of(RESULT, capsys)) == without_words(EXPECTED["result"])


def test_the_comparison_reads_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["compare", str(RESULT), str(RESULT), "--json"])
    compared = {"exit": code, "json": json.loads(capsys.readouterr().out)}
    assert without_words(compared) == without_words(EXPECTED["compare"])


@pytest.mark.parametrize("name", LINES)
def test_the_journal_is_repaired_as_before(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = JOURNAL.read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[: LINES[name]]))
    code = main(["verify", str(tmp_path), "--repair"])
    capsys.readouterr()
    repaired = verdict_of(tmp_path / "result.repaired.h5", capsys) | {"exit_repair": code}
    expected = json.loads(json.dumps(EXPECTED[name]))
    # The new file has today's schema, so that its content has another hash.
    with h5py.File(tmp_path / "result.repaired.h5") as file:
        assert file.attrs["schema_version"] == SCHEMA_VERSION != "1.0"
        seal_of(expected)["measured"] = resultfile.content_hash(file)
    assert without_words(repaired) == without_words(expected)


def seal_of(verdict: dict[str, Any]) -> dict[str, Any]:
    """The finding on the hash of a file's content."""
    return next(finding for finding in verdict["json"]["findings"] if finding["id"] == "V21")


def test_the_result_has_no_item_of_a_later_schema() -> None:
    with h5py.File(RESULT) as file:
        assert file.attrs["schema_version"] == "1.0" and "data" not in file
        assert not {"bytes_read"} & set(file["ranks"]) and "staged_bytes" not in file.attrs
    result = resultfile.read(RESULT)
    assert result.problems == [] and result.documents["data/manifest_json"] == "{}"
    assert result.tables["ranks"]["bytes_read"].tolist() == [0] * len(result.tables["ranks"]["rank"])


@pytest.mark.parametrize("version", ["1.1", "9.9"])
def test_the_result_under_another_version_lacks_items(version: str, tmp_path: Path) -> None:
    verdict = changed(RESULT, tmp_path, lambda file: file.attrs.create("schema_version", version))
    texts = [reason.text for reason in verdict.reasons if reason.id == "I01"]
    assert not verdict.valid and any("chosen_by" in text for text in texts)


def test_what_is_compared_holds_numbers() -> None:
    # Were everything left out as words, the tests above could not fail.
    verdict = without_words(EXPECTED["result"]["json"])
    assert verdict["total_ops"] == "309223670120"
    assert [found["id"] for found in verdict["findings"]].count("V05") == 1
    assert next(found for found in verdict["findings"] if found["id"] == "V02")["measured"] == [
        "140.000",
        "140.000",
    ]

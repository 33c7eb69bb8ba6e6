# SPDX-License-Identifier: Apache-2.0
"""Every place of the command line that takes a path knows `~` and variables."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.__main__ import main
from aiperf_mpi.config import load
from aiperf_mpi.config.programs import cache_place
from aiperf_mpi.results.output import package, process, submit
from benchmarks.tables import out_folder
from tests.helpers.results.example_run import example_run

#: How a folder is written: by its home, by either form of a variable.
FORMS = ("~", "$PLACE_1", "${PLACE_1}")

#: A variable that has no value.
UNSET = "$NOWHERE_1"

#: What takes a path: the words of the command, where PLACE is the folder.
WORDS: dict[str, list[str]] = {
    "report": ["report", "PLACE/result.h5"],
    "report others": ["report", "RESULT", "PLACE/result.h5"],
    "report html": ["report", "RESULT", "--html", "PLACE/page.html"],
    "compare": ["compare", "RESULT", "PLACE/result.h5"],
    "compare html": ["compare", "RESULT", "--html", "PLACE/page.html"],
    "verify": ["verify", "PLACE/result.h5"],
    "repair": ["verify", "--repair", "PLACE"],
    "reevaluate data": ["verify", "RESULT", "--reevaluate", "--data", "PLACE/data"],
    "flops": ["flops", "--analytical", "--arch", "PLACE/arch.json"],
    "estimate": ["estimate", "--nodes", "1", "--config", "PLACE/c.toml"],
    "run config": ["run", "--check", "--config", "PLACE/c.toml"],
    "run output": ["run", "--check", "--output", "PLACE/new"],
    "run data": ["run", "--check", "--set", "data.path=PLACE/data"],
    "run stage": ["run", "--check", "--stage", "PLACE/new"],
    "run cache": ["run", "--check", "--set", "parallel.cache=PLACE/programs"],
    "doctor output": ["doctor", "--preset", "demo", "--output", "PLACE/new"],
    "doctor config": ["doctor", "--config", "PLACE/c.toml"],
    "pack source": ["pack", "PLACE/pictures", "OTHER/packed"],
    "pack target": ["pack", "RUN", "PLACE/result.h5"],
    "pack info": ["pack", "--info", "PLACE/packed"],
    "pack verify": ["pack", "--verify", "PLACE/packed"],
    "submit": ["submit", "PLACE", "--output", "OTHER/a.tar.gz"],
    "submit output": ["submit", "RUN", "--output", "PLACE/a.tar.gz"],
}

#: Commands that look at the whole host; and those that draw, judge two files, need JAX or check a whole run:
#: for these one form is enough.
LONG = ("doctor output", "doctor config")
SLOW = (
    *("report html", "report others", "compare", "compare html", "reevaluate data"),
    *("run config", "run output", "run stage", "run cache"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a folder with everything that a command reads; it is the home folder and PLACE_1."""
    folder = tmp_path / "place"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "6.h5").write_bytes(b"weights")
    hdf5.write(folder / package.RESULT, process.final_image(example_run().run()))
    package.describe(folder)
    (folder / "arch.json").write_text("{}", encoding="utf-8")
    (folder / "c.toml").write_text("[train]\nlr = 0.0625\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PLACE_1", str(folder))
    monkeypatch.delenv(UNSET[1:], raising=False)
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield folder
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(words: Sequence[str], folder: Path, place: str) -> int:
    """Run a command with `place` for PLACE in its words; return its exit code."""
    places = {"RESULT": f"{folder}/result.h5", "RUN": str(folder), "OTHER": str(folder), "PLACE": place}
    for name, path in places.items():
        words = [word.replace(name, path) for word in words]
    return submit.main(words[1:]) if words[0] == "submit" else main(words)


@pytest.mark.parametrize("command", [name for name in WORDS if name not in LONG])
def test_each_form_is_the_same_place(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says and does the same as with the whole path."""

    def outcome(place: str) -> tuple[int, str, str]:
        for name in ("page.html", "a.tar.gz", "result.repaired.h5"):
            (folder / name).unlink(missing_ok=True)
        code = call(WORDS[command], folder, place)
        output = capsys.readouterr()
        # A result is named as it was given.
        out = output.out.replace(place, str(folder))
        return code, out, output.err.replace(place, str(folder))

    expected = outcome(str(folder))
    for form in FORMS[:1] if command in SLOW else FORMS:
        assert outcome(form) == expected, form


@pytest.mark.parametrize("command", list(WORDS))
def test_a_variable_without_a_value_is_refused_in_one_line(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(WORDS[command], folder, UNSET) == 2
    output = capsys.readouterr()
    assert f"the variable {UNSET} in it is not set; export NOWHERE_1" in output.err and not output.out
    assert output.err.count("\n") == 1 and not list(Path.cwd().glob("[$]*"))


def test_settings_in_a_file_and_variables_of_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[run]\noutput = "$PLACE_1/o"\n[data]\npath = "~/d"\n[parallel]\ncache = "${PLACE_1}/c"\n'
    (folder / "c.toml").write_text(text, encoding="utf-8")
    config = load("demo", ["$PLACE_1/c.toml"])
    paths = config.run.output, config.data.path, config.parallel.cache
    assert paths == (f"{folder}/o", f"{folder}/d", f"{folder}/c")

    for form in FORMS:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{form}/programs")
        assert cache_place("") == ("JAX_COMPILATION_CACHE_DIR", folder / "programs", True)


def test_a_benchmark_tells_a_wrong_folder_before_it_measures(folder: Path) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--out", type=out_folder)
    for form in FORMS:
        assert parser.parse_args(["--out", f"{form}/x"]).out == folder / "x"
    with pytest.raises(argparse.ArgumentError, match="NOWHERE_1 in it is not set"):
        parser.parse_args(["--out", f"{UNSET}/x"])

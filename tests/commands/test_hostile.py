# SPDX-License-Identifier: Apache-2.0
"""Bad arguments and forged files never stall a command or speak for it: each ends in one line, or with its
checks."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.__main__ import main
from aiperf_mpi.results.file.resultfile import NotAResult, read
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import package, process, submit
from tests.helpers.launch import ROOT
from tests.helpers.results import hostile
from tests.helpers.results.example_run import example_run

#: The commands of the issue, and where they take a path: the words before and after it.
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "verify": (["verify"], []),
    "verify json": (["verify", "--json"], []),
    "repair": (["verify", "--repair"], []),
    "report": (["report"], []),
    "second report": (["report", "RESULT"], []),
    "html": (["report"], ["--html", "FOLDER/page.html"]),
    "html out": (["report", "RESULT", "--html"], []),
    "compare": (["compare"], ["RESULT"]),
    "compare html": (["compare"], ["--html", "FOLDER/page.html"]),
    "compare out": (["compare", "RESULT", "--html"], []),
    "estimate": (["estimate", "--nodes", "1", "--config"], []),
    "flops": (["flops", "--arch"], []),
    "submit": (["submit"], ["--output", "FOLDER/a.tar.gz"]),
    "submit out": (["submit", "RUN", "--output"], []),
}

#: Arguments that some commands may take: an empty configuration is one, a page replaces a file.
TAKEN = {"estimate": {"empty"}, "html out": {"dangling link", "sparse", "sparse result", "sparse superblock"}}

#: CPU seconds and bytes of address space that a command gets, in the issue's words: 10 s, ulimit -v 1500000.
SECONDS, MEMORY = 10, 1_500_000 * 1024


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a valid result in the folder of its run."""
    path = tmp_path_factory.mktemp("run") / "result.h5"
    hdf5.write(path, process.final_image(example_run().run()))
    package.describe(path.parent)
    return path


def words_of(command: str, argument: str, result: Path, folder: Path) -> list[str]:
    """Return the words of a command with an argument."""
    places = {"RESULT": str(result), "RUN": str(result.parent), "FOLDER": str(folder)}
    before, after = ([_placed(word, places) for word in part] for part in COMMANDS[command])
    return [*before, argument, *after]


def _placed(word: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        word = word.replace(name, path)
    return word


def assert_honest(code: object, out: str, err: str, name: str) -> None:
    """Fail unless a command refused in one line, or judged the file invalid, in words of its own."""
    shown = f"{name}: code {code}\n{out[-2000:]}\n{err[-2000:]}"
    assert code in (2, 3), shown
    assert "Traceback" not in err and "\x1b" not in out + err, shown
    assert not re.search(r"(?m)^AIPERF_MPI (?!status: INVALID)status", out + err), shown
    assert hostile.LIE not in out + err, shown
    if code == 2:
        assert out == "" and err.count("\n") == 1 and len(err) < 2200, shown


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=pytest.mark.full if name in ("second report", "compare out") else ())
        for name in COMMANDS
    ],
)
def test_a_bad_argument_is_refused_in_one_line(
    command: str, result: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = hostile.arguments(tmp_path, result)
    found["a NUL"] = "a\0b"
    # The standard input of this test is not a pipe.
    del found["pipe"]
    for name, given in found.items():
        if command.endswith("out") and name not in ("fifo", "folder", "socket", "link to a fifo", "device"):
            # These are regular files or free names, which a page replaces and an archive does not.
            continue
        argument = os.fsdecode(given)
        if command in ("verify", "report", "html") and name == "empty":
            argument = str(tmp_path / "a10")
        words = words_of(command, argument, result, tmp_path)
        used = time.process_time()
        try:
            code = submit.main(words[1:]) if words[0] == "submit" else main(words)
        except SystemExit as error:
            code = error.code
        out, err = capfd.readouterr()
        if code == 0 and name in TAKEN.get(command, set()):
            continue
        assert_honest(code, out, err, f"{command} | {name}")
        assert time.process_time() - used < SECONDS, name


def test_a_page_never_replaces_what_it_is_made_of(result: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = result.read_bytes()
    link = result.parent / "link"
    link.symlink_to(result)
    for words in (["report", str(result)], ["compare", str(result), str(result)]):
        for target in (result, link):
            assert main([*words, "--html", str(target)]) == 2
            assert "made of" in capfd.readouterr().err
    link.unlink()
    assert result.read_bytes() == before and judge(result).valid


def limited(words: Sequence[str], seconds: float = 60) -> tuple[int, str, str, float, int]:
    """Run Python with `words` under the limit of memory; return code, output, CPU seconds and peak bytes."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, *words],
        stdin=reading,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    ) as job:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            out, err = job.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            job.kill()
            raise
        finally:
            os.close(reading)
            os.close(writing)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    texts = (text.decode(errors="replace") for text in (out, err))
    return job.returncode, *texts, cpu, after.ru_maxrss * 1024


def program(words: list[str]) -> list[str]:
    """Return the words after `python` of a command."""
    if words[0] == "submit":
        return ["-m", "aiperf_mpi.results.output.submit", *words[1:]]
    return ["-m", "aiperf_mpi", *words]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("command", "names"),
    [
        pytest.param("verify", ("lying name", "pipe"), id="verify"),
        pytest.param("estimate", ("device", "pipe"), id="estimate"),
        *(pytest.param(command, (), id=f"{command} all", marks=pytest.mark.full) for command in COMMANDS),
    ],
)
def test_a_bad_argument_under_a_limit_of_memory(
    command: str, names: Sequence[str], result: Path, tmp_path: Path
) -> None:
    for name, given in hostile.arguments(tmp_path, result).items():
        if names and name not in names:
            continue
        words = words_of(command, os.fsdecode(given), result, tmp_path)
        code, out, err, cpu, _ = limited(program(words))
        taken = command.endswith("out") or name in TAKEN.get(command, set())
        if not (taken and code == 0):
            assert_honest(code, out, err, f"{command} | {name}")
        assert cpu < SECONDS, f"{command} | {name}: {cpu} CPU s"


# -- forged results --------------------------------------------------------------------------------


#: Forged files of which the quick sample judges each.
SAMPLE = (
    "ten million ticks",
    "columns never written",
    "external links",
    "20,000 attributes",
    "long string",
    "a table of 10,000 dots",
    "many UUIDs",
    "brackets as network",
    "a network of empty stages",
)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.full) for name in hostile.BOMBS]
)
def test_a_forged_result_takes_work_in_proportion(
    name: str, result: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = hostile.bomb(name, result, tmp_path / "bomb.h5")
    used = time.process_time()
    code = main(["verify", str(path)])
    out, err = capfd.readouterr()
    assert_honest(code, out, err, name)
    assert time.process_time() - used < SECONDS


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", hostile.BOMBS)
def test_a_forged_result_in_every_command(name: str, result: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path = hostile.bomb(name, result, folder / "result.h5")
    places = {"verify": path, "report": path, "html": path, "compare": path, "submit": folder}
    for command, place in places.items():
        words = words_of(command, str(place), result, tmp_path)
        code, out, err, cpu, memory = limited(program(words))
        # A report of a file that can be read ends with 0, whatever the verdict.
        if not (code == 0 and command in ("report", "html")):
            assert_honest(code, out, err, f"{command} | {name}")
        assert "Traceback" not in err and cpu < SECONDS and memory < 5e8, (command, cpu, memory)


# -- damage ----------------------------------------------------------------------------------------


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return the bytes of a file with random damage: bits, blocks, blocks of other places, or a cut."""
    changed = bytearray(data)
    match int(rng.integers(4)):
        case 0:
            for _ in range(int(rng.integers(1, 20))):
                changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        case 1:
            place, length = int(rng.integers(len(data) - 64)), int(rng.integers(1, 64))
            changed[place : place + length] = rng.bytes(length)
        case 2:
            changed = changed[: int(rng.integers(100, len(data)))] + bytes(int(rng.integers(5000)))
        case 3:
            place, other = (int(rng.integers(len(data) - 512)) for _ in range(2))
            changed[place : place + 512] = data[other : other + 512]
    return bytes(changed)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("files", [12, pytest.param(1500, marks=pytest.mark.full)])
def test_damaged_files_are_judged_one_after_the_other(files: int, result: Path, tmp_path: Path) -> None:
    # Read in this process, some of them loop for ever in HDF5, and after some hundreds it aborts for any.
    data, content = result.read_bytes(), read(result).content_sha256
    rng, path, outcomes = np.random.default_rng(11), tmp_path / "damaged.h5", []
    for number in range(files):
        path.write_bytes(damaged(data, rng))
        used = time.process_time()
        try:
            verdict = judge(path)
            outcomes.append("valid" if verdict.valid else "invalid")
            # Bytes that no item uses may differ.
            assert not verdict.valid or read(path).content_sha256 == content, number
        except NotAResult as error:
            outcomes.append("refused")
            assert str(error).isprintable(), number
        assert time.process_time() - used < SECONDS, number
    assert {"invalid", "refused"} <= set(outcomes)


def _as_matrix(file: h5py.File, path: str) -> None:
    values = file[path][...]
    del file[path]
    file[path] = np.stack([values, values])


def _as_other_type(file: h5py.File, path: str) -> None:
    values = file[path][...]
    del file[path]
    file[path] = values.astype("S8") if values.dtype.kind == "O" else values.astype(">f2")


def _as_group(file: h5py.File, path: str) -> None:
    del file[path]
    file.create_group(path)


def _swapped(file: h5py.File, path: str) -> None:
    table = path.split("/")[0]
    other = next(name for name in file[table] if f"{table}/{name}" != path)
    file.move(path, "kept")
    file.move(f"{table}/{other}", path)
    file.move("kept", f"{table}/{other}")


@pytest.mark.parametrize("change", [_as_matrix, _as_other_type, _as_group, _swapped])
def test_items_of_another_form_are_reasons(
    change: Callable[[h5py.File, str], None], result: Path, tmp_path: Path
) -> None:
    for path in ("epochs/t_end", "trials/arch_json", "score_series/t", "samples/node"):
        copy = tmp_path / "copy.h5"
        copy.write_bytes(result.read_bytes())
        with h5py.File(copy, "r+") as file:
            change(file, path)
        assert "I01" in judge(copy).reason_ids, path

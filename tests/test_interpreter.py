# SPDX-License-Identifier: Apache-2.0
"""A Python that lacks modules, is too old, or finds files of the user in their place: one line, exit 2."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aiperf_mpi import interpreter
from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import reading

#: Distributions whose module has another name.
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn", "scikit-optimize": "skopt"}


def started(root: Path, *words: str, cwd: Path | None = None, before: str = "") -> tuple[int, str]:
    """Return exit code and standard error of the program, after the statements `before`."""
    program = f"import sys; {before}\nfrom aiperf_mpi.__main__ import main; sys.exit(main({list(words)}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd or root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr + done.stdout


def test_the_packages_are_those_of_the_installation(root: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    lines = parser["options"]["install_requires"].split()
    names = [re.split("[<>=]", line)[0] for line in lines]
    assert {MODULES.get(name, name) for name in names} == set(interpreter.REQUIRED)
    assert interpreter.missing() == ()


@pytest.mark.parametrize(
    "words", [["doctor", "--preset", "demo"], ["run", "--preset", "demo"], ["report", "x"]]
)
def test_a_python_without_the_packages(root: Path, words: list[str]) -> None:
    before = "sys.modules.update(dict.fromkeys(['mpi4py', 'numpy', 'jax', 'psutil', 'h5py'], None))"
    code, text = started(root, *words, before=before)
    assert code == 2 and len(text.splitlines()) == 1, text
    assert (
        f"{sys.executable} (Python" in text
        and "lacks the modules mpi4py, numpy, jax, h5py and 1 more" in text
    )
    assert "source" in text or "pip install" in text


def test_doctor_alone_needs_no_mpi4py(root: Path, tmp_path: Path) -> None:
    words = ["doctor", "--preset", "demo", "--output", str(tmp_path / "x")]
    code, text = started(root, *words, before="sys.modules['mpi4py'] = None")
    assert code == 2 and "Traceback" not in text
    assert re.search(r"fail +Python .*lacks\s+the\s+module\s+mpi4py", text, re.DOTALL), text


def test_an_old_python(root: Path) -> None:
    program = "import sys; sys.version_info = (3, 6, 8); import aiperf_mpi"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and "is Python 3.6, but this program needs 3.11 to 3.13" in done.stderr


@pytest.mark.parametrize("name", ["numpy", "signal"])
def test_a_file_that_hides_a_module(root: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("x = 1\n")
    code, text = started(root, "run", "--preset", "demo", cwd=tmp_path)
    assert code == 2, text
    assert f"remove or rename {tmp_path}/{name}.py, or start in another folder" in text


def test_a_library_that_meets_a_hidden_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sched.py").write_text("x = 1\n")
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(ConfigError) as raised, reading("data.name", "digits", "check it"):
        exec("from sched import scheduler")
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    assert str(raised.value).endswith(f"; remove or rename {tmp_path}/sched.py, or start in another folder")


def test_doctor_finds_a_file_that_hides_a_module(root: Path, tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("x = 1\n")
    words = ["doctor", "--preset", "demo", "--json", "--output", str(tmp_path / "x")]
    code, text = started(root, *words, cwd=tmp_path)
    assert code == 2 and "queue.py hides Python's own module queue, which this program needs" in text


def test_only_files_that_hide_something_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("calendar.py", "run.py", "os.py", "numpy.py", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "statistics").mkdir()
    (tmp_path / "numpy-2.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "calendar", raising=False)
    (found,) = interpreter.hidden()
    assert found.name == "calendar" and "out of PYTHONPATH" in found.remedy
    (tmp_path / "numpy-2.0.dist-info").rmdir()
    assert {one.name for one in interpreter.hidden()} == {"calendar", "numpy"}


def test_an_error_without_a_hidden_module_is_not_explained() -> None:
    assert interpreter.explain(AttributeError("x")) is None
    assert interpreter.explain(ModuleNotFoundError("No module named 'nowhere'", name="nowhere")) is None

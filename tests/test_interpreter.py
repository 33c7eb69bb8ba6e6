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
from tests.helpers import launch


def started(
    root: Path,
    *words: str,
    cwd: Path | None = None,
    before: str = "",
    path: Path | None = None,
    **environ: str,
) -> tuple[int, str]:
    """Return exit code and standard error of the program, after the statements `before`.

    `path` is a further folder in PYTHONPATH.
    """
    program = f"import sys; {before}\nfrom aiperf_mpi.__main__ import main; sys.exit(main({list(words)}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd or root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, (root, path)))), **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr + done.stdout


def test_the_packages_are_those_of_the_installation(root: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    lines = parser["options"]["install_requires"].split()
    named = {
        interpreter.DISTRIBUTIONS.get(name, name): needed for name, needed in interpreter.REQUIRED.items()
    }
    assert {re.split("[<>=]", line)[0]: re.sub("^[^<>=]*", "", line) for line in lines} == named
    assert interpreter.missing() == () and interpreter.unfit() == ()


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


# -- a site's folder in PYTHONPATH -----------------------------------------------------------------


def packed(folder: Path, name: str, version: str, text: str) -> Path:
    """Return a folder with a package, and the record that pip makes of it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def test_an_older_package_in_pythonpath(root: Path, tmp_path: Path) -> None:
    site = packed(tmp_path / "site", "flax", "0.8.5", "")
    wanted = f"{site} has flax 0.8.5, but this program needs flax>=0.12"
    words = ["doctor", "--preset", "demo", "--json", "--output", str(tmp_path / "x")]
    code, text = started(root, *words, path=site)
    assert code == 2 and wanted in text and f"take {site} out of PYTHONPATH" in text


def test_a_run_with_an_older_package_is_refused(root: Path, tmp_path: Path) -> None:
    # This one is imported without an error, and fails late, in each candidate.
    site = packed(tmp_path / "site", "optax", "0.2.5.post1", "def __getattr__(name): return len\n")
    path = {"PYTHONPATH": f"{root}{os.pathsep}{site}"}
    words = ["-m", "aiperf_mpi", "--preset", "demo", "--output", tmp_path / "x"]
    done = launch.mpirun(2, words, env=path)
    assert done.returncode == 2, done.stderr
    assert (
        f"{site} has optax 0.2.5.post1, but this program needs optax>=0.2.6; take {site} out" in done.stderr
    )
    assert not (tmp_path / "x").exists()


def test_a_package_of_another_python_in_pythonpath(root: Path, tmp_path: Path) -> None:
    # NumPy's own text speaks of its source tree. The version fits; its compiled files do not.
    site = packed(tmp_path / "site", "numpy", "2.4.0", "raise ImportError('not from its\\nsource tree')\n")
    for words in (["doctor", "--preset", "demo"], ["run", "--preset", "demo"], ["report", "x"]):
        code, text = started(root, *words, path=site)
        assert code == 2 and len(text.splitlines()) == 1, text
        assert (
            f"cannot import {site}/numpy, which may be of another Python; take {site} out of PYTHON" in text
        )


def test_an_error_of_a_library_that_meets_an_older_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = packed(tmp_path, "numpy", "1.26.4", "")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    assert interpreter.explain(AttributeError("no attribute 'StringDType'")) == (
        f"{site} has numpy 1.26.4, but this program needs numpy>=2.0; take {site} out of PYTHONPATH"
    )


def test_the_remedy_names_what_puts_the_package_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("site.USER_SITE", str(tmp_path))
    assert "PYTHONNOUSERSITE=1" in interpreter.Unfit("flax", "0.8", ">=0.12", str(tmp_path)).remedy
    elsewhere = interpreter.Unfit("jax", "0.9", ">=0.10,<0.13", "/opt/python")
    assert elsewhere.remedy == f"type: {sys.executable} -m pip install 'jax>=0.10,<0.13'"


@pytest.mark.parametrize(
    ("version", "fits"),
    [("0.10", True), ("0.10.0rc1", True), ("0.12.9", True), ("0.9.9", False), ("0.13", False), ("1", False)],
)
def test_versions_within_bounds(version: str, fits: bool) -> None:
    assert interpreter._fits(version, ">=0.10,<0.13") is fits
    assert interpreter._fits("4", ">=4.0") and interpreter._fits("4.0.0", ">=4.0")


def test_the_home_of_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "find_spec", lambda name: None if name == "fcntl" else 1)
    error = ModuleNotFoundError("No module named 'fcntl'", name="fcntl")
    monkeypatch.setenv("PYTHONHOME", "/usr")
    text = interpreter.explain(error) or ""
    assert "does not find Python's own module fcntl: PYTHONHOME=/usr" in text and "unset PYTHONHOME" in text
    monkeypatch.delenv("PYTHONHOME")
    assert "make the environment with another Python" in (interpreter.explain(error) or "")

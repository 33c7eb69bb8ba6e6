# SPDX-License-Identifier: Apache-2.0
"""Accelerators: device files, driver and plugin as a machine shows them, and what JAX says of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.environment.jax_variables import told_by_variable
from aiperf_mpi.site.accelerators import driver_version, judge_devices, judge_jax
from aiperf_mpi.site.child import Child

NVIDIA_VERSION = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)
#: The open kernel module of NVIDIA words it differently.
OPEN_VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"


def nvidia(root: Path, devices: int = 2, version: str = NVIDIA_VERSION) -> Path:
    (root / "dev").mkdir()
    for number in range(devices):
        (root / "dev" / f"nvidia{number}").touch()
    (root / "dev" / "nvidiactl").touch()
    if version:
        folder = root / "proc" / "driver" / "nvidia"
        folder.mkdir(parents=True)
        (folder / "version").write_text(version)
    return root


def test_a_host_without_accelerators(tmp_path: Path) -> None:
    (found,) = judge_devices((), {}, {}, tmp_path)
    assert (found.level, found.text) == ("ok", "none: trainers compute on CPUs")


def test_devices_in_the_environment_alone(tmp_path: Path) -> None:
    (found,) = judge_devices(("0", "1"), {}, {}, tmp_path)
    assert found.level == "warn" and "names 2 devices, but the kernel shows none" in found.text


@pytest.mark.parametrize(("version", "number"), [(NVIDIA_VERSION, "535.104.05"), (OPEN_VERSION, "580.65.06")])
def test_the_drivers_version(tmp_path: Path, version: str, number: str) -> None:
    assert driver_version("NVIDIA", nvidia(tmp_path, version=version)) == number


@pytest.mark.parametrize(
    ("version", "packages", "level", "words"),
    [
        (NVIDIA_VERSION, {}, "fail", "extra cuda12 "),
        (OPEN_VERSION, {}, "fail", "extra cuda13 "),
        (NVIDIA_VERSION, {"jax-cuda12-plugin": "0.10.2"}, "ok", "driver 535.104.05"),
        (NVIDIA_VERSION, {"jax-cuda13-plugin": "0.10.2"}, "fail", "older than 580"),
        (OPEN_VERSION, {"jax-cuda13-plugin": "0.10.2"}, "ok", "driver 580.65.06"),
        (NVIDIA_VERSION, {"jax-rocm7-plugin": "0.10.2"}, "fail", "no plugin"),
        ("", {"jax-cuda12-plugin": "0.10.2"}, "warn", "--gpus"),
    ],
)
def test_driver_and_plugin(
    tmp_path: Path, version: str, packages: dict[str, str], level: str, words: str
) -> None:
    (found,) = judge_devices(("0", "1"), packages, {}, nvidia(tmp_path, version=version))
    assert found.level == level and words in str(found) and (found.remedy or level == "ok")


def test_devices_that_the_launcher_has_hidden(tmp_path: Path) -> None:
    (found,) = judge_devices((), {"jax-cuda12-plugin": "1"}, {}, nvidia(tmp_path))
    assert found.level == "warn" and "none is given to this process" in found.text


@pytest.mark.parametrize(
    ("closed", "level", "words"),
    [
        (("nvidia1",), "warn", "/dev/nvidia1: this user"),
        (("nvidia0", "nvidia1"), "warn", "/dev/nvidia0 and 1 other device file: this user"),
        (("nvidia0", "nvidia1", "nvidia2"), "fail", "/dev/nvidia0 and 2 other device files: this user"),
    ],
)
def test_device_files_that_are_closed(
    closed: tuple[str, ...], level: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For root every file is open.
    monkeypatch.setattr("os.access", lambda path, how: Path(path).name not in closed)
    names = ("0", "1", "2")
    (found,) = judge_devices(names, {"jax-cuda12-plugin": "0.6"}, {}, nvidia(tmp_path, 3))
    assert (found.level, bool(found.remedy)) == (level, True) and words in found.text


@pytest.mark.parametrize(("closed", "level"), [("kfd", "fail"), ("renderD128", "warn")])
def test_device_files_of_amd_that_are_closed(
    closed: str, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dev" / "dri").mkdir(parents=True)
    for name in ("kfd", "dri/renderD128", "dri/renderD129"):
        (tmp_path / "dev" / name).touch()
    monkeypatch.setattr("os.access", lambda path, how: Path(path).name != closed)
    found = judge_devices(("0", "1"), {"jax-rocm7-plugin": "0.6"}, {}, tmp_path)
    assert [one.level for one in found] == [level] and closed in found[0].text


def test_devices_that_are_not_wanted(tmp_path: Path) -> None:
    (found,) = judge_devices((), {}, {"JAX_PLATFORMS": "cpu"}, nvidia(tmp_path))
    assert found.level == "ok" and "not used" in found.text


def test_amd_without_its_plugin(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kfd").touch()
    (found,) = judge_devices(("0",), {"jax-cuda12-plugin": "1"}, {}, tmp_path)
    assert found.level == "fail" and "'aiperf_mpi[rocm]'" in found.remedy


def test_an_error_of_jax_is_told_as_a_run_tells_it() -> None:
    (found,) = judge_jax({"error": "AssertionError: "}, (), {"JAX_PLATFORMS": "cuda"})
    with pytest.raises(ConfigError) as raised, told_by_variable({"JAX_PLATFORMS": "cuda"}):
        raise AssertionError
    assert found.level == "fail" and str(found) == str(raised.value)
    assert "JAX_PLATFORMS=cuda: JAX cannot open it on this host: its plugin finds no device" in found.text


# -- JAX's own view


def test_what_auto_becomes_on_the_devices_that_jax_finds() -> None:
    for name, capability, precision in (
        ("NVIDIA H200", "9.0", "bfloat16"),
        ("Tesla V100-SXM2-16GB", "7.0", "float16"),
        ("Tesla P100-PCIE-16GB", "6.0", "float32"),
    ):
        (found,) = judge_jax({"platform": "gpu", "kinds": [name], "capability": capability}, ("0",), {})
        assert found.level == "ok" and found.text.endswith(f"train.precision auto is {precision}")


def test_jax_on_cpus_beside_accelerators() -> None:
    told = {"platform": "cpu", "kinds": ["cpu"]}
    assert str(judge_jax(told, (), {})[0]).endswith("finds 1 x cpu; train.precision auto is float32")
    assert judge_jax(told, ("0",), {"JAX_PLATFORMS": "cpu"})[0].level == "ok"
    (found,) = judge_jax(told, ("0", "1"), {})
    assert found.level == "fail" and "finds only 1 x cpu, but the host has 2 accelerators" in found.text


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ('print(\'{"kinds": ["cpu"]}\')', "finds 1 x cpu"),
        ("print('a line of a plugin')\nprint('{\"kinds\": []}')", "no device"),
        ("raise SystemExit('RuntimeError: Unable to initialize backend')", "Unable to initialize backend"),
        ("import os\nos.write(2, b'Unknown flag in XLA_FLAGS: --x')\nos.abort()", "--x"),
        ("import os\nos.kill(os.getpid(), 9)", "ended with -9"),
        ("import time\ntime.sleep(60)", "no answer within 1 s"),
        ("print('{\"a\": ')", "ended with 0"),
    ],
)
def test_a_child_that_answers_dies_or_hangs(program: str, words: str) -> None:
    (found,) = judge_jax(Child(program).answer(1.0 if "sleep" in program else 30.0), (), {})
    assert words in str(found)


def test_a_child_has_no_variable_of_a_launcher() -> None:
    program = (
        "import os, json\nprint(json.dumps({'kinds': sorted(n for n in os.environ if n in 'PMI_RANK HOME')}))"
    )
    environ = {"PMI_RANK": "3", "HOME": "/", "PATH": ""}
    assert Child(program, environ).answer(30)["kinds"] == ["HOME"]
    assert sys.executable

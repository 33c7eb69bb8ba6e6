# SPDX-License-Identifier: Apache-2.0
"""The variables of JAX, XLA and this program: what is said of them before anything reads them."""

from __future__ import annotations

import os
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from aiperf_mpi.config import ConfigError
from aiperf_mpi.environment import jax_variables, own
from aiperf_mpi.environment.jax_variables import told_by_variable, unknown_flags
from aiperf_mpi.environment.variables import judge_variables


def said(**environ: str) -> list[tuple[str, str]]:
    return [(one.level, str(one)) for one in jax_variables.judge(environ, cores=2)]


def test_flags_that_xla_knows() -> None:
    """The second flag of each pair is wrong by a letter, or was removed."""
    known = ["--xla_force_host_platform_device_count", "--xla_gpu_shard_autotuning", "--xla_dump_to"]
    wrong = ["--xla_force_host_platform_device_counts", "--xla_nonsense", "-xla_dump_to_"]
    assert unknown_flags(known) == [] and unknown_flags([*known, *wrong]) == sorted(wrong)


def test_a_flag_that_would_end_the_process_is_refused() -> None:
    ((level, text),) = said(XLA_FLAGS="--xla_dump_to=/x --xla_nonsense=1")
    assert level == "fail" and "--xla_nonsense" in text and "--xla_dump_to" not in text
    assert said(XLA_FLAGS="--xla_dump_to='/a b' --xla_cpu_multi_thread_eigen=false") == []


def test_flags_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "flags"
    file.write_text("--xla_dump_to=/x\n--xla_nonsense\n")
    ((level, text),) = said(XLA_FLAGS=str(file))
    assert level == "fail" and "--xla_nonsense" in text
    ((level, text),) = said(XLA_FLAGS=str(tmp_path / "absent"))
    assert level == "fail" and "absent" in text and "there is no such file" in text
    file.write_text("--xla_force_host_platform_device_count=8\n")
    ((level, text),) = said(XLA_FLAGS=str(file))
    assert level == "warn" and "XLA_FLAGS makes 8 devices of the 2 cores" in text


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large"])
def test_a_file_of_flags_that_has_no_end(tmp_path: Path, kind: str) -> None:
    """XLA would wait for the other end of a FIFO, and read a device for ever."""
    file = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "fifo":
        os.mkfifo(file)
    if kind == "folder":
        file.mkdir()
    if kind == "large":
        with file.open("wb") as sparse:
            sparse.truncate(10 << 30)
    ((level, text),) = said(XLA_FLAGS=str(file))
    assert level == "fail" and f"XLA_FLAGS={file}: " in text and "unset XLA_FLAGS" in text


@pytest.mark.parametrize("ending", ["so", "dylib"])
def test_flags_are_looked_for_in_the_libraries_of_linux_and_macos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (tmp_path / "jaxlib").mkdir()
    (tmp_path / "jaxlib" / "__init__.py").write_text("")
    (tmp_path / "jaxlib" / f"libjax_common.{ending}").write_bytes(b"\0xla_dump_to\0")
    (tmp_path / "jaxlib" / "_jax.so").write_bytes(b"\0nothing\0")
    monkeypatch.setattr(jax_variables, "find_spec", lambda name: PathFinder.find_spec(name, [str(tmp_path)]))
    assert unknown_flags(["--xla_dump_to", "--xla_nonsense"]) == ["--xla_nonsense"]


@pytest.mark.parametrize("name", ["XLA_FLAGS", "JAX_NUM_CPU_DEVICES"])
def test_more_devices_than_cores(name: str) -> None:
    text = "{}" if name != "XLA_FLAGS" else "--xla_force_host_platform_device_count={}"
    ((level, message),) = said(**{name: text.format(8)})
    assert level == "warn" and f"{name} makes 8 devices of the 2 cores" in message
    assert said(**{name: text.format(2)}) == []
    ((level, message),) = said(**{name: text.format("many")})
    assert level == "fail" and "'many' is not a number" in message


def test_what_slows_down_or_changes_numbers() -> None:
    assert [level for level, _ in said(JAX_DISABLE_JIT="1", JAX_ENABLE_X64="true")] == ["warn"] * 2
    assert said(JAX_DISABLE_JIT="0", JAX_ENABLE_X64="False", JAX_DEBUG_NANS="") == []


@pytest.mark.parametrize(
    ("environ", "error", "words"),
    [
        ({"JAX_PLATFORMS": "cuda"}, AssertionError(), ["JAX_PLATFORMS=cuda", "no device", "unset"]),
        ({"JAX_PLATFORMS": "rocm"}, RuntimeError("Backend 'rocm'\nis not known"), ["'rocm' is not known"]),
        ({"JAX_PLATFORM_NAME": "gpu"}, RuntimeError("Unknown backend"), ["JAX_PLATFORM_NAME=gpu"]),
        (
            {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "maybe"},
            ValueError("invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'"),
            ["JAX_ENABLE_X64=maybe", "correct or unset"],
        ),
        ({}, RuntimeError("no driver"), ["RuntimeError: no driver", "JAX_PLATFORMS=cpu"]),
    ],
)
def test_what_jax_raises_is_told_by_its_variable(
    environ: dict[str, str], error: Exception, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as told, told_by_variable(environ):
        raise error
    assert all(word in str(told.value) for word in words) and "\n" not in str(told.value)


def test_a_misspelt_variable_of_ours() -> None:
    (found,) = own.judge({"AIPERF_MPI_JOBEND": "5", "AIPERF_MPI_PRESET": "demo"})
    assert found.level == "warn" and "did you mean AIPERF_MPI_JOB_END?" in found.remedy
    (found,) = own.judge({"AIPERF_MPI_Q": "1"})
    assert "AIPERF_MPI_JOB_END" in found.remedy


@pytest.mark.parametrize(("text", "levels"), [("4", []), ("4,2", []), ("", [1]), ("0", [1]), ("many", [1])])
def test_numbers_of_threads(text: str, levels: list[int]) -> None:
    assert len(own.judge({"OMP_NUM_THREADS": text})) == len(levels)


def test_devices_and_jax_are_a_trainers() -> None:
    environ = {
        "XLA_FLAGS": "--xla_nonsense",
        "AIPERF_MPI_X": "1",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7,8",
    }
    assert [one.subject for one in judge_variables(False, environ=environ)] == ["variables"]
    assert [one.subject for one in judge_variables(True, 1, environ)] == ["variables", "JAX"]
    assert "accelerators" in [one.subject for one in judge_variables(True, 0, environ)]


def test_the_setting_has_priority_over_jax_platforms() -> None:
    (found,) = jax_variables.judge({"JAX_PLATFORMS": "cuda"}, cores=2, host_devices=1)
    assert found.level == "warn" and "is not used" in found.text
    assert jax_variables.judge({"JAX_PLATFORMS": "cpu"}, cores=2, host_devices=8) == ()

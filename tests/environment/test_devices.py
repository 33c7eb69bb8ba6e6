# SPDX-License-Identifier: Apache-2.0
"""The accelerators that variables leave, by the rules of CUDA and of ROCm, on made-up files of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.environment.devices import judge, left_by_cuda, left_by_rocm, visible_devices


def nvidia(root: Path, count: int, uuids: tuple[str, ...] = ()) -> Path:
    (root / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(count))):
        (root / "dev" / name).touch()
    for number, uuid in enumerate(uuids):
        folder = root / "proc/driver/nvidia/gpus" / f"0000:{number:02}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t X\nGPU UUID: \t {uuid}\nDevice Minor: \t {number}\n")
    return root


def amd(root: Path, count: int) -> Path:
    for node in range(count + 1):
        folder = root / "sys/class/kfd/kfd/topology/nodes" / str(node)
        folder.mkdir(parents=True)
        # The processor is a node too, with the number 0.
        (folder / "gpu_id").write_text(f"{node and 51000 + node}\n")
    return root


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,1", "0,1"),
        ("3,0", "3,0"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("none", ""),
        ("void", ""),
        ("0,-1,1", "0"),
        ("0,4,1", "0"),
        ("9", ""),
        ("0,0", ""),
        ("1,2,1", ""),
        (" 1, 2", "1,2"),
        ("1gpu,2", "1,2"),
        ("0,,1", "0"),
        ("all", ""),
        ("0;1", "0"),
        ("99999999999999999999", ""),
    ],
)
def test_cuda_reads_numbers_as_c_does(text: str, expected: str) -> None:
    """Four devices; the cases are those of CUDA's guide and of PyTorch's own reading of the variable."""
    assert ",".join(left_by_cuda(text, 4)) == expected


UUIDS = ("GPU-aaaa1111-0", "GPU-aaaa2222-1", "GPU-bbbb3333-2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (UUIDS[1], UUIDS[1]),
        ("GPU-b", UUIDS[2]),
        ("GPU-B", UUIDS[2]),
        ("GPU-aaaa", ""),  # two devices begin so
        ("GPU-b,GPU-cccc,GPU-aaaa1", UUIDS[2]),
        ("GPU-b,0", UUIDS[2]),
        ("GPU-b,GPU-bbbb", ""),
        ("MIG-c7384736-a75d", "MIG-c7384736-a75d"),
        ("MIG-GPU-aaaa/1/0,MIG-x", "MIG-GPU-aaaa/1/0,MIG-x"),
    ],
)
def test_cuda_reads_uuids_and_their_beginnings(tmp_path: Path, text: str, expected: str) -> None:
    root = nvidia(tmp_path, 3, UUIDS)
    assert ",".join(visible_devices({"CUDA_VISIBLE_DEVICES": text}, root)) == expected


def test_a_uuid_counts_where_the_driver_tells_none(tmp_path: Path) -> None:
    root = nvidia(tmp_path, 2)
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "GPU-x,GPU-y"}, root) == ("GPU-x", "GPU-y")


def test_the_variable_of_the_other_maker_is_not_read(tmp_path: Path) -> None:
    """Slurm sets the variables of both makers."""
    (tmp_path / "n").mkdir()
    (tmp_path / "a").mkdir()
    environ = {"CUDA_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": ""}
    assert visible_devices(environ, nvidia(tmp_path / "n", 2)) == ("1",)
    environ = {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}
    assert visible_devices(environ, amd(tmp_path / "a", 2)) == ("1",)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "0,1,2,3"),
        ({"ROCR_VISIBLE_DEVICES": "2,3"}, "2,3"),
        ({"HIP_VISIBLE_DEVICES": "2,3"}, "2,3"),
        # HIP counts from what ROCr has left.
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, "3"),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "2"}, ""),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "1"),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0,3"}, "0,3"),
        ({"HIP_VISIBLE_DEVICES": "1,2", "GPU_DEVICE_ORDINAL": "1"}, "2"),
        ({"HIP_VISIBLE_DEVICES": "-1"}, ""),
        ({"ROCR_VISIBLE_DEVICES": ""}, ""),
        ({"ROCR_VISIBLE_DEVICES": "0,9,1"}, "0"),
    ],
)
def test_rocm_applies_its_variables_in_turn(tmp_path: Path, environ: dict[str, str], expected: str) -> None:
    assert ",".join(visible_devices(environ, amd(tmp_path, 4))) == expected


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"])
@pytest.mark.parametrize("text", ["0", "-1", "NoDevFiles", "GPU-x", "0,1"])
def test_a_host_without_accelerators_has_none(tmp_path: Path, variable: str, text: str) -> None:
    assert [name for name in visible_devices({variable: text}, tmp_path) if not name.startswith("GPU")] == []


NUMBERS = st.lists(st.integers(-2, 6), max_size=6)


@given(NUMBERS, st.integers(0, 5))
def test_a_list_counts_up_to_its_first_entry_that_names_none(numbers: list[int], count: int) -> None:
    text = ",".join(map(str, numbers))
    valid = [
        number
        for number, at in zip(numbers, range(len(numbers)), strict=True)
        if all(0 <= before < count for before in numbers[: at + 1])
    ]
    expected = () if len(set(valid)) < len(valid) else tuple(map(str, valid))
    assert left_by_cuda(text, count) == expected


@given(st.text(max_size=30), st.integers(0, 4))
def test_any_text_names_only_devices_that_are_there(text: str, count: int) -> None:
    names = tuple(map(str, range(count)))
    assert all(one in names or one.startswith(("GPU-", "MIG-")) for one in left_by_cuda(text, count))
    assert all(one in names or one.startswith("GPU-") for one in left_by_rocm(text, names))


def test_devices_that_are_not_there_are_said(tmp_path: Path) -> None:
    root = nvidia(tmp_path, 2)
    (found,) = judge({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, root)
    assert found.level == "warn" and "of its 4 devices 2 can be used" in found.text
    assert judge({"CUDA_VISIBLE_DEVICES": "1,0"}, root) == judge({}, root) == ()
    assert judge({"CUDA_VISIBLE_DEVICES": "-1"}, root) == ()


def test_a_job_with_accelerators_on_a_host_that_shows_none(tmp_path: Path) -> None:
    """Without the driver the run would train on CPUs; a variable left in a shell is a warning only."""
    environ = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert [one.level for one in judge(environ, tmp_path)] == ["warn"]
    for none in ({"SLURM_JOB_GPUS": ""}, {"SLURM_GPUS_ON_NODE": "0"}):
        assert [one.level for one in judge({**environ, **none}, tmp_path)] == ["warn"]
    for some in ({"SLURM_JOB_GPUS": "0"}, {"SLURM_GPUS_ON_NODE": "2"}):
        assert [one.level for one in judge({**environ, **some}, tmp_path)] == ["fail"]
    given = {**environ, "SLURM_JOB_GPUS": "0,1"}
    assert [one.level for one in judge(given, tmp_path)] == ["fail"]
    assert [one.level for one in judge({**given, "JAX_PLATFORMS": "cpu"}, tmp_path)] == ["warn"]

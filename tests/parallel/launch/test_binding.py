# SPDX-License-Identifier: Apache-2.0
"""The devices that a role may see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aiperf_mpi.parallel.launch.binding import host_share, local_devices, role_environment
from aiperf_mpi.parallel.launch.launcher import LaunchError
from aiperf_mpi.parallel.launch.placement import arrange


@pytest.mark.parametrize("role", ["coordinator", "generator"])
def test_only_trainers_see_accelerators(role: str) -> None:
    variables = role_environment(role, environ={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert (
        variables["JAX_PLATFORMS"] == "cpu"
        and variables["CUDA_VISIBLE_DEVICES"] == variables["ROCR_VISIBLE_DEVICES"] == ""
    )


def test_one_trainer_takes_all_devices() -> None:
    assert role_environment("trainer", 0, [("0", "1", "2", "3")], environ={}) == {}
    assert role_environment("trainer", 0, [()], environ={}) == {}


def test_trainers_share_the_devices_of_their_node() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}
    offers = [("4", "5", "6", "7")] * 2
    assert role_environment("trainer", 0, offers, environ=environ) == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert role_environment("trainer", 1, offers, environ=environ) == {"CUDA_VISIBLE_DEVICES": "6,7"}
    environ = {"ROCR_VISIBLE_DEVICES": "0,1"}
    assert role_environment("trainer", 1, [("0", "1")] * 2, environ=environ) == {"ROCR_VISIBLE_DEVICES": "1"}


@pytest.mark.parametrize("ranks_per_node", [2, 4])
def test_nodes_cut_from_one_host_share_its_devices(ranks_per_node: int) -> None:
    # Eight ranks on host a make 4 nodes of a trainer and a generator, or 2 of two and two; host b has devices
    # too.
    trainers = ranks_per_node // 2
    places = arrange(["a"] * 9 + ["b"] * 4, [0] * 9 + [9] * 4, ranks_per_node, trainers)
    offers = [("0", "1", "2", "3")] * 13
    devices = {}
    for place in places:
        if place.role == "trainer":
            index, shared = host_share(places, place.rank, offers)
            environment = role_environment(
                "trainer", index, shared, environ={"CUDA_VISIBLE_DEVICES": "0,1,2,3"}
            )
            devices.setdefault(place.host, []).append(environment["CUDA_VISIBLE_DEVICES"])
    assert devices == {"a": ["0", "1", "2", "3"], "b": ["0,1", "2,3"]}

    # Two devices are too few for four trainers.
    index, shared = host_share(places, 1, [("0", "1")] * 13)
    with pytest.raises(LaunchError, match="2 devices .0,1. do not divide among the 4 trainers"):
        role_environment("trainer", index, shared, environ={"CUDA_VISIBLE_DEVICES": "0,1"})


def test_trainers_of_one_replica_tune_apart() -> None:
    def flags(offers: list[tuple[str, ...]], **options: Any) -> str | None:
        return role_environment("trainer", 0, offers, together=True, **options).get("XLA_FLAGS")

    # One trainer on its host, or divided devices; the user's flags are kept, and take precedence.
    off = "--xla_gpu_shard_autotuning=false"
    assert flags([("0",)], environ={}) == off
    environ = {"XLA_FLAGS": "--xla_a=1", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert flags([("0", "1")] * 2, environ=environ) == f"--xla_a=1 {off}"
    assert flags([("0",)], environ={"XLA_FLAGS": "--xla_gpu_shard_autotuning=true"}) is None

    # Not on CPUs, nor in a replica of one trainer.
    assert flags([()], environ={}) is None
    assert off not in (flags([()], host_devices=1, environ={}) or "")
    assert role_environment("trainer", 0, [("0",)], environ={}) == {}


def test_xla_knows_the_flag() -> None:
    # XLA ends a process that has an unknown one.
    env = {
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        **role_environment("trainer", 0, [("0",)], environ={}, together=True),
    }
    code = "import jax; print(jax.local_device_count())"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1"], done.stderr


def test_devices_divided_by_the_launcher_are_kept() -> None:
    assert role_environment("trainer", 1, [("0",), ("1",)], environ={"CUDA_VISIBLE_DEVICES": "1"}) == {}
    by_task = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_GPUS_PER_TASK": "1"}
    assert role_environment("trainer", 1, [("0",), ("0",)], environ=by_task) == {}


def test_devices_that_do_not_divide() -> None:
    with pytest.raises(LaunchError, match="3 devices .0,1,2. do not divide among the 2 trainers"):
        role_environment("trainer", 0, [("0", "1", "2")] * 2, environ={"CUDA_VISIBLE_DEVICES": "0,1,2"})
    with pytest.raises(LaunchError, match="parallel.trainers_per_node"):
        role_environment("trainer", 0, [()] * 2, host_devices=3, environ={})


def test_devices_that_the_cpu_emulates() -> None:
    environ = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=9"}
    variables = role_environment("trainer", 1, [()] * 2, host_devices=4, environ=environ)
    assert variables == {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=2",
    }


def test_jax_sees_the_devices_of_its_role() -> None:
    # The real library, in a process of its own: 4 devices for one trainer, one for a generator.
    code = "import jax; print(jax.default_backend(), jax.local_device_count())"
    for role, devices in (("trainer", 4), ("generator", 1)):
        env = {"PATH": "/usr/bin:/bin", **role_environment(role, 0, [()], host_devices=4, environ={})}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
        )
        assert done.stdout.split() == ["cpu", str(devices)], done.stderr


def test_local_devices(tmp_path: Path) -> None:
    assert local_devices({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == ()
    assert local_devices({}, tmp_path) == ()

    # A node of two NVIDIA devices: their files are next to those of the driver.
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    assert local_devices({}, tmp_path) == ("0", "1")
    assert local_devices({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == ("1",)

    # A node of one AMD device: the driver lists the processor too, with the number 0.
    for node, gpu in (("0", "0"), ("1", "51447")):
        folder = tmp_path / "amd/sys/class/kfd/kfd/topology/nodes" / node
        folder.mkdir(parents=True)
        (folder / "gpu_id").write_text(gpu + "\n")
    assert local_devices({}, tmp_path / "amd") == ("0",)

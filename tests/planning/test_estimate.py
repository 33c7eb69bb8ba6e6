# SPDX-License-Identifier: Apache-2.0
"""The estimate against numbers derived by hand for ResNet-50 on ImageNet, its speed, and what it refuses."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from aiperf_mpi.config import ConfigError, load
from aiperf_mpi.network.architecture import Base, resnet50
from aiperf_mpi.planning.estimate.estimate import estimate, records, trials
from aiperf_mpi.planning.estimate.machine import Machine, read_machine
from aiperf_mpi.planning.memory import activation_bytes
from aiperf_mpi.trials.footprint import replacements

COMMAND = [sys.executable, "-m", "aiperf_mpi", "estimate"]

#: 16 nodes of 8 devices that train at 100 Top/s.
MACHINE = Machine(16, 8, 3, 100e12)


def numbers(machine: Machine = MACHINE, *sets: str) -> dict[str, Any]:
    """The estimated values for ImageNet by name."""
    return {number.name: number.value for number in estimate(load("imagenet", sets=sets), machine)}


def test_an_epoch_has_the_papers_operations() -> None:
    # 1,280,000 images in 400 steps of 8 x 400: 23,053,458,315 x 1.28e6 + 7,806,583,495 x 5e4 = 2.98988e16.
    values = numbers(MACHINE, "data.train_images=1280000", "train.batch_per_device=400")
    assert values["an epoch"] == pytest.approx(2.98988e16 / (8 * 100e12), rel=1e-5)
    epochs = [
        n.value
        for n in estimate(
            load("imagenet", sets=("data.train_images=1280000", "train.batch_per_device=400")), MACHINE
        )
        if n.name == "an epoch"
    ]
    assert epochs[0] == 29_898_755_817_950_000 and f"{epochs[0]:.5e}" == "2.98988e+16"


def test_only_whole_batches_count() -> None:
    # 1,281,167 // (8 x 448) = 357 steps, so 357 x 3584 = 1,279,488 images of ImageNet.
    number = next(
        n for n in estimate(load("imagenet"), MACHINE) if (n.group, n.name) == ("operations", "an epoch")
    )
    assert number.value == 23_053_458_315 * 1_279_488 + 7_806_583_495 * 50_000
    assert number.assumption.startswith("1279488 images")


def test_windows_follow_from_the_records_size() -> None:
    # 131,072 slots of 8 + 32 + 256 bytes after 64; two places of 16 bytes each; a mirror of 32 bytes a slot
    # after 64, and 2 slots of 8 bytes with a record for each of 3 ranks.
    values = numbers()
    assert values["history window"] == 64 + 131_072 * 296 == 38_797_376
    assert values["claims table"] == 2 * 131_072 * 16 == 4_194_304
    assert values["mirror and queues of a node"] == 64 + 131_072 * 32 + 2 * (8 + 3 * 256) == 4_195_920


def test_time_and_score_follow_from_the_rate() -> None:
    # An epoch of 2.98870e16 op at 8 x 100 Top/s: 37.359 s, so 43,200 s hold 1156.4 epochs, or 925.1 in 80 %
    # of it.
    values = numbers()
    low, high = values["epochs of a replica"]
    assert (low, high) == pytest.approx((925.09, 1156.36), abs=0.01)
    # 128 devices: 12.8 Pop/s at most, 10.24 at least; -ln(0.3) = 1.20397.
    assert values["rate of the machine"] == pytest.approx((10.24e15, 12.8e15))
    assert values["regulated at an error of 0.3"] == pytest.approx(
        (1.20397 * 10.24e15, 1.20397 * 12.8e15), rel=1e-5
    )
    # 300 + 43,200 + 120 s on 16 nodes.
    assert values["node-hours"] == pytest.approx(43_620 * 16 / 3600)
    # All epochs: 15 + 30 + 45 = 90, and 925.09 - 90 hold 13 times 60. By patience: 7, 9, ... 19 = 91 in 7
    # rounds, and 1156.36 - 91 hold 50 times 21.
    assert values["trials of a replica"] == (3 + 13, 7 + 50)
    # Two records for each of 57 trials, the one that trains, two that wait and 15 that were replaced (see
    # below), in 16 replicas.
    assert values["records of the history"] == 2 * 16 * (57 + 1 + 2 + 15)


def test_replacements_follow_the_growth_of_the_history() -> None:
    # 16 replicas, two candidates waiting for each. When the n-th trial is taken, 16 (n - 1) have finished;
    # when it was thought of, 16 (n - 3), or too few: 3. The ratios are 16/3, 32/3, 48/16, 64/32, 80/48,
    # 96/64: 5.3, 10.7, 3, 2, 1.67 and 1.5, which 1.5 goes into 4, 5, 2, 1, 1 and 0 times (it must grow by
    # more), and less from there on: 13 in all. At the end two wait: the next one's ratio, and 16/3 or 32/16
    # after one or two trials, 1.5 and less after more. The first two that wait were chosen before 3 had
    # finished, and are replaced once more, when the search begins.
    assert [replacements(trials, 16, 2, 1.5) for trials in range(1, 9)] == [10, 12, 13, 14, 15, 15, 15, 15]
    assert replacements(58, 16, 2, 1.5) == replacements(10_000, 16, 2, 1.5) == 15
    # One replica: with the 3rd finished, both waiting candidates were chosen without the search. With the
    # 4th, both know one too few; from then on the newest one knows one too few, and the other, whose place it
    # will take, two.
    assert [replacements(trials, 1, 2, 1.0) for trials in range(3, 9)] == [2, 4, 6, 8, 10, 12]
    # Neither more often than trials finish, however little it takes to be stale. Of five that wait, those
    # taken as the 4th to the 8th were chosen before the 3rd had finished.
    every = sum(min(n, 50) - max(n - 5, 3) for n in range(4, 55)) + 5
    assert replacements(50, 1, 5, 1.01) <= replacements(50, 1, 5, 1.0) == every

    # Random search replaces nothing; half of the history's room is not for replacements; kept weights are
    # withdrawn.
    assert records(load("imagenet", sets=("search.method='random'",)), 16, 58) == (2 * 16 * 60, 0)
    small = load("imagenet", sets=("parallel.history_capacity=64", "search.stale_after=1"))
    assert records(small, 16, 58) == (2 * (16 * 60 + 32), 32)
    kept = load("imagenet", sets=("model.initial_weight='inherit'",))
    assert records(kept, 16, 58)[0] - records(load("imagenet"), 16, 58)[0] == 16 * 58


@pytest.mark.parametrize(
    ("seconds", "whole", "earliest"),
    [
        # Rounds take 15, 30, 45, 60, ... epochs of a second, or 7, 9, 11, 13, 15, 17, 19, 21, 21, ...
        (14.9, 0, 1),
        (15, 1, 1),
        (16, 1, 2),
        (89.9, 2, 6),
        (90, 3, 6),
        (91, 3, 7),
        (112, 3, 8),
        (150, 4, 9),
        (1000, 18, 50),
    ],
)
def test_trials_are_counted_whole(seconds: float, whole: int, earliest: int) -> None:
    # 1000 = 90 + 15 x 60 + 10; 1000 = 91 + 43 x 21 + 6, so 7 + 43.
    config = load("imagenet")
    assert trials(config, 1.0, seconds, False) == whole
    assert trials(config, 1.0, seconds, True) == earliest


def test_a_rate_in_images_equals_one_in_operations() -> None:
    config = load("imagenet")
    assert read_machine(config, 2, 4, 3, None, 1000.0).ops_per_device == 1000 * 23_053_458_315
    assert read_machine(config, 2, 4, 3, 5e12).ops_per_device == 5e12
    assert read_machine(config, 2, 4, 3).ops_per_device is None


def test_trainers_of_several_nodes_can_make_one_replica() -> None:
    # 16 nodes in replicas of two: 8 replicas of 16 devices, whose epoch takes half the time; 1,281,167 //
    # 7168 = 178.
    config = load("imagenet", sets=("parallel.trainers_per_replica=2",))
    values = {(n.group, n.name): n for n in estimate(config, MACHINE)}
    assert values["operations", "an epoch"].assumption.startswith(f"{178 * 7168} images")
    assert values["time", "an epoch"].value == pytest.approx(37.359 / 2, rel=5e-3)
    assert "each of 8 replicas" in values["storage", "checkpoints"].assumption
    assert (
        values["storage", "samples in journal and results"].value
        == numbers()["samples in journal and results"]
    )


def test_states_of_trials_that_train_take_space_and_time() -> None:
    # 16 replicas; the initial network has 25,557,032 parameters, the largest 4 times as many: from 16 x
    # 25,557,032 x 16 / 600 bytes a second, and three files of each replica.
    states = numbers()["states of trials that train"], numbers()["states written a second"]
    initial = 25_557_032 * 16
    assert states[0] == pytest.approx(16 * 3 * 4 * initial)
    assert states[1] == pytest.approx((16 * initial / 600, 16 * 4 * initial / 600))
    never = {n.name for n in estimate(load("imagenet", sets=["result.checkpoint_seconds=0"]), MACHINE)}
    assert not never & {"states of trials that train", "states written a second"}


def test_without_a_rate_there_is_neither_time_nor_score() -> None:
    known = numbers(Machine(16, 8))
    assert "history window" in known and "node-hours" in known
    assert "rate of the machine" not in known and "trials of a replica" not in known


def test_made_up_pictures_have_a_rate_and_no_regulated_one() -> None:
    made, real = (
        {n.name for n in estimate(load(name), MACHINE) if n.group == "score"}
        for name in ("imagenet-synthetic", "imagenet")
    )
    assert made == {"rate of the machine"} and real - made == {"regulated at an error of 0.3"}


def test_device_memory_is_weights_and_kept_activations() -> None:
    # Convolutions 10,587,136, ReLUs 9,081,856, pools 200,704 + 2,048 and the input 150,528 values of 2 bytes
    # an image; 25,557,032 parameters of 12 bytes.
    each = 2 * (10_587_136 + 9_081_856 + 200_704 + 2_048 + 150_528)
    assert activation_bytes(load("imagenet"), "bfloat16") == each == 40_044_544
    h200 = numbers(replace(MACHINE, device="NVIDIA H200"))
    assert h200["a device"] == (25_557_032 * 12 + 448 * each, 25_557_032 * 12 + 512 * each)


def test_the_precision_of_a_described_device_is_that_of_a_run_on_it() -> None:
    weights, small, large = 25_557_032 * 12, 448 * 40_044_544, 512 * 40_044_544
    expected = {
        "Tesla V100-SXM2-32GB": (weights + small, weights + large, "in float16"),
        "NVIDIA A100-SXM4-80GB": (weights + small, weights + large, "in bfloat16"),
        "cpu": (weights + 2 * small, weights + 2 * large, "in float32"),
        "Tesla P100": (weights + small, weights + 2 * large, "is not known of --device 'Tesla P100'"),
        "": (
            weights + small,
            weights + 2 * large,
            "train.precision = auto depends on the device, see --device",
        ),
    }
    for name, (low, high, words) in expected.items():
        found = {n.name: n for n in estimate(load("imagenet"), replace(MACHINE, device=name))}["a device"]
        assert found.value == (low, high) and words in found.assumption, name

    # The configuration decides where it says a precision, and CPUs train where they are emulated devices.
    for sets, words in (("train.precision=float16", "in float16"), ("parallel.host_devices=1", "in float32")):
        config = load("imagenet", sets=(sets,))
        found = {n.name: n for n in estimate(config, replace(MACHINE, device="NVIDIA H200"))}["a device"]
        assert words in found.assumption and "depends on" not in found.assumption


@pytest.mark.full
def test_half_precision_of_either_kind_takes_half() -> None:
    each = [activation_bytes(load("demo"), name) for name in ("float32", "bfloat16", "float16")]
    assert each[0] == 2 * each[1] == 2 * each[2]


@pytest.mark.jax
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kept_activations_match_the_real_backward_pass(precision: str) -> None:
    # What JAX keeps for the backward pass of two images and not of one, within 3 %: a few values of each
    # layer more.
    import jax
    import jax.numpy as jnp

    from aiperf_mpi.training.model.resnet import network

    model = network(resnet50(Base(32, 3, 10, 16, (2, 2, 2))), precision)

    def kept(images: int) -> int:
        x = jax.ShapeDtypeStruct((images, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, True), x)

        def backward(params: Any, stats: Any, x: Any) -> Any:
            def loss(params: Any) -> Any:
                out, _ = model.apply(
                    {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
                )
                return out.astype(jnp.float32).sum()

            return jax.vjp(loss, params)[1]

        shapes = jax.eval_shape(backward, variables["params"], variables["batch_stats"], x)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    sets = (
        "data.name='synthetic'",
        "data.image_size=32",
        "data.classes=10",
        "model.width=16",
        "model.blocks=[2,2,2]",
    )
    estimated = activation_bytes(load("imagenet", sets=sets), precision)
    assert kept(2) - kept(1) == pytest.approx(estimated, rel=0.03)


# -- the command -----------------------------------------------------------------------------------


def test_json_has_every_number_with_its_unit_and_assumption() -> None:
    arguments = [
        "--preset",
        "imagenet",
        "--nodes",
        "16",
        "--devices-per-node",
        "8",
        "--ops-per-device",
        "1e14",
        "--json",
    ]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=True)
    values = json.loads(done.stdout)
    assert values["machine"] == {
        "nodes": 16,
        "devices_per_node": 8,
        "ranks_per_node": 3,
        "ops_per_device": 1e14,
        "staging_rate": 1e9,
        "device": "",
    }
    assert {number["name"]: number["value"] for number in values["numbers"]}["history window"] == 38_797_376
    assert all(number["unit"] and len(number["assumption"]) > 20 for number in values["numbers"])
    assert {number["group"] for number in values["numbers"]} == {
        "operations",
        "time",
        "gate",
        "search",
        "score",
        "cores",
        "data",
        "memory",
        "storage",
    }
    # The step and at least one thread that prepares images, and two generators.
    assert {number["name"]: number["value"] for number in values["numbers"]}["cores of a node"] == 4


def test_it_takes_under_a_second_without_mpi_and_jax() -> None:
    code = (
        "import sys; from aiperf_mpi.__main__ import main\n"
        "code = main(['estimate', '--preset', 'imagenet', '--nodes', '10000', '--devices-per-node', '8', "
        "'--images-per-second', '2500'])\n"
        "sys.exit(code or 10 * bool({'jax', 'mpi4py', 'flax'} & set(sys.modules)))"
    )
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert "rate of the machine" in done.stdout and "node-hours" in done.stdout
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"CPU seconds: {sorted(spent)}")
    assert statistics.median(spent) < 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "the following arguments are required: --nodes"),
        ("--nodes 0", "--nodes 0: a machine has at least one"),
        (f"--nodes {10**400}", "a machine has at most 10000000"),
        (f"--nodes 2 --devices-per-node {10**400}", "a machine has at most 100000"),
        (f"--nodes 2 --ranks-per-node {10**400}", "a machine has at most 100000"),
        ("--nodes 2 --ops-per-device 1e-320", "must be a positive number from 1 up to 1e+21"),
        ("--nodes two", "invalid int value: 'two'"),
        ("--nodes 2 --devices-per-node -1", "--devices-per-node -1: a machine has at least one"),
        ("--nodes 2 --ops-per-device nan", "must be a positive number"),
        ("--nodes 2 --ops-per-device 1e308", "must be a positive number from 1 up to 1e+21"),
        ("--nodes 2 --images-per-second -5", "must be a positive number"),
        ("--nodes 2 --staging-rate 0", "--staging-rate 0: must be a positive number of bytes per second"),
        ("--nodes 2 --set data.path=/nowhere", "data.path: /nowhere: does not exist; name the"),
        ("--nodes 2 --ops-per-device 1 --images-per-second 1", "not allowed with argument"),
        ("--nodes 2 --preset imagnet", "did you mean 'imagenet'?"),
        ("--nodes 2 --set train.bath=1", "train.batch"),
        ("--nodes 2 --preset demo --devices-per-node 64", "an epoch would have no whole batch"),
        (
            "--nodes 2 --devices-per-node 3 --set parallel.trainers_per_node=2",
            "does not divide among the 2 trainers",
        ),
        ("--nodes 3 --set parallel.trainers_per_replica=2", "3 trainers do not divide into replicas"),
        ("--nodes 2 --ranks-per-node 1 --set parallel.trainers_per_node=2 --devices-per-node 2", "less than"),
    ],
)
def test_nonsense_is_refused_in_one_line(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from aiperf_mpi.__main__ import main

    try:
        code: object = main(["estimate", *arguments.split()])
    except SystemExit as left:
        code = left.code
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and message in printed.err and printed.err.count("\n") == 1


def test_a_history_that_is_too_small_is_reported() -> None:
    sets = ("parallel.history_capacity=1024",)
    number = next(
        n for n in estimate(load("imagenet", sets=sets), MACHINE) if n.name == "records of the history"
    )
    assert "TOO MANY" in number.assumption
    with pytest.raises(ConfigError, match="no whole batch"):
        estimate(load("demo"), Machine(2, 64))

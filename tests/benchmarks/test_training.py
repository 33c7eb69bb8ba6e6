# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the training step: what it computes, and what happens to a part that fails."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.network.architecture import Base, resnet50
from aiperf_mpi.results.output import process
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.model.resnet import module_name
from aiperf_mpi.training.steps.compile import compile_steps
from aiperf_mpi.training.steps.step import StepSettings
from benchmarks import levers, torch_peer
from benchmarks.candidates import summary
from benchmarks.ceilings import modelled_bytes
from benchmarks.onestep import DEVIATION, MEAN, MORPHS, in_turn, morphed, random_batch, ratio, settings_of
from benchmarks.peer import Peer
from benchmarks.profiling import by_operation, device_events
from benchmarks.shape import PRESETS, Shape
from benchmarks.training import RUNNERS, Session
from tests.helpers.results.example_run import example_run

#: One block, 8 x 8 pixels: compiles in a few seconds.
TINY = Shape(
    8,
    2,
    3,
    (1,),
    (4, 8),
    "float32",
    steps=2,
    repeats=2,
    matrix=64,
    copy_mib=1,
    fed_images=64,
    peers=("eager",),
)


def test_bytes_of_a_step_by_hand() -> None:
    # Stem 8x8x1 -> 4x4x2, pooled to 2x2x2; then 1x1 to 2x2x2, 3x3 to 2x2x2, 1x1 to 2x2x8, the projection to
    # 2x2x8, and their addition. 3 inputs + 11 outputs of each: 3*64 + 11*32, twice 3*8 + 11*8, twice 3*8 +
    # 11*32; 3*32.
    layers = resnet50(Base(8, 1, 3, 2, (1,))).layers()
    assert modelled_bytes(layers, 2) == 2 * (544 + 2 * 112 + 2 * 376 + 96)
    # A memory rate of 4.3 TB/s allows ResNet-50 in bfloat16 some 13,000 images per second.
    assert modelled_bytes(resnet50().layers(), 2) == 326_846_464


def test_measured_morphs_are_fixed_and_of_their_kind() -> None:
    networks = [morphed(resnet50(), op) for op in MORPHS]
    assert [network.morphs[0].op for network in networks] == list(MORPHS)
    # The middle one of 49 places for `deeper`, of 48 convolutions for `wider`.
    assert [network.morphs[0].a for network in networks[:2]] == [24, 24]
    assert all(len(network.layers()) != len(resnet50().layers()) for network in (networks[0], networks[2]))
    assert networks[1].parameters == 31_600_680


def test_windows_take_turns_and_are_compared_in_pairs() -> None:
    order: list[str] = []

    def window(name: str, seconds: float) -> float:
        order.append(name)
        return seconds * len(order)

    windows = in_turn({"a": lambda: window("a", 2.0), "b": lambda: window("b", 1.0)}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"] and windows["a"] == [2.0, 8.0, 10.0]

    # Pairs of 2, 8 and 4: their geometric mean is 4; of equal pairs the interval is a point.
    interval = ratio([2.0, 8.0, 4.0], [1.0, 1.0, 1.0])
    assert interval["ratio"] == pytest.approx(4) and interval["low"] < 2 < 8 < interval["high"]
    assert ratio([3.0, 6.0], [1.0, 2.0]) == pytest.approx({"ratio": 3, "low": 3, "high": 3})


def test_every_lever_changes_the_step_or_the_network() -> None:
    listed = levers.levers((256, 512), "bfloat16", 64)
    for lever in listed:
        settings = settings_of(replace(Shape(), **lever.network), **lever.settings)
        assert settings != settings_of(Shape()) or lever.network, lever
    assert len({lever.name for lever in listed}) == len(listed)
    with pytest.raises(ValueError, match="no setting winograd"):
        settings_of(Shape(), winograd=True)


def test_operations_of_a_profile_are_summed_by_origin() -> None:
    program = (
        '  %fusion.1 = f32[4]{0} fusion(%x), metadata={op_name="jit(step)/unit000_norm/mul" '
        "stack_frame_id=3}\n"
        "  ROOT %conv = f32[4]{0} convolution(%x, %y), "
        'metadata={op_name="jit(step)/transpose(jvp(N))/unit000_conv/conv_general_dilated"}\n'
    )
    sums = by_operation([("conv", 3e6), ("fusion.1", 1e6), ("conv", 5e6), ("other", 1e6)], program)
    assert sums["total_ms"] == 10
    assert [(row["operation"], row["times"], row["share"]) for row in sums["operations"]] == [
        ("conv", 2, 0.8),
        ("fusion.1", 1, 0.1),
        ("other", 1, 0.1),
    ]
    assert sums["operations"][1]["origin"] == "unit000_norm/mul"
    assert [row["kind"] for row in sums["kinds"]] == [
        "conv_general_dilated, backward",
        "mul, forward or update",
        "unknown, forward or update",
    ]


def test_operations_on_an_accelerator_are_those_of_its_streams() -> None:
    def line(name: str, *events: tuple[str, float, dict[str, str]]) -> SimpleNamespace:
        return SimpleNamespace(
            name=name,
            events=[
                SimpleNamespace(name=event, duration_ns=ns, stats=list(stats.items()))
                for event, ns, stats in events
            ],
        )

    named = {"hlo_op": "conv", "hlo_module": "jit_step"}
    host = SimpleNamespace(
        name="/host:CPU", lines=[line("thread", ("conv", 7.0, named), ("python", 9.0, {}))]
    )
    device = SimpleNamespace(
        name="/device:GPU:0",
        lines=[
            line("Stream #13", ("kernel<float>", 5.0, named), ("memcpy", 2.0, {})),
            line("XLA Ops", ("conv", 5.0, named)),
        ],
    )
    assert device_events(SimpleNamespace(planes=[host])) == [("conv", 7.0)]
    assert device_events(SimpleNamespace(planes=[host, device])) == [("conv", 5.0), ("memcpy", 2.0)]


def test_gaps_between_candidates_are_read_from_a_result(tmp_path: Path) -> None:
    # Three epochs of a second each, one trial after the other; a trial's first step comes half a second
    # after its start, and the last trial is unfinished. The first two trials count 2.5 s each, of the 5.5 s
    # from their first to their last step.
    hdf5.write(tmp_path / "result.h5", process.final_image(example_run(replicas=1).run()))
    row_of_run = summary(tmp_path / "result.h5", 5)
    assert [(row["epochs"], row["gap_s"]) for row in row_of_run["trials"]] == [(3, None), (3, 0.5)]
    assert row_of_run["span_s"] == 5.5 and row_of_run["share"] == pytest.approx(5 / 5.5)
    assert row_of_run["trials"][0]["images_per_second"] == pytest.approx(3 * (22 * 64 + 360) / 2.5)
    assert len(summary(tmp_path / "result.h5", 1)["trials"]) == 1


# -- processes -------------------------------------------------------------------------------------


def session(tmp_path: Path, **changes: Any) -> Session:
    given = {
        "seconds": 300.0,
        "limit": 300.0,
        "out": tmp_path,
        "name": "t",
        "title": "T",
        "preset": "cpu",
        **changes,
    }
    return Session(argparse.Namespace(**given), TINY)


def test_a_failed_part_is_a_row_and_the_next_runs(tmp_path: Path) -> None:
    at_work = session(tmp_path)
    at_work.part("flags", "plain_step", {"XLA_FLAGS": "--xla_no_such_flag=1"}, name="unknown")
    (row,) = at_work.found["parts"]["flags"]
    assert (
        row["name"] == "unknown"
        and "ended with status" in row["failed"]
        and "xla_no_such_flag" in row["failed"]
    )
    assert "unknown | failed" in (tmp_path / "t.md").read_text()
    assert json.loads((tmp_path / "t.json").read_text())["parts"]["flags"] == [row]

    # With no time left no part starts, and each table has a row that says so.
    late = session(tmp_path, seconds=0.0)
    for name in ("throughput", "compilation", "levers", "flags"):
        RUNNERS[name](late)
    assert all("not run: the 0 s" in row["failed"] for rows in late.found["parts"].values() for row in rows)
    assert len(late.found["parts"]["levers"]) == len(levers.levers(TINY.batches, TINY.precision, TINY.width))
    assert len(late.found["parts"]["flags"]) == 2 + len(levers.FLAGS["cpu"])


def test_the_peer_reports_missing_pytorch_or_has_the_same_parameters() -> None:
    peer = Peer("")
    form = {
        "batch": 2,
        "image": 32,
        "width": 64,
        "blocks": [3, 4, 6, 3],
        "classes": 1000,
        "precision": "float32",
    }
    try:
        if importlib.util.find_spec("torch") is None:
            with pytest.raises(RuntimeError, match="No module named 'torch'"):
                peer.ask(way="eager", shape=form)
        else:
            made = peer.ask(way="eager", shape=form)
            # Of ResNet-50 for 1000 classes, whether its 1x1 or its 3x3 has the stride.
            assert made["parameters"] == resnet50().parameters == 25_557_032
            # With random weights the loss is near that of a guess among 1000 classes.
            assert math.log(1000) / 2 < made["losses"][0] < 2 * math.log(1000)
        with pytest.raises(RuntimeError, match="KeyError"):
            peer.ask(way="unheard of", steps=1)
    finally:
        peer.end()


def test_pytorch_computes_the_same_loss_and_gradients() -> None:
    torch = pytest.importorskip("torch", reason="the extra bench is not installed")
    network = resnet50(Base(32, 3, 10, 4, (2, 1)))
    compiled = compile_steps(network, StepSettings(8, mean=MEAN, deviation=DEVIATION), jax.devices()[:1])
    variables = initial_variables(network, np.random.default_rng(3))
    images, labels = random_batch(network.base, 8)
    state = compiled.start(variables, np.random.default_rng(4))
    state, metrics = compiled.train(state, images, labels, compiled.scalar(0.1))

    # Both list convolutions and batch norms in the same order, the shortcut's after those of the block's
    # branch.
    model = torch_peer.resnet50(4, [2, 1], 10).train()
    names = [
        module_name(layer.name) for layer in network.layers() if layer.kind in ("conv", "batch_norm", "dense")
    ]
    modules = [module for module in model.modules() if hasattr(module, "weight")]
    tensors = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    for name, module in zip(names, modules, strict=True):
        for tensor, array in variables["params"][name].items():
            getattr(module, tensors[tensor]).data = torch.from_numpy(
                array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            ).contiguous()
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    inputs = (torch.from_numpy(images[0]).permute(0, 3, 1, 2).float() / 255 - mean) / deviation
    loss = torch.nn.functional.cross_entropy(
        model(inputs), torch.from_numpy(labels[0]).long(), label_smoothing=torch_peer.SMOOTHING
    )
    loss.backward()
    assert float(metrics.loss) / 8 == pytest.approx(float(loss.detach()), rel=1e-5)

    # Momenta begin at zero, so after one step they are the gradients. Float32 through some 20 layers: a few
    # 1e-5.
    for name, module in zip(names, modules, strict=True):
        for tensor, array in state.momenta.trace[name].items():
            ours, theirs = np.asarray(array[0]), getattr(module, tensors[tensor]).grad.numpy()
            theirs = (
                theirs.T if ours.ndim == 2 else theirs.transpose(2, 3, 1, 0) if ours.ndim == 4 else theirs
            )
            assert np.linalg.norm(ours - theirs) < 1e-3 * np.linalg.norm(theirs) + 1e-6, (name, tensor)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_every_part_runs_on_a_cpu(root: Path, tmp_path: Path) -> None:
    words = [
        sys.executable,
        "benchmarks/training.py",
        "--preset",
        "cpu",
        "--levers",
        "--flags",
        "--profile",
        "--run",
        "--candidates",
        "2",
        "--out",
        str(tmp_path),
    ]
    for item in fields(Shape):
        value = getattr(TINY, item.name)
        if item.name not in ("augmentation", "cache", "peer_python"):
            words += [
                f"--{item.name.replace('_', '-')}",
                *map(str, value if isinstance(value, tuple) else (value,)),
            ]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "training.json").read_text())["parts"]
    failed = [(name, row) for name, rows in parts.items() for row in rows if "failed" in row]
    assert {name for name, _ in failed} <= (
        {"peer"} if importlib.util.find_spec("torch") is None else set()
    ), failed
    assert set(parts) == set(RUNNERS)
    assert parts["levers"][0]["executed_more"] == 0
    assert all(0 < row["of_matrix"] for row in parts["throughput"] if row["name"] != "ceilings")
    assert PRESETS["cpu"].precision == "float32"


@pytest.mark.parametrize("words", [["sleep"], ["speed"], ["speed", "somewhere", "huge"]])
def test_the_accelerator_script_prints_its_usage(root: Path, words: list[str], tmp_path: Path) -> None:
    script = str(root / "benchmarks" / "accelerator.sh")
    done = subprocess.run([script, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "speed" in done.stderr and not list(tmp_path.iterdir())

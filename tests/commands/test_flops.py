# SPDX-License-Identifier: Apache-2.0
"""The `flops` command as a user runs it: in its own process, without MPI."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from aiperf_mpi.network.architecture import Architecture, Base, Morph, resnet50
from aiperf_mpi.opcount.analytical import KINDS, count, matrix_operations
from aiperf_mpi.opcount.forms import expansions

#: Runs the command line without the modules named in its first argument.
BLOCKED = (
    "import sys; sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(','))); "
    "from aiperf_mpi.__main__ import main; sys.exit(main())"
)


def run(root: Path, *arguments: str, missing: str = "mpi4py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED, missing, "flops", *arguments]
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "110"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def answer(root: Path, *arguments: str, **options: Any) -> dict[str, Any]:
    done = run(root, "--json", *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file with a small network that has one morph of each kind."""
    architecture = Architecture(Base(32, 3, 10, 4, (1, 1))).apply(
        Morph("deeper", 2, 0, 5), Morph("wider", 1), Morph("skip", 1, 6), Morph("kernel", 4, 0, 3)
    )
    path = tmp_path_factory.mktemp("flops") / "small.json"
    path.write_text(architecture.to_json())
    return path


def test_resnet50_in_json(root: Path) -> None:
    methods = answer(root)
    assert list(methods) == ["rules", "analytical", "jaxpr", "xla"] and methods["rules"] == "paper"
    for method in ("analytical", "jaxpr", "xla"):
        assert set(methods[method]) == {*KINDS, "total"}
        for part in ("fp", "bp"):
            assert all(type(methods[method][kind][part]) is int for kind in KINDS)
            assert methods[method]["total"][part] == sum(methods[method][kind][part] for kind in KINDS)

    # The authors' integers; and the step's matrix products are the tables', the update (2 operations for each
    # of the 23,454,912 weights of convolutions, 2,049,000 of the dense layer) apart.
    tables, step = methods["analytical"], methods["jaxpr"]
    assert tables["total"]["fp"] == 7_806_583_495
    assert tables["total"]["fp"] + tables["total"]["bp"] == 23_053_458_315
    for kind, update in (("conv", 46_909_824), ("dense", 4_098_000)):
        assert step[kind] == {"fp": tables[kind]["fp"], "bp": tables[kind]["bp"] - update}
    for kind in ("add", "max_pool", "global_pool"):
        assert step[kind]["fp"] == tables[kind]["fp"]

    # XLA leaves out padding, which is less than a twentieth of it all.
    assert 0.95 < methods["xla"]["conv"]["fp"] / tables["conv"]["fp"] < 1
    assert methods["xla"]["dense"] == step["dense"]


def test_an_architecture_from_a_file(root: Path, small: Path) -> None:
    methods = answer(root, "--arch", str(small), "--image-size", "48", "--classes", "7", "--batch", "4")
    architecture = Architecture.from_json(small.read_text())
    changed = Architecture(Base(48, 3, 7, 4, (1, 1)), architecture.morphs)
    assert methods["analytical"]["conv"]["fp"] == count(changed.layers()).kinds["conv"][0]
    expected = matrix_operations(changed.layers())
    for kind in ("conv", "dense"):
        forward = expected[kind, "forward"]
        gradients = expected[kind, "input gradient"] + expected[kind, "weight gradient"]
        assert methods["jaxpr"][kind] == {"fp": forward, "bp": gradients}


def test_the_forms_of_a_step(root: Path, small: Path) -> None:
    methods = answer(root, "--arch", str(small), "--forms", "folded", "--batch", "2")
    layers = Architecture.from_json(small.read_text()).layers()
    # Expanding convolutions of 1x1 are matrix products in these forms.
    shapes = [(x.in_shape[2], *x.out_shape) for x in expansions(layers)]
    forward = matrix_operations(layers)["conv", "forward"]
    assert methods["jaxpr"]["conv"]["fp"] == forward - sum(2 * prod(shape) for shape in shapes)
    assert methods["analytical"] == answer(root, "--arch", str(small), "--analytical")["analytical"]


def test_the_page_of_a_network_with_every_layer(root: Path, small: Path) -> None:
    done = run(root, "--arch", str(small), "--per-layer", "--batch", "2")
    assert done.returncode == 0, done.stderr
    assert "gradient of the step equal the tables exactly" in done.stdout
    assert "within the band" in done.stdout and "Why they differ" in done.stdout
    assert "…" not in done.stdout, "a cell is cut off"
    architecture = Architecture.from_json(small.read_text())
    for layer in architecture.layers():
        assert f" {layer.name} " in done.stdout


def test_the_analytical_part_needs_no_jax_and_is_quick(root: Path) -> None:
    spent = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = run(root, "--analytical", missing="mpi4py,jax,flax,optax,numpy")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert "training 23,053,458,315, validation 7,806,583,495" in done.stdout
    assert "1.52e10    1.9755   2.29e10" in done.stdout
    # CPU seconds, the start of Python included; the goal is 0.2 s, and the rest allows for a slower machine.
    assert median(spent) < 0.4


def test_a_preset(root: Path) -> None:
    done = run(root, "--preset", "cifar10", "--analytical")
    assert done.returncode == 0, done.stderr
    assert "32x32x3, 10 classes" in done.stdout
    assert "Operations per epoch of 50,000 training and 10,000 validation images" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "no/such/file.json"], "/no/such/file.json: does not exist; name a JSON file\n"),
        (["--preset", "imagnet"], "did you mean 'imagenet'"),
        (["--batch", "0"], "--batch is 0"),
        (["--batch", "1000000000000"], "--batch is 1000000000000, but a step takes at least 1 image"),
        (["--classes", "0"], "classes is 0"),
        (["--preset", "demo", "--arch", "x.json"], "not allowed with"),
    ],
)
def test_wrong_arguments_are_a_usage_error(root: Path, arguments: list[str], message: str) -> None:
    done = run(root, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_architecture(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    for text, message in (
        ("{", f"--arch {path}: not JSON (line 1, column 2); see docs/architecture-json.md\n"),
        ('{"morphs": [{"op": "wider", "unit": 999}]}', "there is no unit 999"),
    ):
        path.write_text(text)
        done = run(root, "--arch", str(path))
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_methods_that_differ_are_an_error(root: Path) -> None:
    # A network whose first convolution is executed with another kernel than its list of layers has.
    program = (
        "import sys; from aiperf_mpi.opcount import analytical as a; from aiperf_mpi.__main__ import main; "
        "t = dict(a.TABLE_1); t['dense'] = (('mac', lambda layer: 1 + layer.in_shape[2] * "
        "layer.out_shape[2]),); "
        "a.TABLE_1 = t; sys.exit(main(['flops', '--preset', 'demo', '--json']))"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=240, env=environment
    )
    assert done.returncode == 3
    assert "DIFFERENT train dense forward: 2560 != 2562 by the tables" in done.stderr


def test_the_default_is_the_papers_network(root: Path) -> None:
    tables = answer(root, "--analytical", missing="mpi4py,jax")["analytical"]
    counts = count(resnet50().layers())
    assert tables == {kind: {"fp": fp, "bp": bp} for kind, (fp, bp) in counts.kinds.items()} | {
        "total": {"fp": counts.fp, "bp": counts.bp}
    }

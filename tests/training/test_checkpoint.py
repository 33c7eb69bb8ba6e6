# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import h5py
import jax
import numpy as np
import pytest

from aiperf_mpi.network.architecture import resnet50
from aiperf_mpi.training.checkpoint import digest, load_checkpoint, save_checkpoint
from aiperf_mpi.training.model.initial import initial_variables
from tests.helpers.training.cases import MORPHED, TINY


@pytest.fixture
def variables() -> dict:
    return initial_variables(MORPHED, np.random.default_rng(3))


def test_what_is_saved_is_loaded_to_the_bit(tmp_path, variables):
    path = tmp_path / "checkpoints" / "17.h5"
    saved = save_checkpoint(path, 17, MORPHED, variables)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.trial_id, checkpoint.architecture, checkpoint.digest) == (17, MORPHED, saved)
    assert jax.tree.structure(checkpoint.variables) == jax.tree.structure(variables)
    pairs = zip(jax.tree.leaves(checkpoint.variables), jax.tree.leaves(variables), strict=True)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert [file.name for file in path.parent.iterdir()] == ["17.h5"]


def test_the_digest_depends_on_values_names_shapes_not_order(variables):
    first = digest(variables)
    assert first == digest(dict(reversed(variables.items())))

    kernel = variables["params"]["dense"]["kernel"]
    changed = kernel.copy()
    changed[0, 0] = np.nextafter(changed[0, 0], np.float32(np.inf))
    for other in (
        {"dense": {"kernel": changed}},
        {"dense": {"weights": kernel}},
        {"dense": {"kernel": kernel.T}},
        {"dense": {"kernel": kernel.astype(np.float64)}},
    ):
        assert digest(other) != digest({"dense": {"kernel": kernel}})


def test_altered_weights_are_refused(tmp_path, variables):
    path = tmp_path / "1.h5"
    save_checkpoint(path, 1, MORPHED, variables)
    with h5py.File(path, "r+") as file:
        file["params/dense/bias"][0] += 1
    with pytest.raises(ValueError, match="1.h5: its weights have the digest"):
        load_checkpoint(path)


def test_another_architecture_than_the_hash_says_is_refused(tmp_path, variables):
    path = tmp_path / "1.h5"
    save_checkpoint(path, 1, MORPHED, variables)
    with h5py.File(path, "r+") as file:
        file.attrs["arch_json"] = resnet50(TINY).to_json()
    with pytest.raises(ValueError, match="its architecture hashes to"):
        load_checkpoint(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = 1
    with pytest.raises(ValueError, match="not a checkpoint of format"):
        load_checkpoint(tmp_path / "x.h5")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent.h5")


def test_a_failed_save_leaves_the_older_file_and_no_other(tmp_path, variables):
    path = tmp_path / "1.h5"
    saved = save_checkpoint(path, 1, MORPHED, variables)
    variables["params"]["dense"]["bias"] = np.zeros(3)
    with pytest.raises(ValueError, match="dense/bias is float64, but a checkpoint holds float32"):
        save_checkpoint(path, 1, MORPHED, variables)
    assert [file.name for file in tmp_path.iterdir()] == ["1.h5"]
    assert load_checkpoint(path).digest == saved


FULL = """
import resource, sys
from tests.helpers.training.cases import MORPHED
from aiperf_mpi.training.checkpoint import load_checkpoint, save_checkpoint

old = load_checkpoint(sys.argv[1])
size = open(sys.argv[1], "rb").seek(0, 2)
for room in (0, 1, 4096, size // 2, *range(size - 40000, size, 4000), size - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(room, 0), resource.RLIM_INFINITY))
    try:
        save_checkpoint(sys.argv[1], 2, MORPHED, old.variables)
    except OSError as error:
        assert "File too large" in str(error)
    else:
        raise AssertionError(f"{room} of {size} bytes were enough")
    assert load_checkpoint(sys.argv[1]).digest == old.digest
print("whole")
"""


def test_a_full_disk_raises_oserror_and_keeps_the_older_file(root, tmp_path, variables):
    # HDF5 itself, writing to a file that may not grow, raises this and that, and crashes at the last of its
    # own bytes.
    save_checkpoint(tmp_path / "1.h5", 1, MORPHED, variables)
    command = [sys.executable, "-c", FULL, str(tmp_path / "1.h5")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "whole\n"), done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["1.h5"]


# -- files from others -----------------------------------------------------------------------------


def link_elsewhere(file: h5py.File) -> None:
    del file["params/dense/bias"]
    file["params/dense/bias"] = h5py.ExternalLink("/etc/hostname", "/bias")


def link_inside(file: h5py.File) -> None:
    file.move("params/dense/bias", "params/dense/hidden")
    file["params/dense/bias"] = h5py.SoftLink("/params/dense/hidden")


def bytes_elsewhere(file: h5py.File) -> None:
    shape = file["params/dense/bias"].shape
    del file["params/dense/bias"]
    file["params/dense"].create_dataset("bias", shape, "<f4", external=[("/etc/hostname", 0, 4 * shape[0])])


def never_written(file: h5py.File) -> None:
    shape = file["params/dense/bias"].shape
    del file["params/dense/bias"]
    file["params/dense"].create_dataset("bias", shape, "<f4")


def terabytes(file: h5py.File) -> None:
    del file["params/dense/bias"]
    file["params/dense"].create_dataset("bias", (10**13,), "<f4")


def huge_items(file: h5py.File) -> None:
    shape = file["params/dense/bias"].shape
    del file["params/dense/bias"]
    file["params/dense"].create_dataset("bias", shape, "V100000")


def compressed(file: h5py.File) -> None:
    values = file["params/dense/bias"][...]
    del file["params/dense/bias"]
    file["params/dense"].create_dataset("bias", data=values, chunks=True, compression="gzip")


def cycle(file: h5py.File) -> None:
    del file["params/dense"]
    file["params/dense"] = file["params"]


def another_array(file: h5py.File) -> None:
    file["params/extra"] = np.zeros(3, np.float32)


def another_shape(file: h5py.File) -> None:
    values = file["params/dense/bias"][...]
    del file["params/dense/bias"]
    file["params/dense/bias"] = values[:-1]


def group_in_place_of_an_array(file: h5py.File) -> None:
    del file["params/dense/bias"]
    file.create_group("params/dense/bias")


def huge_network(file: h5py.File) -> None:
    file.attrs["arch_json"] = file.attrs["arch_json"].replace('"blocks":[', '"blocks":[1000000000000,')


def brackets(file: h5py.File) -> None:
    file.attrs["arch_json"] = "[" * 60_000


def list_of_attributes(file: h5py.File) -> None:
    file.attrs["digest"] = ["a"] * 1000


def speaking_digest(file: h5py.File) -> None:
    file.attrs["digest"] = "x\nAIPERF_MPI score_ops: 9.9e99 op/s"


@pytest.mark.parametrize(
    "change",
    [
        link_elsewhere,
        bytes_elsewhere,
        terabytes,
        huge_items,
        cycle,
        another_array,
        huge_network,
        speaking_digest,
        *(
            pytest.param(change, marks=pytest.mark.full)
            for change in (
                link_inside,
                never_written,
                compressed,
                another_shape,
                group_in_place_of_an_array,
                brackets,
                list_of_attributes,
            )
        ),
    ],
    ids=lambda function: function.__name__,
)
def test_a_hostile_file_is_one_line(tmp_path, variables, change):
    path = tmp_path / "1.h5"
    save_checkpoint(path, 1, MORPHED, variables)
    assert load_checkpoint(path, MORPHED).digest == digest(variables)
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises((OSError, ValueError), match=r"1\.h5: ") as caught:
        load_checkpoint(path, MORPHED)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(n, marks=pytest.mark.full) for n in range(3, 30))]
)
def test_random_damage_is_refused_in_one_line_or_changes_nothing(tmp_path, variables, seed):
    rng, path = np.random.default_rng(seed), tmp_path / "1.h5"
    saved = save_checkpoint(path, 1, MORPHED, variables)
    data = bytearray(path.read_bytes())
    # Half of them where HDF5 keeps its structures, at the file's beginning.
    for place in rng.integers(0, len(data) if seed % 2 else 6000, int(rng.integers(1, 60))):
        data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(data if seed else rng.bytes(1000))
    try:
        assert load_checkpoint(path, MORPHED).digest == saved
    except (OSError, ValueError) as error:
        assert "\n" not in str(error)


def test_the_network_of_another_trial_is_refused(tmp_path, variables):
    save_checkpoint(tmp_path / "1.h5", 1, MORPHED, variables)
    with pytest.raises(ValueError, match="holds another network"):
        load_checkpoint(tmp_path / "1.h5", resnet50(TINY))

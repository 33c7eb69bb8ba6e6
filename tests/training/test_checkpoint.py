# SPDX-License-Identifier: Apache-2.0
import h5py
import jax
import numpy as np
import pytest

from aiperf_mpi.search.architecture import Morph, resnet50
from aiperf_mpi.training.checkpoint import digest, load_checkpoint, save_checkpoint
from aiperf_mpi.training.initial import initial_variables
from tests.training.cases import TINY

ARCHITECTURE = resnet50(TINY).apply(Morph("deeper", 3, 0, 5), Morph("skip", 1, 8))


@pytest.fixture
def variables() -> dict:
    return initial_variables(ARCHITECTURE, np.random.default_rng(3))


def test_what_is_saved_is_loaded_to_the_bit(tmp_path, variables):
    path = tmp_path / "checkpoints" / "17.h5"
    saved = save_checkpoint(path, 17, ARCHITECTURE, variables)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.trial_id, checkpoint.architecture, checkpoint.digest) == (17, ARCHITECTURE, saved)
    assert jax.tree.structure(checkpoint.variables) == jax.tree.structure(variables)
    pairs = zip(jax.tree.leaves(checkpoint.variables), jax.tree.leaves(variables), strict=True)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert [file.name for file in path.parent.iterdir()] == ["17.h5"]


def test_the_digest_knows_values_names_and_shapes_but_not_the_order(variables):
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
    save_checkpoint(path, 1, ARCHITECTURE, variables)
    with h5py.File(path, "r+") as file:
        file["params/dense/bias"][0] += 1
    with pytest.raises(ValueError, match="1.h5: its weights have the digest"):
        load_checkpoint(path)


def test_another_architecture_than_the_hash_says_is_refused(tmp_path, variables):
    path = tmp_path / "1.h5"
    save_checkpoint(path, 1, ARCHITECTURE, variables)
    with h5py.File(path, "r+") as file:
        file.attrs["arch_json"] = resnet50(TINY).to_json()
    with pytest.raises(ValueError, match="its architecture hashes to"):
        load_checkpoint(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = 1
    with pytest.raises(ValueError, match="no checkpoint of format"):
        load_checkpoint(tmp_path / "x.h5")
    with pytest.raises(FileNotFoundError):
        load_checkpoint(tmp_path / "absent.h5")


def test_a_failed_save_leaves_the_older_file_and_no_other(tmp_path, variables):
    path = tmp_path / "1.h5"
    saved = save_checkpoint(path, 1, ARCHITECTURE, variables)
    variables["params"]["dense"]["bias"] = np.zeros(3)
    with pytest.raises(ValueError, match="dense/bias is float64, but a checkpoint holds float32"):
        save_checkpoint(path, 1, ARCHITECTURE, variables)
    assert [file.name for file in tmp_path.iterdir()] == ["1.h5"]
    assert load_checkpoint(path).digest == saved

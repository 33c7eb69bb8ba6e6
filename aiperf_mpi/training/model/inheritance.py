# SPDX-License-Identifier: Apache-2.0
"""Inherit weights from the parent: apply each morph as a transformation of the parent's variables.

In inference mode (with running statistics) the child computes the function of its parent, up to rounding.
`wider` repeats channels (Net2Net: Chen et al., 2016), `deeper` begins as the identity, `kernel` pads with
zeros, and `skip` adds nothing (network morphism: Wei et al., 2016). `function_difference` measures the
difference. See docs/morphisms.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.training.model.images import centre, normalise
from aiperf_mpi.training.model.initial import Variables
from aiperf_mpi.training.model.resnet import NORM_EPSILON, Tree, expected_shapes, module_name, network

#: Largest share of a consumer's weights that one of the two copies of a channel gets. With equal shares both
#: copies would always have equal gradients, and the second copy would be useless.
LARGEST_SHARE = 0.75

#: Smallest variance that the norm of a new identity assumes for a channel, so that its scale is never 0.
LEAST_VARIANCE = 1e-3

#: Tensors of a module: (collection, name in it) -> array.
Tensors = dict[tuple[str, str], np.ndarray]

#: The tensors of each module by its name.
Modules = dict[str, Tensors]


def inherited_variables(
    parent: Architecture, variables: Tree, morphs: Sequence[Morph], rng: np.random.Generator
) -> Variables:
    """Return the variables of a child that computes the function of its parent in inference mode.

    Arguments:
        parent: the architecture of `variables`.
        variables: collections `params` and `batch_stats` (float32) from a checkpoint; they are not modified.
        morphs: the morphs from the parent to the child, in order, with the kernels that hyperparameter
            optimisation chose.
        rng: random stream (`streams.INIT` of the child's trial) for projections and the shares of copies.

    Return the collections of the child, as `expected_shapes` lists them. Arrays that no morph changes are
    shared with the parent. Raises ValueError naming the first variable with a wrong shape, and MorphError for
    a morph that cannot be applied.
    """
    _check(parent, variables)
    modules = _modules(variables)
    before = parent
    for morph in morphs:
        after = before.apply(morph)
        modules = _TRANSFORMATIONS[morph.op](before, after, morph, modules, rng)
        before = after
    child = _collections(modules)
    _check(before, child)
    return child


def function_difference(
    parent: Architecture,
    parent_variables: Tree,
    child: Architecture,
    child_variables: Tree,
    images: np.ndarray,
    mean: Sequence[float],
    deviation: Sequence[float],
) -> float:
    """Return the difference between the functions of child and parent on the same images.

    It is the largest difference of their logits, divided by the parent's largest logit (absolute values), in
    inference mode and float32. It is infinite if a logit is not finite, or if only the parent's are all 0.

    Both networks run layer by layer, as compiling them whole would take longer than running them. Only the
    few shapes that no earlier network had are compiled, once in a process.

    Arguments:
        images: uint8 [N, S, S, C], of which the centre is taken.
        mean, deviation: see `StepSettings`.
    """
    # By default an accelerator multiplies float32 with fewer bits, which would add differences.
    with jax.default_matmul_precision("highest"):
        inputs = normalise(centre(jnp.asarray(images), parent.base.image_size), mean, deviation)
        outputs = [
            np.asarray(network(architecture).apply(variables, inputs, train=False), np.float64)
            for architecture, variables in ((parent, parent_variables), (child, child_variables))
        ]
    difference, scale = np.abs(outputs[1] - outputs[0]).max(), np.abs(outputs[0]).max()
    if not difference:
        return 0.0
    return float(difference / scale) if scale and np.isfinite(difference) else math.inf


# -- the morphs: each returns the tensors of the network after it ----------------------------------


def _wider(
    before: Architecture, after: Architecture, morph: Morph, modules: Modules, rng: np.random.Generator
) -> Modules:
    """Repeat every channel of the layers that double, in the order `channels + channels`.

    The consumers divide their weights among both copies. Comparing the layer lists before and after shows
    which layers double, additions and norms included, and which layers consume them.
    """
    changed, old = dict(modules), {layer.name: layer for layer in before.layers()}
    for layer in after.layers():
        tensors = changed.get(module_name(layer.name))
        if tensors is None:
            continue
        was = old[layer.name]
        if layer.kind != "batch_norm" and layer.in_shape[2] != was.in_shape[2]:
            tensors = _divide_weights(tensors, rng)
        if layer.out_shape[2] != was.out_shape[2]:
            # The output channels are the last axis of every tensor.
            tensors = {key: np.concatenate([array, array], axis=-1) for key, array in tensors.items()}
        changed[module_name(layer.name)] = tensors
    return changed


def _divide_weights(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    """Divide a consumer's weights (convolution or dense layer) unequally among both copies of its inputs.

    The second part is the weights minus the first part, so they add up to the weights except for rounding.
    """
    kernel = tensors["params", "kernel"]
    shares = rng.uniform(1 - LARGEST_SHARE, LARGEST_SHARE, (kernel.shape[-2], 1)).astype(np.float32)
    first = kernel * shares
    return tensors | {("params", "kernel"): np.concatenate([first, kernel - first], axis=-2)}


def _deeper(
    before: Architecture, after: Architecture, morph: Morph, modules: Modules, rng: np.random.Generator
) -> Modules:
    """Insert an identity after a ReLU: its input is not negative, so its own ReLU changes nothing.

    Its norm subtracts and restores the mean and the deviation of its input, as estimated from the parent's
    norms. In inference mode any values would work. With these values a training step, which uses the
    statistics of its batch, also computes about the same function.
    """
    new = before.unit_count
    tag = f"unit{new:03d}"
    filters = next(unit.filters for unit in after.units if unit.id == new)
    centre = (morph.kernel - 1) // 2
    kernel = np.zeros((morph.kernel, morph.kernel, filters, filters), np.float32)
    kernel[centre, centre] = np.eye(filters, dtype=np.float32)
    mean, variance = _output_moments(before, modules)[morph.a]
    variance = np.maximum(variance, LEAST_VARIANCE)

    # Branches from the old unit now start at the new one, so rename their modules.
    changed = {}
    sources = {
        _branch(unit.id, morph.a): _branch(unit.id, new)
        for unit in before.units
        if any(edge.source == morph.a for edge in unit.edges)
    }
    for name, tensors in modules.items():
        target, _, layer = name.rpartition("_")
        changed[f"{sources.get(target, target)}_{layer}" if target else name] = tensors
    changed[f"{tag}_conv"] = {("params", "kernel"): kernel}
    changed[f"{tag}_norm"] = _norm(np.sqrt(variance + NORM_EPSILON), mean, mean, variance)
    return changed


def _skip(
    before: Architecture, after: Architecture, morph: Morph, modules: Modules, rng: np.random.Generator
) -> Modules:
    """Add a branch that contributes 0 at first: the scale of its norm is 0, its projection is He-normal."""
    changed = dict(modules)
    for layer in after.layers():
        name = module_name(layer.name)
        if name in modules or layer.unit != morph.b:
            continue
        filters = layer.out_shape[2]
        if layer.kind == "conv":
            shape = (layer.kernel, layer.kernel, layer.in_shape[2], filters)
            deviation = np.float32(math.sqrt(2 / math.prod(shape[:-1])))
            changed[name] = {("params", "kernel"): rng.standard_normal(shape, np.float32) * deviation}
        elif layer.kind == "batch_norm":
            zeros = np.zeros(filters)
            changed[name] = _norm(zeros, zeros, zeros, np.ones(filters))
    return changed


def _kernel(
    before: Architecture, after: Architecture, morph: Morph, modules: Modules, rng: np.random.Generator
) -> Modules:
    """Pad the kernel with zeros so that the old taps still meet the same pixels.

    A kernel of size k begins (k-1)//2 pixels before the output's pixel, whatever the stride, so the old
    kernel is shifted by the difference.
    """
    name = f"unit{morph.a:03d}_conv"
    kernel = modules[name]["params", "kernel"]
    was = len(kernel)
    offset = (morph.kernel - 1) // 2 - (was - 1) // 2
    grown = np.zeros((morph.kernel, morph.kernel, *kernel.shape[2:]), np.float32)
    grown[offset : offset + was, offset : offset + was] = kernel
    return modules | {name: {("params", "kernel"): grown}}


_TRANSFORMATIONS = {"deeper": _deeper, "wider": _wider, "skip": _skip, "kernel": _kernel}


# -- moments of a unit's output --------------------------------------------------------------------


def _output_moments(architecture: Architecture, modules: Modules) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return mean and variance (float64) of each channel after the ReLU of each unit, by the unit's id.

    They are estimated from the batch norms, whose output has the mean `bias` and the deviation `scale`. The
    values are assumed to be normal, and the terms of an addition independent. After a ReLU they then have the
    moments of a rectified normal distribution.
    """
    moments: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for unit in architecture.units:
        mean, variance = _norm_moments(modules[f"unit{unit.id:03d}_norm"])
        for edge in unit.edges:
            branch = (
                moments[edge.source]
                if edge.kind == "identity"
                else _norm_moments(modules[f"{_branch(unit.id, edge.source)}_norm"])
            )
            mean, variance = mean + branch[0], variance + branch[1]
        moments[unit.id] = _rectified(mean, variance)
    return moments


def _norm_moments(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    return tensors["params", "bias"].astype(np.float64), tensors["params", "scale"].astype(np.float64) ** 2


def _rectified(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of max(x, 0) for a normal x, also for variance 0."""
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    ratio = mean / deviation
    density = np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    positive = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in ratio])
    first = mean * positive + deviation * density
    second = (mean**2 + variance) * positive + mean * deviation * density
    return first, np.maximum(second - first**2, 0)


# -- names and collections -------------------------------------------------------------------------


def _branch(unit: int, source: int) -> str:
    """Return the prefix of the module names of a unit's branch; a negative source is the max-pooling."""
    return f"unit{unit:03d}_from{'pool' if source < 0 else f'{source:03d}'}"


def _norm(scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> Tensors:
    named = {
        ("params", "scale"): scale,
        ("params", "bias"): bias,
        ("batch_stats", "mean"): mean,
        ("batch_stats", "var"): variance,
    }
    return {key: np.array(array, np.float32) for key, array in named.items()}


def _modules(variables: Tree) -> Modules:
    modules: Modules = {}
    for collection, members in variables.items():
        for module, tensors in members.items():
            modules.setdefault(module, {}).update(
                {(collection, name): array for name, array in tensors.items()}
            )
    return modules


def _collections(modules: Modules) -> Variables:
    variables: Variables = {"params": {}, "batch_stats": {}}
    for module, tensors in modules.items():
        for (collection, name), array in tensors.items():
            variables[collection].setdefault(module, {})[name] = array
    return variables


def _check(architecture: Architecture, variables: Tree) -> None:
    """Raise ValueError if the modules or shapes of the variables are not those of the architecture."""
    for collection, modules in expected_shapes(architecture).items():
        given = variables.get(collection, {})
        if set(given) != set(modules):
            raise ValueError(
                f"inherited weights: {collection} differ from the architecture's in the modules "
                f"{sorted(set(given) ^ set(modules))[:4]}"
            )
        for module, tensors in modules.items():
            shapes = {name: np.shape(array) for name, array in given[module].items()}
            if shapes != tensors:
                raise ValueError(
                    f"inherited weights: {collection} of {module} have the shapes {shapes}, but the "
                    f"architecture needs {tensors}"
                )

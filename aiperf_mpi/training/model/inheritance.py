# SPDX-License-Identifier: Apache-2.0
"""Weights that a child inherits from its parent: each morph as a transformation of the parent's variables.

With running statistics (inference) the child computes the function of its parent, up to rounding: `wider`
repeats channels (Net2Net: Chen et al., 2016), `deeper` begins as the identity, `kernel` pads with zeros,
`skip` adds nothing (network morphism: Wei et al., 2016). `function_difference` measures it. See
docs/morphisms.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from aiperf_mpi.network.architecture import Architecture, Morph
from aiperf_mpi.training.model.images import normalise
from aiperf_mpi.training.model.initial import Variables
from aiperf_mpi.training.model.resnet import NORM_EPSILON, Tree, expected_shapes, module_name, network

#: The larger share of a repeated channel that one of its two copies has in a consumer, at most. Equal shares
#: would give both copies the same gradients for ever, and a channel repeated for nothing.
LARGEST_SHARE = 0.75

#: Least variance that the norm of a new identity assumes of a channel, so that a dead one does not scale by
#: 0.
LEAST_VARIANCE = 1e-3

#: Tensors of a module: (collection, name in it) -> array.
Tensors = dict[tuple[str, str], np.ndarray]

#: The tensors of each module by its name.
Modules = dict[str, Tensors]


def inherited_variables(
    parent: Architecture, variables: Tree, morphs: Sequence[Morph], rng: np.random.Generator
) -> Variables:
    """The variables of the parent's child, which computes the same function in inference mode.

    Arguments:
        parent: the architecture that `variables` belong to.
        variables: collections `params` and `batch_stats` (float32), as a checkpoint gives them; never
            written.
        morphs: what leads from the parent to the child, in order, the kernels of hyperparameter optimisation
            included.
        rng: the stream (`streams.INIT` of the child's trial) of what is drawn: projections and the shares of
            copies.

    Returns the collections of the child, as `expected_shapes` lists them; arrays that no morph changes are
    shared. Raises ValueError naming the first variable whose shape is not the parent's, MorphError for a
    morph that does not fit.
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
    """How far the child's function is from its parent's: the largest difference of their logits on the same
    images, over the parent's largest logit (absolute values). In inference mode, float32 throughout.

    Both networks run layer by layer, without a program of their own: its compilation would take longer than
    this, and the few shapes that a child has and no network before it are compiled once in a process.

    Arguments:
        images: uint8 [N, H, W, C]; mean, deviation: as in `StepSettings`.

    Returns infinity where a logit is no finite number, or where only the parent's are all 0.
    """
    # An accelerator would multiply float32 in fewer bits, and see differences where there are none.
    with jax.default_matmul_precision("highest"):
        inputs = normalise(jnp.asarray(images), mean, deviation)
        outputs = [
            np.asarray(network(architecture).apply(variables, inputs, train=False), np.float64)
            for architecture, variables in ((parent, parent_variables), (child, child_variables))
        ]
    difference, scale = np.abs(outputs[1] - outputs[0]).max(), np.abs(outputs[0]).max()
    if not difference:
        return 0.0
    return float(difference / scale) if scale and np.isfinite(difference) else math.inf


# -- the morphs: each returns the tensors of the network behind it ---------------------------------


def _wider(
    before: Architecture, after: Architecture, morph: Morph, modules: Modules, rng: np.random.Generator
) -> Modules:
    """Every channel of what doubles is there twice, `channels + channels` in that order, and consumers share
    it out.

    Which layers double, through additions and norms, and which consume them, shows in the two lists of
    layers.
    """
    changed, old = dict(modules), {layer.name: layer for layer in before.layers()}
    for layer in after.layers():
        tensors = changed.get(module_name(layer.name))
        if tensors is None:
            continue
        was = old[layer.name]
        if layer.kind != "batch_norm" and layer.in_shape[2] != was.in_shape[2]:
            tensors = _shared_out(tensors, rng)
        if layer.out_shape[2] != was.out_shape[2]:
            # The output channels are the last axis of every tensor.
            tensors = {key: np.concatenate([array, array], axis=-1) for key, array in tensors.items()}
        changed[module_name(layer.name)] = tensors
    return changed


def _shared_out(tensors: Tensors, rng: np.random.Generator) -> Tensors:
    """A consumer (convolution or dense layer) of inputs that are there twice: its weights in two unequal
    parts.

    The second part is what the first leaves, so that they add up to the weights but for one rounding.
    """
    kernel = tensors["params", "kernel"]
    shares = rng.uniform(1 - LARGEST_SHARE, LARGEST_SHARE, (kernel.shape[-2], 1)).astype(np.float32)
    first = kernel * shares
    return tensors | {("params", "kernel"): np.concatenate([first, kernel - first], axis=-2)}


def _deeper(
    before: Architecture, after: Architecture, morph: Morph, modules: Modules, rng: np.random.Generator
) -> Modules:
    """An identity behind a ReLU, whose output is not negative, so that the new unit's own ReLU changes
    nothing.

    Its norm takes off and puts back the mean and the deviation of that output, as far as the parent's norms
    tell them: with running statistics any values would do, but with these a training step finds the function,
    too.
    """
    new = before.unit_count
    tag = f"unit{new:03d}"
    filters = next(unit.filters for unit in after.units if unit.id == new)
    centre = (morph.kernel - 1) // 2
    kernel = np.zeros((morph.kernel, morph.kernel, filters, filters), np.float32)
    kernel[centre, centre] = np.eye(filters, dtype=np.float32)
    mean, variance = _output_moments(before, modules)[morph.a]
    variance = np.maximum(variance, LEAST_VARIANCE)

    # The new unit is the source of what was added from the old one.
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
    """A branch that adds nothing yet: its norm scales by 0, and a projection in front of it begins as
    He's."""
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
    """The old kernel stands in the new one where its taps meet the same pixels, among zeros.

    A kernel of k begins (k-1)//2 pixels before the output's, whatever the stride, so it moves by the
    difference.
    """
    name = f"unit{morph.a:03d}_conv"
    kernel = modules[name]["params", "kernel"]
    was = len(kernel)
    offset = (morph.kernel - 1) // 2 - (was - 1) // 2
    grown = np.zeros((morph.kernel, morph.kernel, *kernel.shape[2:]), np.float32)
    grown[offset : offset + was, offset : offset + was] = kernel
    return modules | {name: {("params", "kernel"): grown}}


_TRANSFORMATIONS = {"deeper": _deeper, "wider": _wider, "skip": _skip, "kernel": _kernel}


# -- what a unit's output looks like ---------------------------------------------------------------


def _output_moments(architecture: Architecture, modules: Modules) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of each channel behind the ReLU of each unit, by its id, taken from the norms
    (float64).

    A batch norm's output has the mean `bias` and the deviation `scale`. Its values are taken for normal, and
    terms of an addition for independent; then a ReLU leaves the moments of a rectified normal distribution.
    """
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for unit in architecture.units:
        mean, variance = _norm_moments(modules[f"unit{unit.id:03d}_norm"])
        for edge in unit.edges:
            branch = (
                found[edge.source]
                if edge.kind == "identity"
                else _norm_moments(modules[f"{_branch(unit.id, edge.source)}_norm"])
            )
            mean, variance = mean + branch[0], variance + branch[1]
        found[unit.id] = _rectified(mean, variance)
    return found


def _norm_moments(tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    return tensors["params", "bias"].astype(np.float64), tensors["params", "scale"].astype(np.float64) ** 2


def _rectified(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of max(x, 0) where x is normal; for variance 0 those of the constant."""
    deviation = np.sqrt(np.maximum(variance, 1e-12))
    ratio = mean / deviation
    density = np.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    positive = np.array([math.erfc(-value / math.sqrt(2)) / 2 for value in ratio])
    first = mean * positive + deviation * density
    second = (mean**2 + variance) * positive + mean * deviation * density
    return first, np.maximum(second - first**2, 0)


# -- names and collections -------------------------------------------------------------------------


def _branch(unit: int, source: int) -> str:
    """What the modules of an addition's branch begin with; the units' list knows max-pooling by a negative
    source."""
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
    """Raises ValueError where the variables are not those of the architecture."""
    for collection, modules in expected_shapes(architecture).items():
        found = variables.get(collection, {})
        if set(found) != set(modules):
            raise ValueError(
                f"inherited weights: {collection} differ from the architecture's in the modules "
                f"{sorted(set(found) ^ set(modules))[:4]}"
            )
        for module, tensors in modules.items():
            shapes = {name: np.shape(array) for name, array in found[module].items()}
            if shapes != tensors:
                raise ValueError(
                    f"inherited weights: {collection} of {module} have the shapes {shapes}, but the "
                    f"architecture needs {tensors}"
                )

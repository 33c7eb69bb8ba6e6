# SPDX-License-Identifier: Apache-2.0
"""The network in numpy, without Flax and without the list of layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.model.layers import NORM_EPSILON
from aiperf_mpi.training.model.resnet import module_name


def plain_logits(architecture: Architecture, variables: dict, images: np.ndarray) -> np.ndarray:
    """Compute the logits in float64 with loops over the kernel, from the units and not from the layers."""
    params, stats = variables["params"], variables["batch_stats"]

    def conv(x: np.ndarray, name: str, stride: int) -> np.ndarray:
        weights = params[module_name(name)]["kernel"].astype(np.float64)
        k, size = len(weights), x.shape[1]
        before, steps = (k - 1) // 2, -(-size // stride)
        padded = np.zeros((len(x), size + k - 1, size + k - 1, x.shape[3]))
        padded[:, before : before + size, before : before + size] = x
        out = np.zeros((len(x), steps, steps, weights.shape[3]))
        for i in range(k):
            for j in range(k):
                rows, columns = (
                    slice(i, i + stride * (steps - 1) + 1, stride),
                    slice(j, j + stride * (steps - 1) + 1, stride),
                )
                out += padded[:, rows, columns] @ weights[i, j]
        return out

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        p, s = params[module_name(name)], stats[module_name(name)]
        return (x - s["mean"]) / np.sqrt(s["var"].astype(np.float64) + NORM_EPSILON) * p["scale"] + p["bias"]

    def pool(x: np.ndarray) -> np.ndarray:
        steps = -(-x.shape[1] // 2)
        padded = np.full((len(x), 2 * steps + 1, 2 * steps + 1, x.shape[3]), -np.inf)
        padded[:, 1 : 1 + x.shape[1], 1 : 1 + x.shape[2]] = x
        windows = [
            padded[:, i : i + 2 * steps : 2, j : j + 2 * steps : 2] for i in range(3) for j in range(3)
        ]
        return np.max(windows, axis=0)

    x = images.astype(np.float64)
    outputs: dict[Any, Any] = {}
    for unit in architecture.units:
        tag = f"unit{unit.id:03d}"
        x = norm(conv(x, f"{tag}.conv", unit.stride), f"{tag}.norm")
        for edge in unit.edges:
            origin = "pool" if edge.source == -1 else f"{edge.source:03d}"
            branch = outputs[edge.source]
            if edge.kind == "conv":
                branch = conv(branch, f"{tag}.from{origin}.conv", edge.stride)
            x = x + (branch if edge.kind == "identity" else norm(branch, f"{tag}.from{origin}.norm"))
        x = outputs[unit.id] = np.maximum(x, 0)
        if unit.id == architecture.pool_after:
            x = outputs[-1] = pool(x)
    return x.mean(axis=(1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]

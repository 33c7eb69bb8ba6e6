# SPDX-License-Identifier: Apache-2.0
"""A second artificial landscape of another shape, written after the search was finished, to test for
overfitting to the first.

A chain is as good as its weakest stage. The first landscape is a sum of smooth parts; here stages do not add
up. The score is a soft minimum over four stage qualities, each a ridge in the stage's own depth, width and
kernel. A penalty for operations beyond a budget is subtracted. A saturating bonus for skips and steps that no
smooth kernel can predict are added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from aiperf_mpi.network.architecture import Architecture
from tests.helpers.search.landscape import Profile, Standardised, population, profile

#: Sharpness of the soft minimum, and the free operations (doublings of the initial network's).
SHARPNESS, FREE_DOUBLINGS = 2.0, 2.5


@dataclass(frozen=True)
class Bottleneck(Standardised):
    """The landscape; see the module."""

    def score(self, architecture: Architecture) -> float:
        """See landscape.Surface."""
        centre, scale = self._scale
        return (self._raw(profile(architecture)) - centre) / scale

    @cached_property
    def _scale(self) -> tuple[float, float]:
        raw = np.array(
            [self._raw(profile(architecture)) for architecture in population(self.base, self.runs)]
        )
        return float(raw.mean()), float(raw.std())

    @cached_property
    def _coefficients(self) -> dict[str, np.ndarray]:
        rng, stages = np.random.default_rng((self.seed, 23)), len(self.base.blocks)
        direction = np.abs(rng.normal(size=(stages, 3)))
        return {
            "direction": direction / np.linalg.norm(direction, axis=1, keepdims=True),
            "wanted": rng.uniform(1.0, 5.0, stages),
            "start": rng.normal(0.0, 0.5, stages),
            "skip": rng.uniform(0.2, 0.8, 1),
            "steps": rng.normal(0.0, 0.25, (stages, 8)),
        }

    def _raw(self, of: Profile) -> float:
        c = self._coefficients
        edges = np.concatenate([[0], np.cumsum([3 * blocks for blocks in self.base.blocks])]) + 1

        # Quality of a stage: a ridge along the direction in which it should grow, with a plateau beyond
        # `wanted`.
        qualities = []
        for stage, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            grown = np.array(
                [of.depth[low:high].sum(), 2.0 * of.width[low:high].mean(), of.kernel[low:high].sum()]
            )
            along = float(grown @ c["direction"][stage])
            across = float(np.linalg.norm(grown - along * c["direction"][stage]))
            quality = 2.0 * math.tanh(along / c["wanted"][stage]) - 0.3 * across
            step = c["steps"][stage][int(of.depth[low:high].sum()) % 8]
            qualities.append(c["start"][stage] + quality + step)

        weakest = -math.log(float(np.mean(np.exp(-SHARPNESS * np.array(qualities))))) / SHARPNESS
        over = max(0.0, of.macs - profile(Architecture(self.base)).macs - FREE_DOUBLINGS)
        return weakest - over**2 + float(c["skip"][0]) * (1.0 - 0.6 ** len(of.skips))

# SPDX-License-Identifier: Apache-2.0
"""How a copy of ILSVRC2012 is recognised, and when it is whole; `config/ilsvrc.py` has the facts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from aiperf_mpi.config.ilsvrc import ILSVRC2012
from aiperf_mpi.data.manifest import TRAIN, VAL
from aiperf_mpi.paper import IMAGENET_IMAGES

NAME = ILSVRC2012.name

#: A class is a synset of WordNet: a noun and its offset.
SYNSET = re.compile(r"n[0-9]{8}")

#: Number of classes; the first and the last of them.
CLASSES, FIRST, LAST = ILSVRC2012.classes, "n01440764", "n15075141"

#: Least and most pictures of a class, for each split.
OF_A_CLASS = dict(zip((TRAIN, VAL), ILSVRC2012.of_a_class, strict=True))

#: The published archives, and their MD5.
MD5 = dict(ILSVRC2012.md5)

#: Classes that are named as an example.
_NAMED = 3


def is_ilsvrc(classes: Sequence[str]) -> bool:
    """Whether these are the classes of ILSVRC2012, as far as their number, form and range tell."""
    return (
        len(classes) == CLASSES
        and (classes[0], classes[-1]) == (FIRST, LAST)
        and all(map(SYNSET.fullmatch, classes))
    )


def missing(classes: Sequence[str], labels: Mapping[str, np.ndarray]) -> tuple[int, str]:
    """Return how many pictures a copy of ILSVRC2012 lacks or has too many, and where, in words.

    Arguments:
        labels: label of each picture, for each split.
    """
    number, words = 0, []
    for split, whole in zip((TRAIN, VAL), IMAGENET_IMAGES, strict=True):
        count, counts = len(labels[split]), np.bincount(labels[split], minlength=len(classes))
        least, most = OF_A_CLASS[split]
        odd = [
            (name, int(its)) for name, its in zip(classes, counts, strict=True) if not least <= its <= most
        ]
        beyond = sum(max(least - its, its - most) for _, its in odd)
        number += max(abs(whole - count), beyond)
        if count != whole:
            words.append(f"{split} has {count} pictures instead of {whole}")
        if odd:
            classes_of = "1 class" if len(odd) == 1 else f"{len(odd)} classes"
            words.append(f"{classes_of} of {split}: {_named(odd, least, most)}")
    return number, "; ".join(words)


def _named(odd: Sequence[tuple[str, int]], least: int, most: int) -> str:
    """Return some classes with their number of pictures, and what it should be."""
    some = ", ".join(f"{name} has {its}" for name, its in odd[:_NAMED]) + (
        ", ..." if len(odd) > _NAMED else ""
    )
    return f"{some} instead of {least}" + (f" to {most}" if most > least else "")

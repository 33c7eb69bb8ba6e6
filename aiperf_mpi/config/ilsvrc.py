# SPDX-License-Identifier: Apache-2.0
"""What is public of ILSVRC2012, the data set of the benchmark: its synsets, counts, labels and archives.

Nobody can compare pixels: decoders differ. So a packed set is compared with these facts alone.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from aiperf_mpi.paper import IMAGENET_CLASSES, IMAGENET_IMAGES

#: How the manifest of a packed set names the MD5 that it has computed of an archive.
MD5_KEY = "md5 of "


@dataclass(frozen=True, slots=True)
class Reference:
    """The public facts of a data set, with which a packed set of it is compared.

    Attributes:
        name: its name for people.
        images: pictures for training and for validation.
        classes: number of its classes.
        classes_sha256: :func:`hash_of_lines` of their names, sorted.
        of_a_class: least and most pictures of a class, for training and for validation.
        labels_sha256: :func:`hash_of_lines` of name and class of each validation picture, sorted.
        side: height and width of a packed picture.
        md5: MD5 of the published archives, by name.
    """

    name: str
    images: tuple[int, int]
    classes: int
    classes_sha256: str
    of_a_class: tuple[tuple[int, int], tuple[int, int]]
    labels_sha256: str
    side: int
    md5: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


#: ILSVRC2012. Counts: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge (2015), Table 2,
#: and the read-me file of the development kit. No table of the training pictures of each class is published
#: on its own, so that their bounds are compared, and their sum. Synsets and labels: the list of the
#: validation pictures in soumith/imagenetloader.torch (valprep.sh, commit b81dbb17), whose 50,000 labels are
#: those of the package imagenet-classes 0.2.1. MD5: the download page of ImageNet, and torchvision.
#: The side is our own choice: the shorter side of 256 of the usual evaluation, from which 224 are cropped.
ILSVRC2012 = Reference(
    name="ILSVRC2012",
    images=IMAGENET_IMAGES,
    classes=IMAGENET_CLASSES,
    classes_sha256="385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd",
    of_a_class=((732, 1300), (50, 50)),
    labels_sha256="8ffbd939061e51b43eb45b5cf0016ecada598dd57e523cd78863f63aed666b6c",
    side=256,
    md5=MappingProxyType(
        {
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
            "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
        }
    ),
)


def hash_of_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines, joined by line feeds, in hexadecimal digits."""
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def hash_of_labels(names: Iterable[str], classes: Iterable[str]) -> str:
    """Return the hash of the class of each picture: lines of the file's name without ending, and the class.

    `names` are paths in the source, `classes` the names of the classes; the order does not matter.
    """
    stems = (posixpath.splitext(posixpath.basename(name))[0] for name in names)
    return hash_of_lines(sorted(f"{stem} {cls}" for stem, cls in zip(stems, classes, strict=True)))


def differences(
    reference: Reference,
    classes: Sequence[str],
    counts: tuple[Sequence[int], Sequence[int]],
    labels_sha256: str,
    source: Mapping[str, str],
) -> Iterator[str]:
    """Yield in words where a packed set differs from the reference.

    Arguments:
        classes: names of its classes, in the order of the labels.
        counts: pictures of each class for training and for validation, by label.
        labels_sha256: :func:`hash_of_labels` of its validation pictures.
        source: what its manifest says of the source.
    """
    if len(classes) != reference.classes:
        yield f"it has {len(classes)} classes, but {reference.name} has {reference.classes}"
    elif hash_of_lines(classes) != reference.classes_sha256:
        yield f"its classes are not the sorted ones of {reference.name}"
    for split, its, whole, bounds in zip(
        ("training", "validation"), counts, reference.images, reference.of_a_class, strict=True
    ):
        if sum(its) != whole:
            yield f"it has {sum(its)} {split} pictures, but {reference.name} has {whole}"
        least, most = bounds
        if odd := [label for label, count in enumerate(its) if not least <= count <= most]:
            many = f"{odd[0]} and {len(odd) - 1} more have" if len(odd) > 1 else f"{odd[0]} has"
            right = str(least) if least == most else f"{least} to {most}"
            yield f"class {many} {its[odd[0]]} {split} pictures instead of {right}"
    if labels_sha256 != reference.labels_sha256:
        yield f"names and classes of its validation pictures are not those of {reference.name}"
    for name, md5 in reference.md5.items():
        if (its_md5 := source.get(MD5_KEY + name, md5)) != md5:
            yield f"{name} has the MD5 {its_md5}, but the published one is {md5}"

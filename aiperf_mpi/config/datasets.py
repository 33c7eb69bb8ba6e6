# SPDX-License-Identifier: Apache-2.0
"""The data sets that `data.name` can name, one line each.

A new data set needs a line in DATASETS and a module `aiperf_mpi/data/NAME.py` with the functions `check` and
`load` (see :mod:`aiperf_mpi.data.catalogue`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aiperf_mpi.paper import IMAGENET_CLASSES, IMAGENET_IMAGES

#: Bytes of an image's label, which is an int32.
LABEL_BYTES = 4

#: Choices of `data.augmentation`: as the data set needs it, or one form for any data set; see
#: `training.model.augmentation.augment`.
AUTO, AUGMENTATIONS = "auto", ("resized_crop", "crop", "cifar", "none")


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which a run uses a data set: numbers of training and validation images, side, channels."""

    train_images: int
    val_images: int
    image_size: int
    channels: int


@dataclass(frozen=True, slots=True)
class DatasetLimits:
    """The settings of section `data` that a data set allows; an empty tuple allows every value.

    Attributes:
        images: number of its training and of its validation images; a run may use fewer of each.
        classes, channels, sizes: allowed values of `data.classes`, `data.channels` and `data.image_size`.
        in_memory: whether each trainer holds all images in memory, in the network's size.
        packed: whether it is a folder that `pack` has made, whose manifest decides some settings.
        made: whether a step makes the images, so that each trainer holds their labels alone.
        augmentation: what `data.augmentation = "auto"` means, one of AUGMENTATIONS.
        hashes: SHA-256 of its content in forms in which it is known.
    """

    images: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    in_memory: bool = True
    packed: bool = False
    made: bool = False
    augmentation: str = "none"
    hashes: Mapping[Form, str] = field(default_factory=dict)


#: scikit-learn's digits, whole, in the size of the demo; the same since version 0.1.
_DIGITS = {Form(1_437, 360, 32, 1): "d887b026937c204d826340c4757bb1bda28885fbfa68b4af77e476171b6ec443"}

#: Every data set by its name, which is also the name of its module in aiperf_mpi/data.
DATASETS: Mapping[str, DatasetLimits] = {
    "digits": DatasetLimits(images=(1_437, 360), classes=(10,), channels=(1, 3), hashes=_DIGITS),
    # Half of the numbers of 32 bits are for training, half for validation.
    "synthetic": DatasetLimits(images=(2**31, 2**31), in_memory=False, made=True),
    "cifar10": DatasetLimits(
        images=(50_000, 10_000), classes=(10,), channels=(3,), sizes=(32,), augmentation="cifar"
    ),
    "imagenet": DatasetLimits(
        images=IMAGENET_IMAGES,
        classes=(IMAGENET_CLASSES,),
        channels=(3,),
        in_memory=False,
        packed=True,
        augmentation="resized_crop",
    ),
    "images": DatasetLimits(channels=(3,), in_memory=False, packed=True, augmentation="resized_crop"),
}

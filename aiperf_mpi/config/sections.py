# SPDX-License-Identifier: Apache-2.0
"""The settings of a run, by section, each with its default, its bounds and the rule that applies to it.

Those of the search are in :mod:`aiperf_mpi.config.search`. The defaults are the benchmark's rules:
section 4.5 and Table 4 of the paper (Ren et al., 2021), or the authors' code if the paper gives no value. A
setting without a rule is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiperf_mpi.config.datasets import AUGMENTATIONS, AUTO, DATASETS
from aiperf_mpi.config.setting import DEFAULT, FIXED, SECTION_4_5, TABLE_4, setting
from aiperf_mpi.opcount.forms import FORM_SETS, STEMS
from aiperf_mpi.paper import (
    IMAGENET_IMAGES,
    MIN_DELTA,
    OFFICIAL_SECONDS,
    PATIENCE_BASE,
    PATIENCE_MAX,
    PATIENCE_STEP,
    ROUND_EPOCHS,
    SCHEDULE_EPOCHS,
)

_INT64 = 2**63 - 1

#: Most threads of a trainer that prepare images: Table 4, Parallel transformation.
MOST_WORKERS = 48

#: The longest core phase in seconds: thirty years; the numbers of its ticks and epochs fit into integers.
_LONGEST = 1e9


@dataclass(frozen=True, slots=True)
class Run:
    """The run as a whole."""

    preset: str = setting("", "name of the preset below the other sources; empty for the defaults alone")
    seed: int = setting(2021, "seed of every random stream", low=0, high=_INT64)
    time_limit: float = setting(
        OFFICIAL_SECONDS,
        "length of the core phase in seconds",
        low=1,
        high=_LONGEST,
        rule=FIXED,
        source="authors' README, section 2",
        least=True,
    )
    #: No rule of its own: the class is official only if it is true, and before the core time it becomes so
    #: where nothing is missing.
    official: bool = setting(
        False,
        "refuse to start where an official run needs something that is missing; false: run a trial then",
    )
    output: str = setting(
        "", "new folder of the result, on a file system that every rank can reach; empty: named by the time"
    )
    stuck_seconds: float = setting(
        0.0,
        "seconds after which a step that does not end fails its trial, and its replica retires; a "
        "compilation has six times as long; 0: 20 times the median step, at least 300",
        low=0,
        high=_LONGEST,
    )
    tick: float = setting(
        360.0, "seconds between samples of the score", low=0.1, rule=FIXED, source=SECTION_4_5
    )
    view: str = setting(
        "auto", "progress display of rank 0: a live table, or plain lines", choices=("auto", "live", "plain")
    )


@dataclass(frozen=True, slots=True)
class Data:
    """Data set, and number and shape of its images."""

    name: str = setting(
        "imagenet", "name of the data set", choices=DATASETS, rule=FIXED, source=f"{TABLE_4}, Dataset"
    )
    path: str = setting("", "folder or file of the data set; empty if it needs none")
    image_size: int = setting(
        224, "height and width in pixels", low=8, high=4096, rule=FIXED, source=SECTION_4_5
    )
    channels: int = setting(3, "channels of an image", low=1, high=16, rule=FIXED, source=SECTION_4_5)
    classes: int = setting(
        1000, "classes of the labels", low=2, high=2**31 - 1, rule=FIXED, source=SECTION_4_5
    )
    train_images: int = setting(
        IMAGENET_IMAGES[0], "images of the training set", low=1, high=2**40, rule=FIXED, source=SECTION_4_5
    )
    val_images: int = setting(
        IMAGENET_IMAGES[1], "images of the validation set", low=1, high=2**40, rule=FIXED, source=SECTION_4_5
    )
    stored_size: int = setting(
        0, "height and width of the stored images, which are cropped; 0: image_size", low=0, high=4096
    )
    augmentation: str = setting(
        AUTO,
        "how training images are cropped and mirrored at random; auto: as the data set needs it",
        choices=(AUTO, *AUGMENTATIONS),
        rule=DEFAULT,
        source="docs/augmentation.md",
    )
    workers: int = setting(
        0,
        "threads of a trainer that prepare images; 0: one for each core that it may use, at most 48",
        low=0,
        high=MOST_WORKERS,
    )

    stage: str = setting(
        "", "folder of each node to which packed pictures are copied before the core time; empty: none"
    )
    check_hashes: bool = setting(True, "check the hashes of packed pictures before the core time")

    @property
    def stored_side(self) -> int:
        """Height and width of the images that arrive on a device."""
        return self.stored_size or self.image_size

    def threads(self, cores: int) -> int:
        """Return the threads of a trainer that prepare images, where it may use so many cores."""
        return self.workers or max(1, min(cores, MOST_WORKERS))

    @property
    def augmentation_form(self) -> str:
        """The augmentation, one of AUGMENTATIONS: what `auto` means for this data set."""
        return DATASETS[self.name].augmentation if self.augmentation == AUTO else self.augmentation


@dataclass(frozen=True, slots=True)
class Model:
    """Initial architecture, and initial weights of every network."""

    width: int = setting(
        64, "filters of the stem", low=1, high=4096, rule=FIXED, source=f"{TABLE_4}, Initial architecture"
    )
    blocks: tuple[int, ...] = setting(
        (3, 4, 6, 3),
        "blocks of each stage",
        low=1,
        high=100,
        rule=FIXED,
        source=f"{TABLE_4}, Initial architecture",
    )
    initial_weight: str = setting(
        "he",
        "initial weights: he, or inherit the weights of the parent",
        choices=("he", "inherit"),
        rule=DEFAULT,
        source=f"{TABLE_4}, Initial weight",
    )
    zero_gamma: bool = setting(
        False, "start each block's last batch norm at zero", rule=DEFAULT, source=f"{TABLE_4}, Initial weight"
    )

    @property
    def inherits(self) -> bool:
        """Whether children start from their parents' weights."""
        return self.initial_weight == "inherit"


@dataclass(frozen=True, slots=True)
class Train:
    """Training of a candidate: SGD with momentum, linear decay, categorical cross entropy."""

    #: No rule: Table 4 has 448 as a default, and HPO tunes it (section 4.5).
    batch_per_device: int = setting(448, "images of one step on one device", low=1, high=2**20)
    lr: float = setting(
        0.1, "initial learning rate", low=1e-12, high=1e3, rule=DEFAULT, source=f"{TABLE_4}, Learning rate"
    )
    momentum: float = setting(
        0.9, "momentum", low=0, high=0.9999, rule=DEFAULT, source=f"{TABLE_4}, Optimizer"
    )
    label_smoothing: float = setting(
        0.1,
        "label smoothing of the loss",
        low=0,
        high=0.99,
        rule=DEFAULT,
        source="authors' code, Loss function",
    )
    epochs: int = setting(
        SCHEDULE_EPOCHS,
        "length of the linear decay, and largest number of epochs of a trial",
        low=1,
        high=100_000,
        rule=DEFAULT,
        source=f"{TABLE_4}, Maximum epoch",
    )
    round_epochs: tuple[int, ...] = setting(
        ROUND_EPOCHS,
        "epochs of round 1, 2, ...; the last number holds for all later rounds",
        low=1,
        high=100_000,
        rule=DEFAULT,
        source="authors' code",
    )
    patience_base: int = setting(
        PATIENCE_BASE,
        "patience of round 1 in epochs",
        low=1,
        high=100_000,
        rule=DEFAULT,
        source="authors' code",
    )
    patience_step: int = setting(
        PATIENCE_STEP,
        "epochs by which the patience grows with each round",
        low=0,
        high=100_000,
        rule=DEFAULT,
        source="authors' code",
    )
    patience_max: int = setting(
        PATIENCE_MAX, "largest patience in epochs", low=1, high=100_000, rule=DEFAULT, source="authors' code"
    )
    min_delta: float = setting(
        MIN_DELTA,
        "smallest fall of the validation loss that counts as progress",
        low=0,
        high=100,
        rule=DEFAULT,
        source="authors' code",
    )
    precision: str = setting(
        AUTO,
        "precision of activations; auto: the one in which the devices multiply fastest, float32 on CPUs; the "
        "lowest that Table 4 allows is FP-16",
        choices=(AUTO, "float32", "bfloat16", "float16"),
    )
    #: No rule: all forms compute the same function of the same weights; the paper counts this as speed.
    stem: str = setting(
        "plain", "form of the first convolution; the operations of the plain form are credited", choices=STEMS
    )
    forms: str = setting(
        AUTO,
        "forms of the other layers; lean ones read and write less memory; auto: by the devices",
        choices=(AUTO, *FORM_SETS),
    )
    sync_statistics: bool = setting(
        False,
        "compute batch norms' statistics over the images of all devices in a step",
        rule=DEFAULT,
        source="authors' code",
    )
    in_flight_steps: int = setting(2, "steps dispatched ahead of the running step", low=1, high=1024)


@dataclass(frozen=True, slots=True)
class Parallel:
    """Division of the machine among ranks, and use of the devices."""

    trainers_per_node: int = setting(1, "trainer ranks on a node", low=1, high=4096)
    trainers_per_replica: int = setting(1, "trainers that train each candidate together", low=1, high=2**20)
    address: str = setting(
        "",
        "network between the trainers of a replica: an interface, a network such as 10.1.0.0/16, a host name "
        "or an address; empty: the first on which all reach one another",
    )
    dispatch: str = setting(
        "auto",
        "method to run steps on a replica's devices; auto: pmap for one process, shard_map for several",
        choices=("auto", "pmap", "shard_map"),
    )
    ranks_per_node: int = setting(
        0, "ranks of a node, to divide a host into several; 0: a node is a host", low=0, high=2**20
    )
    host_devices: int = setting(
        0, "CPU devices of a trainer without accelerators; 0: as JAX detects", low=0, high=1024
    )
    history_capacity: int = setting(2**17, "number of records in the history window", low=16, high=2**31)
    compile_ahead: str = setting(
        "auto",
        "prepare the next candidate while the current one trains; auto: unless CPUs train",
        choices=("auto", "on", "off"),
    )
    cache: str = setting(
        "", "folder of each node for compiled programs; empty: a new one in TMPDIR, removed at the end"
    )
    prewarm: bool = setting(
        False, "compile the convolutions that morphs can reach during the first trials; for accelerators"
    )
    memory_limit: int = setting(
        0, "bytes of a device that a step may use; 0: as the device reports", low=0, high=2**50
    )
    poll_seconds: float = setting(0.05, "longest time in seconds between two calls of MPI", low=0.001, high=1)


@dataclass(frozen=True, slots=True)
class Result:
    """Files of the result, and the error that makes an official result valid."""

    fsync_seconds: float = setting(
        1.0, "shortest time in seconds between two syncs of the journal", low=0.1, high=60
    )
    partial_seconds: float = setting(
        30.0, "shortest time in seconds between two partial results", low=1, high=3600
    )
    keep_checkpoints: int = setting(1, "number of best weights that each replica keeps", low=1, high=1000)
    checkpoint_seconds: float = setting(
        600.0,
        "shortest time in seconds between two checkpoints of a trial that trains, after an epoch; 0: none",
        low=0,
        high=_LONGEST,
    )
    max_error: float = setting(
        0.30,
        "largest best error of an official result",
        low=0,
        high=1,
        rule=FIXED,
        source=f"{TABLE_4}, Maximum error",
    )


@dataclass(frozen=True, slots=True)
class Monitor:
    """Measurement of the machine during the run."""

    #: RAPL's counters wrap: on some processors at 65.5 kJ, which 500 W reach in 131 s.
    seconds: float = setting(
        30.0, "seconds between two samples of use and power on a node; 0: none", low=0, high=60
    )

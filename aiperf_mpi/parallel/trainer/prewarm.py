# SPDX-License-Identifier: Apache-2.0
"""Compile, while the first trials train, the convolutions that their descendants may have."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.trainer.state import TrainerState
from aiperf_mpi.training.steps.convolutions import Convolution, compile_convolution, to_compile


class Prewarm:
    """Compile the convolutions within one morph of the initial network, for each batch size that a candidate
    may have.

    The replica's thread compiles one after the other, whenever it is free and no candidate is in preparation;
    `advance` is called between the replica's steps. In a run that ends before all are compiled, the
    candidates compile the rest. Where one fails, mostly for lack of memory, all of its batch size are left
    out.

    Attributes:
        left: convolutions still to be compiled, each with its batch size.
    """

    def __init__(self, state: TrainerState) -> None:
        config = state.context.config
        kernels, batches = (config.hpo.kernels, config.hpo.batches) if config.hpo.enabled else ((), ())
        self.left: list[tuple[Convolution, int]] = []
        if config.parallel.prewarm:
            batches = (config.train.batch_per_device, *batches)
            self.left = to_compile(Architecture(config.base), config.search.morphs, kernels, batches)
        self._state = state
        self._compiled: Future[None] | None = None
        self._batch = 0

    def advance(self) -> None:
        """Start the next convolution, if a trial trains, the thread is free, and no preparation is under
        way."""
        state = self._state
        if self._compiled is not None and self._compiled.done():
            failure, self._compiled = self._compiled.exception(), None
            if failure is not None:
                # Candidates compile all the same, only later.
                self.left = [entry for entry in self.left if entry[1] != self._batch]
                ranks = state.context.ranks
                write_error(
                    f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: parallel.prewarm leaves out batches "
                    f"of {self._batch}: {type(failure).__name__}: {failure}\n"
                )
        if not self.left or not state.training or state.preparing or state.worker.busy:
            return
        precision, resources = state.context.config.train.precision, state.resources
        device = resources.devices[resources.mine][0]
        convolution, self._batch = self.left.pop(0)
        work = partial(compile_convolution, convolution, self._batch, precision, device)
        self._compiled = state.worker.submit(work)

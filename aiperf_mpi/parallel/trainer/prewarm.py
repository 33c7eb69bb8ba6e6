# SPDX-License-Identifier: Apache-2.0
"""While the first trials train, the replica's thread compiles the convolutions that their descendants may
have."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.launch.job import write_error
from aiperf_mpi.parallel.trainer.state import TrainerState
from aiperf_mpi.training.steps.convolutions import Convolution, compile_convolution, to_compile


class Prewarm:
    """The convolutions within a morph of the initial network, with each batch size that a candidate may have,
    one after the other whenever the thread is free and no candidate is on its way; to be advanced between a
    replica's steps. `left` are those, with their batches, that are still to come: a run that is too short for
    all of them compiles the rest with its candidates. Where one fails, for want of memory as a rule, those of
    its batch size are left out."""

    def __init__(self, replica: TrainerState) -> None:
        config = replica.context.config
        kernels, batches = (config.hpo.kernels, config.hpo.batches) if config.hpo.enabled else ((), ())
        self.left: list[tuple[Convolution, int]] = []
        if config.parallel.prewarm:
            batches = (config.train.batch_per_device, *batches)
            self.left = to_compile(Architecture(config.base), config.search.morphs, kernels, batches)
        self._replica = replica
        self._compiled: Future[None] | None = None
        self._batch = 0

    def advance(self) -> None:
        """Begin with the next convolution, if a trial trains and the thread has nothing else to do, also not
        between the parts of a preparation."""
        replica = self._replica
        if self._compiled is not None and self._compiled.done():
            failure, self._compiled = self._compiled.exception(), None
            if failure is not None:
                # Candidates compile without it, only later.
                self.left = [entry for entry in self.left if entry[1] != self._batch]
                ranks = replica.context.ranks
                write_error(
                    f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: parallel.prewarm leaves out batches "
                    f"of {self._batch}: {type(failure).__name__}: {failure}\n"
                )
        if not self.left or not replica.training or replica.preparing or replica.worker.busy:
            return
        precision, resources = replica.context.config.train.precision, replica.resources
        device = resources.devices[resources.mine][0]
        convolution, self._batch = self.left.pop(0)
        work = partial(compile_convolution, convolution, self._batch, precision, device)
        self._compiled = replica.worker.submit(work)

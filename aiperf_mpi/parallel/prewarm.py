# SPDX-License-Identifier: Apache-2.0
"""While the first trials train, the replica's thread compiles the convolutions that their descendants may have."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

from aiperf_mpi.parallel.comm import write_error
from aiperf_mpi.parallel.replica import Replica
from aiperf_mpi.search.architecture import Architecture
from aiperf_mpi.training.prewarm import Convolution, compile_convolution, reachable


class Prewarm:
    """The convolutions within a morph of the initial network, one after the other whenever the thread is free; to be
    advanced between a replica's steps. `left` are those that are still to come."""

    def __init__(self, replica: Replica) -> None:
        config = replica.context.config
        kernels = config.hpo.kernels if config.hpo.enabled else ()
        self.left: list[Convolution] = []
        if config.parallel.prewarm:
            self.left = reachable(Architecture(config.base), config.search.morphs, kernels)
        self._replica = replica
        self._compiled: Future[None] | None = None

    def advance(self) -> None:
        """Begin with the next convolution, if a trial trains and the thread has nothing else to do."""
        replica = self._replica
        if self._compiled is not None and self._compiled.done():
            failure, self._compiled = self._compiled.exception(), None
            if failure is not None:
                # Candidates compile without it, only later.
                self.left.clear()
                ranks = replica.context.ranks
                write_error(f"aiperf_mpi: rank {ranks.rank} on {ranks.host}: parallel.prewarm ends: "
                            f"{type(failure).__name__}: {failure}\n")  # fmt: skip
        if not self.left or not replica.training or replica.worker.busy:
            return
        train, workshop = replica.context.config.train, replica.workshop
        device = workshop.devices[workshop.mine][0]
        work = partial(compile_convolution, self.left.pop(0), train.batch_per_device, train.precision, device)
        self._compiled = replica.worker.submit(work)

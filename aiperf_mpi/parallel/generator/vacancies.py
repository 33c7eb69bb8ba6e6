# SPDX-License-Identifier: Apache-2.0
"""Which place in a queue the next candidate is made for: a free slot, or that of a stale candidate."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from aiperf_mpi.parallel.generator.staleness import stalest
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.queue import CandidateQueue
from aiperf_mpi.parallel.shared.slots import EMPTY, Slot
from aiperf_mpi.trials.footprint import REPLACING_PART

#: Seconds between two renewals of a reserved slot, well under its lease.
RENEW_SECONDS = 60.0

#: Seconds between two searches for a stale candidate, while there is nothing else to do.
STALE_SECONDS = 1.0


@dataclass(frozen=True)
class Vacancy:
    """The place that a candidate is made for.

    Attributes:
        replica: the replica that will train the candidate.
        generator: index of the generator that makes it, in its queue group.
        queue: of the replica.
        slot: the reserved slot; its ticket is the candidate's round.
        replacing: the slot is not reserved: it was READY with a stale candidate, which may still be taken.
    """

    replica: int
    generator: int
    queue: CandidateQueue
    slot: Slot
    replacing: bool = False


class Vacancies:
    """The vacancies in the queues that one generator serves.

    Arguments:
        context: this rank's.
        generator: index of this generator in its queue group.
        replicas: the replicas it serves, with their queues.
    """

    def __init__(
        self, context: Context, generator: int, replicas: tuple[tuple[int, CandidateQueue], ...]
    ) -> None:
        self._context, self._generator, self._replicas = context, generator, replicas
        self._search_at = self._renew_at = 0.0

    def find(self) -> Vacancy | None:
        """Return a free slot, which is then reserved, or else the slot of a stale candidate, if any."""
        return self._reserve() or self._find_stale()

    def outdated(self, vacancy: Vacancy) -> bool:
        """Whether a replacement is not wanted any more: its slot has changed, or a free slot comes first."""
        if not vacancy.replacing:
            return False
        return not vacancy.queue.still(vacancy.slot) or any(queue.count(EMPTY) for _, queue in self._replicas)

    def renew(self, vacancy: Vacancy) -> Vacancy:
        """Renew the lease of a reserved slot from time to time, as others take the slot back otherwise;
        return the vacancy with its slot as it is now."""
        if vacancy.replacing or time.monotonic() < self._renew_at:
            return vacancy
        self._renew_at = time.monotonic() + RENEW_SECONDS
        slot = vacancy.queue.renew(vacancy.slot)
        return vacancy if slot is None else replace(vacancy, slot=slot)

    def give_up(self, vacancy: Vacancy) -> None:
        """Free the slot, if it is reserved."""
        if not vacancy.replacing:
            vacancy.queue.give_up(vacancy.slot)

    def _reserve(self) -> Vacancy | None:
        """Reserve a free slot of the replica that has the fewest candidates."""
        for replica, queue in sorted(self._replicas, key=lambda item: item[1].count()):
            if (slot := queue.reserve()) is not None:
                return Vacancy(replica, self._generator, queue, slot)
        return None

    def _find_stale(self) -> Vacancy | None:
        """Find, from time to time, the slot of a waiting candidate that knew too few finished trials."""
        context, search, history = (self._context, self._context.config.search, self._context.windows.history)
        now = time.monotonic()
        if search.method == "random" or now < self._search_at:
            return None
        self._search_at = now + STALE_SECONDS

        history.refresh()
        if len(history) > REPLACING_PART * history.capacity:
            return None
        generators = max(1, context.ranks.queue_group_generators)
        stale = stalest(self._replicas, history.summaries(), search.stale_after, self._generator, generators)
        if stale is None:
            return None
        replica, queue, waiting = stale
        return Vacancy(replica, self._generator, queue, waiting.slot, replacing=True)

# SPDX-License-Identifier: Apache-2.0
"""Make one candidate after another: a state machine whose long work runs in a thread, without MPI.

    find a vacancy -> choose (thread) -> claim -> propose -> check (thread) -> publish, or reject and refill

When all slots are taken, a waiting candidate that has become stale is replaced in the same way. It stays in
its slot until its replacement is ready and then gives way at once, so that no trainer waits.

Only the main thread calls MPI. It calls `advance` again and again, which returns at once and also reads the
records that the thread asks for. A generator rank calls it in a loop; where a queue group has no generators,
a replica's first trainer calls it between its steps.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.parallel.generator.checks import Check
from aiperf_mpi.parallel.generator.choice import choose_candidate, hpo_of, search_of
from aiperf_mpi.parallel.generator.reading import RecordReader, learnt_slots
from aiperf_mpi.parallel.generator.vacancies import Vacancies, Vacancy
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.outcomes import reject
from aiperf_mpi.parallel.shared.queue import CandidateQueue
from aiperf_mpi.search.knowledge import Memory
from aiperf_mpi.search.nas import NoProposal
from aiperf_mpi.training.faults import Tampering
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import DROPPED, rejection
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView

#: Candidates in a row that other generators have claimed, after which this one waits for new history.
CLAIM_ATTEMPTS = 16

#: Seconds after which a generator that found no candidate tries again.
RETRY_SECONDS = 1.0


class CandidateMaker:
    """One generator: makes candidates for the replicas of its queue group whenever a queue has a vacancy.

    Arguments:
        context: this rank's.
        check: builds and counts a candidate, see Check.
        generator: index of this generator in its queue group; no two of them draw from the same random
            stream.
        replicas: the replicas it serves, with their queues.

    Attributes:
        full: whether history or claims are full.
        replaced: number of stale candidates that this generator has replaced.
    """

    def __init__(
        self, context: Context, check: Check, generator: int, replicas: tuple[tuple[int, CandidateQueue], ...]
    ) -> None:
        # Ranks share a node's cores, and the number of threads that sum a product must not change a
        # proposal's last bits.
        threadpool_limits(limits=1, user_api="blas")
        self.full = False
        self.replaced = 0
        self._context, self._check = context, check
        self._history, self._claims = context.windows.history, context.windows.claims
        self._vacancies, self._tampering = (
            Vacancies(context, generator, replicas),
            Tampering(context.config.fault),
        )
        # Both learn from the same history, so that each saves the other work.
        memory = Memory()
        self._search, self._hpo = search_of(context.config, memory), hpo_of(context.config, memory)
        self._initial, self._cache = Architecture(context.config.base), ArchitectureCache()
        self._reader = RecordReader(self._history.records)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="generation")

        # What is under way.
        self._vacancy: Vacancy | None = None
        self._chosen: Future[Candidate] | None = None
        self._checked: Future[str] | None = None
        self._candidate: Candidate | None = None
        self._attempts, self._retry_at = 0, 0.0

    @property
    def busy(self) -> bool:
        """Whether the thread is at work."""
        return self._chosen is not None or self._checked is not None

    def advance(self) -> bool:
        """Do what can be done now without waiting; return whether anything was. Raises errors of the
        thread."""
        try:
            self._reader.serve()
            if self.full:
                return False
            if self._vacancy is not None:
                self._vacancy = self._vacancies.renew(self._vacancy)
            if self._checked is not None:
                return self._after_check(self._checked)
            if self._chosen is not None:
                return self._after_choice(self._chosen)
            return self._begin()
        except HistoryFull:
            # Rank 0 sees the same and drains the run; until its message arrives nothing is left to do here.
            self.full = True
            return False

    def close(self) -> None:
        """End the thread; its present work is finished, and the result dropped."""
        while self.busy:
            self._reader.serve()
            if all(future is None or future.done() for future in (self._chosen, self._checked)):
                break
            time.sleep(0.001)
        self._executor.shutdown()

    # -- the stages, on the main thread

    def _begin(self) -> bool:
        """Find a vacancy, and start to choose a candidate for it."""
        if self._vacancy is None:
            if self._context.clock.now() < self._retry_at:
                return False
            self._vacancy = self._vacancies.find()
            self._attempts = 0
        if self._vacancy is None:
            return False
        self._choose(self._vacancy)
        return True

    def _choose(self, vacancy: Vacancy) -> None:
        """Start to choose a candidate, in the thread, from the history as it is now."""
        self._history.refresh()
        view = HistoryView(
            self._history.summaries(),
            self._reader.record,
            self._initial,
            self._cache,
            self._context.config.model.inherits,
        )
        self._chosen = self._executor.submit(self._read_and_choose, view, vacancy, self._attempts)

    def _read_and_choose(self, view: HistoryView, vacancy: Vacancy, attempt: int) -> Candidate:
        """Fetch together all records that the search learns from, then choose; runs in the thread."""
        config = self._context.config
        if config.search.method == "bayesian":
            self._reader.read_ahead(learnt_slots(view))
        return choose_candidate(
            config, self._search, self._hpo, view, vacancy, self._context.n_devices, attempt
        )

    def _after_choice(self, chosen: Future[Candidate]) -> bool:
        """Claim and propose the chosen candidate, and start its check; choose again where it is claimed."""
        if not chosen.done():
            return False
        self._chosen = None
        vacancy = self._require_vacancy()
        try:
            candidate = chosen.result()
        except NoProposal:
            # Every parent drawn is at the limits; the history must grow first.
            self._leave(vacancy)
            return True
        if self._vacancies.outdated(vacancy):
            self._vacancy = None
            return True
        candidate = self._tampering.apply(candidate)

        # A claim has one winner on the whole machine, so that no two generators propose the same candidate.
        if not self._claims.claim(candidate.key):
            self._attempts += 1
            if self._attempts < CLAIM_ATTEMPTS:
                self._choose(vacancy)
            else:
                self._leave(vacancy)
            return True
        trial_id = self._history.append(candidate.to_record(self._context.now()))
        self._candidate = replace(candidate, trial_id=trial_id)
        self._checked = self._executor.submit(self._check, self._candidate)
        return True

    def _after_check(self, checked: Future[str]) -> bool:
        """Publish the checked candidate, or record its rejection and choose another."""
        if not checked.done():
            return False
        self._checked = None
        vacancy, candidate, problem = self._require_vacancy(), self._candidate, checked.result()
        if candidate is None:
            raise RuntimeError("generator: a check without a candidate")
        record = candidate.to_record(self._context.now())
        if problem:
            reject(self._context, record, candidate.trial_id, problem)
            self._attempts = 0
            if self._vacancies.outdated(vacancy):
                self._vacancy = self._candidate = None
            else:
                # The same ticket is filled again.
                self._choose(vacancy)
            return True

        if vacancy.replacing:
            self._replace(vacancy, candidate)
        elif not vacancy.queue.publish(vacancy.slot, record, candidate.trial_id):
            self._drop(record, candidate.trial_id, "its slot was taken away")
        self._vacancy = self._candidate = None
        return True

    def _replace(self, vacancy: Vacancy, candidate: Candidate) -> None:
        """Put a candidate into the slot of a stale one; drop the one of the two that no trainer gets."""
        record = candidate.to_record(self._context.now())
        stale = vacancy.queue.retract(vacancy.slot)
        if stale is None:
            self._drop(record, candidate.trial_id, "the candidate that it was to replace is taken")
            return
        if not vacancy.queue.publish(stale.slot, record, candidate.trial_id):
            self._drop(record, candidate.trial_id, "its slot was taken away")
        self._drop(stale.record, int(stale.record["trial"]), f"stale: replaced by {candidate.trial_id}")
        self.replaced += 1

    def _drop(self, proposed: np.void, trial_id: int, cause: str) -> None:
        """Record that no trainer will get this proposed candidate, and free its key for another claim."""
        self._history.append(rejection(proposed, trial_id, self._context.now(), cause, DROPPED))
        self._claims.release(int(proposed["key"]))

    def _leave(self, vacancy: Vacancy) -> None:
        """Give the vacancy up, and try again when the history may have grown."""
        self._vacancies.give_up(vacancy)
        self._vacancy, self._retry_at = None, self._context.clock.now() + RETRY_SECONDS

    def _require_vacancy(self) -> Vacancy:
        if self._vacancy is None:
            raise RuntimeError("generator: a candidate without a vacancy")
        return self._vacancy

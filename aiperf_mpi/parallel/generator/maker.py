# SPDX-License-Identifier: Apache-2.0
"""The making of one candidate after another: a state machine whose thinking runs in a thread and whose MPI
does not.

    reserve a ticket -> think (thread) -> claim -> propose -> check (thread) -> publish, or reject and refill

When all places are taken, a candidate that waits and has become stale is replaced in the same way; it stays
where it is until its replacement is ready, and the two change places in a moment, so that no trainer waits
for it.

Only the main thread calls MPI, so `advance` is called by it again and again, returns at once, and serves the
records that the thinking thread asks for. A generator rank calls it in a loop, a first trainer whose queue
group has no generators between its steps.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from aiperf_mpi.config import Config
from aiperf_mpi.network.architecture import DEFAULT_KERNEL, Architecture
from aiperf_mpi.network.morphism import Limits
from aiperf_mpi.parallel.generator.checks import Check
from aiperf_mpi.parallel.generator.reading import RecordReader, learnt_slots
from aiperf_mpi.parallel.generator.staleness import stalest
from aiperf_mpi.parallel.shared.context import Context
from aiperf_mpi.parallel.shared.outcomes import reject
from aiperf_mpi.parallel.shared.queue import CandidateQueue
from aiperf_mpi.parallel.shared.slots import EMPTY, Slot
from aiperf_mpi.search.hpo import Hpo, make_hpo, tune
from aiperf_mpi.search.knowledge import Memory
from aiperf_mpi.search.nas import NoProposal, Proposal, Search, make_search
from aiperf_mpi.streams import HPO, SEARCH, stream
from aiperf_mpi.trials.candidate import Candidate
from aiperf_mpi.trials.footprint import REPLACING_PART
from aiperf_mpi.trials.log import HistoryFull
from aiperf_mpi.trials.record import DROPPED, rejection
from aiperf_mpi.trials.view import ArchitectureCache, HistoryView

#: Proposals in a row whose candidates others have claimed, before the generator waits for new history.
CLAIM_ATTEMPTS = 16

#: Seconds until a generator without a proposal looks at the history again.
RETRY_SECONDS = 1.0

#: Seconds between two renewals of a reserved slot, well under its lease.
RENEW_SECONDS = 60.0

#: Seconds between two looks for a stale candidate, while there is nothing else to do.
STALE_SECONDS = 1.0


@dataclass(frozen=True)
class Vacancy:
    """For whom a candidate is made: replica, queue, the reserved slot (its ticket is the round), and by whom.

    With `replacing` the slot is not reserved: it was seen READY with a stale candidate, which may still be
    taken.
    """

    replica: int
    generator: int
    queue: CandidateQueue
    slot: Slot
    replacing: bool = False


class CandidateMaker:
    """One generator: makes candidates for the replicas of its queue group whenever a place in a queue is
    free.

    Arguments:
        context: this rank's.
        check: builds and counts a candidate, see Check.
        generator: index of this generator in its queue group; two of them never draw from the same random
            stream.
        replicas: the replicas it serves, with their queues.

    Attributes:
        full: whether history or claims have no place left.
        replaced: stale candidates that this generator has replaced.
    """

    def __init__(
        self, context: Context, check: Check, generator: int, replicas: tuple[tuple[int, CandidateQueue], ...]
    ) -> None:
        # Ranks share a node's cores, and how many threads sum a product must not decide a proposal's last
        # bits.
        threadpool_limits(limits=1, user_api="blas")
        self._context, self._check, self._generator, self._replicas = context, check, generator, replicas
        self._history, self._claims = context.windows.history, context.windows.claims
        # Both learn from the same history, so what one of them has learnt saves the other the work.
        memory = Memory()
        self._search, self._hpo = search_of(context.config, memory), hpo_of(context.config, memory)
        self._initial, self._cache = Architecture(context.config.base), ArchitectureCache()
        self._reader = RecordReader(self._history.records)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="generation")
        self._place: Vacancy | None = None
        self._thought: Future[Candidate] | None = None
        self._checked: Future[str] | None = None
        self._candidate: Candidate | None = None
        self._attempts, self._retry_at, self._renew_at, self._look_at = 0, 0.0, 0.0, 0.0
        self._spoilt = False
        self.full = False
        self.replaced = 0

    @property
    def busy(self) -> bool:
        """Whether the thread is at work."""
        return self._thought is not None or self._checked is not None

    def advance(self) -> bool:
        """Do what can be done now without waiting; returns whether anything was. Raises what the thinking
        raised."""
        try:
            self._reader.serve()
            if self.full:
                return False
            self._renew()
            if self._checked is not None:
                return self._after_check(self._checked)
            if self._thought is not None:
                return self._after_thought(self._thought)
            return self._begin()
        except HistoryFull:
            # Rank 0 sees the same and drains the run; until its word comes there is nothing left to do here.
            self.full = True
            return False

    def close(self) -> None:
        """End the thread; what it is thinking is finished, and forgotten."""
        while self.busy:
            self._reader.serve()
            if all(future is None or future.done() for future in (self._thought, self._checked)):
                break
            time.sleep(0.001)
        self._executor.shutdown()

    # -- the stages, on the main thread

    def _begin(self) -> bool:
        """Reserve the free place whose replica is nearest to waiting, and start to think of a candidate for
        it."""
        if self._place is None:
            if self._context.clock.now() < self._retry_at:
                return False
            self._place = self._reserve() or self._stale()
            self._attempts = 0
        if self._place is None:
            return False
        self._think(self._place)
        return True

    def _reserve(self) -> Vacancy | None:
        hungry = sorted(self._replicas, key=lambda item: item[1].count())
        for replica, candidates in hungry:
            if (slot := candidates.reserve()) is not None:
                return Vacancy(replica, self._generator, candidates, slot)
        return None

    def _stale(self) -> Vacancy | None:
        """A waiting candidate that can be replaced by one that knows more, now and then looked for."""
        context, search = self._context, self._context.config.search
        now = time.monotonic()
        if search.method == "random" or now < self._look_at:
            return None
        self._look_at = now + STALE_SECONDS
        self._history.refresh()
        if len(self._history) > REPLACING_PART * self._history.capacity:
            return None
        generators = max(1, context.ranks.queue_group_generators)
        summaries = self._history.summaries()
        found = stalest(self._replicas, summaries, search.stale_after, self._generator, generators)
        if found is None:
            return None
        replica, candidates, waiting = found
        return Vacancy(replica, self._generator, candidates, waiting.slot, replacing=True)

    def _outdated(self, place: Vacancy) -> bool:
        """Whether a replacement is not wanted any more: its slot has moved on, or a free place comes
        first."""
        if not place.replacing:
            return False
        return not place.queue.still(place.slot) or any(
            candidates.count(EMPTY) for _, candidates in self._replicas
        )

    def _think(self, place: Vacancy) -> None:
        self._history.refresh()
        context = self._context
        inherit = context.config.model.inherits
        view = HistoryView(
            self._history.summaries(), self._reader.record, self._initial, self._cache, inherit
        )
        self._thought = self._executor.submit(
            self._think_ahead, view, place, context.n_devices, self._attempts
        )

    def _think_ahead(self, view: HistoryView, place: Vacancy, n_devices: int, attempt: int) -> Candidate:
        """What the thread does: fetch the records that the search learns from together, then think."""
        config = self._context.config
        if config.search.method == "bayesian":
            self._reader.read_ahead(learnt_slots(view))
        return think(config, self._search, self._hpo, view, place, n_devices, attempt)

    def _after_thought(self, thought: Future[Candidate]) -> bool:
        if not thought.done():
            return False
        self._thought = None
        place = self._require_place()
        try:
            candidate = thought.result()
        except NoProposal:
            # Every parent that was drawn is at the limits; the history must grow first.
            self._leave(place)
            return True
        if self._outdated(place):
            self._place = None
            return True

        candidate = self._tampered(candidate)

        # One winner on the whole machine: a claimed candidate is proposed by nobody else.
        if not self._claims.claim(candidate.key):
            self._attempts += 1
            if self._attempts < CLAIM_ATTEMPTS:
                self._think(place)
            else:
                self._leave(place)
            return True
        trial_id = self._history.append(candidate.to_record(self._context.now()))
        self._candidate = replace(candidate, trial_id=trial_id)
        self._checked = self._executor.submit(self._check, self._candidate)
        return True

    def _after_check(self, checked: Future[str]) -> bool:
        if not checked.done():
            return False
        self._checked = None
        place, candidate, wrong = self._require_place(), self._candidate, checked.result()
        if candidate is None:
            raise RuntimeError("generation: a check without a candidate")
        if wrong:
            # Recorded with its reason; the ticket is filled again.
            reject(self._context, candidate.to_record(self._context.now()), candidate.trial_id, wrong)
            self._attempts = 0
            if self._outdated(place):
                self._place = self._candidate = None
            else:
                self._think(place)
            return True
        if place.replacing:
            self._replace(place, candidate)
        elif not place.queue.publish(
            place.slot, candidate.to_record(self._context.now()), candidate.trial_id
        ):
            self._drop(
                candidate.to_record(self._context.now()), candidate.trial_id, "its slot was taken away"
            )
        self._place = self._candidate = None
        return True

    def _replace(self, place: Vacancy, candidate: Candidate) -> None:
        """Put a candidate where a stale one waits; the one of the two that no trainer gets is dropped."""
        record = candidate.to_record(self._context.now())
        stale = place.queue.retract(place.slot)
        if stale is None:
            self._drop(record, candidate.trial_id, "the candidate that it was to replace is taken")
            return
        if not place.queue.publish(stale.slot, record, candidate.trial_id):
            self._drop(record, candidate.trial_id, "its slot was taken away")
        self._drop(stale.record, int(stale.record["trial"]), f"stale: replaced by {candidate.trial_id}")
        self.replaced += 1

    def _renew(self) -> None:
        """Say now and then that the reserved slot is still being filled; others take it back otherwise."""
        if self._place is None or self._place.replacing or time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + RENEW_SECONDS
        slot = self._place.queue.renew(self._place.slot)
        if slot is not None:
            self._place = replace(self._place, slot=slot)

    def _drop(self, proposed: np.void, trial_id: int, cause: str) -> None:
        """A candidate that nobody will train, by its PROPOSED record: its key can be claimed again."""
        self._history.append(rejection(proposed, trial_id, self._context.now(), cause, DROPPED))
        self._claims.release(int(proposed["key"]))

    def _tampered(self, candidate: Candidate) -> Candidate:
        """The candidate, or, once, one whose stated count is wrong: the injected fault of that name."""
        fault = self._context.config.fault
        if self._spoilt or (candidate.round, candidate.replica) != (
            fault.tamper_in_round,
            fault.tamper_replica,
        ):
            return candidate
        self._spoilt = True
        return replace(candidate, train_ops=candidate.train_ops + 1)

    def _leave(self, place: Vacancy) -> None:
        """Give the place back, and look again when the history may have grown."""
        if not place.replacing:
            place.queue.give_up(place.slot)
        self._place, self._retry_at = None, self._context.clock.now() + RETRY_SECONDS

    def _require_place(self) -> Vacancy:
        if self._place is None:
            raise RuntimeError("generation: a thought without a place")
        return self._place


def think(
    config: Config, search: Search, hpo: Hpo, view: HistoryView, place: Vacancy, n_devices: int, attempt: int
) -> Candidate:
    """The candidate for a place: parent and morphs by the search, hyperparameters by HPO from its round on.
    Pure.

    Its random streams depend on seed, replica, generator and length of the history; a further attempt at the
    same history (the candidate was claimed by another) goes on in the same streams.
    """
    seed, replica, generator = config.run.seed, place.replica, place.generator
    rng = stream(SEARCH, seed, replica, generator, view.length)
    proposal = propose(search, view, rng)
    for _ in range(attempt):
        proposal = propose(search, view, rng)

    round_number = place.slot.ticket
    architecture, kernel = proposal.architecture, DEFAULT_KERNEL
    batch = config.train.batch_per_device
    if config.hpo.enabled and round_number >= config.hpo.from_round:
        choice = hpo.suggest(view, proposal, stream(HPO, seed, replica, generator, view.length))
        architecture, kernel = tune(proposal, choice, limits_of(config))
        batch = choice.batch_per_device
    own = architecture.morphs[len(architecture.morphs) - len(proposal.morphs) :]
    return Candidate.new(
        architecture,
        own,
        parent_id=proposal.parent_id,
        replica=replica,
        generator=generator,
        round=round_number,
        batch_per_device=batch,
        devices=n_devices,
        seed=seed,
        kernel_size=kernel,
        from_checkpoint=config.model.inherits and view.keeps(proposal.parent_id),
    )


def propose(search: Search, view: HistoryView, rng: np.random.Generator) -> Proposal:
    """What the search proposes; if that is a child of a trial without weights to inherit, what it proposes
    where only those trials have finished that have some."""
    proposal = search.propose(view, rng)
    return proposal if view.may_be_parent(proposal.parent_id) else search.propose(view.of_parents(), rng)


def limits_of(config: Config) -> Limits:
    """How far architectures may grow."""
    return Limits(config.search.max_units, config.search.max_parameters)


def search_of(config: Config, memory: Memory | None = None) -> Search:
    """The search that the configuration names; `memory` is what it keeps between proposals, its own if
    None."""
    search = config.search
    return make_search(
        search.method,
        ops=search.morphs,
        max_morphs=search.max_morphs,
        limits=limits_of(config),
        population=search.population,
        sample_size=search.sample_size,
        memory=memory,
    )


def hpo_of(config: Config, memory: Memory | None = None) -> Hpo:
    """The optimiser of hyperparameters; `memory` as in `search_of`."""
    hpo = config.hpo
    return make_hpo(
        hpo.method, kernels=hpo.kernels, batches=hpo.batches, from_round=hpo.from_round, memory=memory
    )

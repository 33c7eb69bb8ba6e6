# SPDX-License-Identifier: Apache-2.0
"""Checks of how trials were trained: budgets, learning rates, early stop, order of rounds, inheritance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.rows import DONE, FAILED, MORPH_TOLERANCE, REJECTED, STATUS, STOPPED, UNFINISHED
from aiperf_mpi.results.judge.checks.registry import check, column_differs, rows_where
from aiperf_mpi.trials.budget import budget, learning_rate, stops_after


@check(
    "I13",
    "epochs_max, patience and learning rates of the round by the stored configuration",
    why="All trials train under the declared budget.",
)
def budgets(e: Evidence) -> Iterator[str]:
    """Trials have the budget of their round and the configured learning rate."""
    trials, rules = e.table("trials"), e.config.train
    # A trial that reported its end has a learning rate; only one on a killed replica has none (V04).
    reported = (trials["epochs_max"] > 0) | (e.trained & np.isfinite(trials["lr"]))
    for row in np.flatnonzero(reported | e.trained):
        limits = budget(int(trials["round"][row]), rules)
        stored = int(trials["epochs_max"][row]), int(trials["patience"][row])
        if reported[row] and stored != (limits.epochs_max, limits.patience):
            yield (
                f"trial {trials['trial_id'][row]}: epochs_max and patience are {stored}, but its round's are "
                f"{limits.epochs_max, limits.patience}"
            )
        if len(e.own_epochs[row]) > limits.epochs_max:
            yield f"trial {trials['trial_id'][row]}: more epochs than its round allows"
    yield from rows_where("trials", reported & (trials["lr"] != rules.lr), "lr is not the configured one")
    expected = [
        learning_rate(rules.lr, epoch, rules.epochs) for epoch in e.column("epochs", "epoch").tolist()
    ]
    yield from column_differs("epochs", "lr", e.column("epochs", "lr").tolist(), expected)


@check(
    "I18",
    "done: all epochs of the round; stopped: by patience, not later; unfinished: its replica's last trial, "
    "whole epochs alone if it did not report its end, and none in an official run",
    why=(
        "When training stops follows from its losses; a failed trial cannot pass as one that was cut short."
    ),
)
def ends_by_rule(e: Evidence) -> Iterator[str]:
    """Every trial ended where its round's budget, its validation losses, or core stop end it."""
    trials, epochs, rules = e.table("trials"), e.table("epochs"), e.config.train
    losses, cut = epochs["val_loss"], epochs["partial"] != 0
    for row in np.flatnonzero(e.trained):
        # Limits are those of the configuration: a 0 in a column must not switch the check off.
        limits = budget(int(trials["round"][row]), rules)
        name, own, status = f"trial {trials['trial_id'][row]}", e.own_epochs[row], e.status[row]
        whole = own[~cut[own]]
        if len(whole) < len(own) - 1 or (len(whole) < len(own) and not cut[own[-1]]):
            yield f"{name}: an epoch before its last one was cut short"
        if len(whole) < len(own) and status in (DONE, STOPPED):
            yield f"{name}: {STATUS[status]}, but its last epoch was cut short"

        # Its losses decide when a trial stops, to the last digit: the trainer compares the same numbers.
        stop = stops_after(losses[whole].tolist(), limits.patience, rules.min_delta)
        end = min(stop or len(whole) + 1, limits.epochs_max)
        if len(own) > end:
            yield f"{name}: it has {len(own)} epochs, but its rule ends it after {end}"
        if status == DONE and len(whole) != limits.epochs_max:
            yield f"{name}: done after {len(whole)} of {limits.epochs_max} epochs"
        if status == STOPPED and (stop != len(whole) or stop >= limits.epochs_max):
            yield f"{name}: stopped after {len(whole)} epochs, but the patience rule does not stop it there"

    # Core stop cuts short the trial that a replica trains then, and none before it.
    last = {
        int(replica): t
        for replica, t in _last_starts(trials["replica"][e.trained], trials["t_start"][e.trained])
    }
    unfinished = np.flatnonzero(e.trained & (e.status == UNFINISHED))
    early = [row for row in unfinished if trials["t_start"][row] < last[int(trials["replica"][row])]]
    yield from rows_where(
        "trials", np.isin(np.arange(len(e.status)), early), "unfinished, but its replica went on"
    )

    # A trial that did not report its end has no learning rate: only whole epochs stand for themselves.
    for row in np.flatnonzero(e.trained & ~np.isfinite(trials["lr"])):
        name = f"trial {trials['trial_id'][row]}"
        if e.attribute("class") == "official":
            yield f"{name}: it has epochs, but did not report its end, as every trial of an official run does"
        elif cut[e.own_epochs[row]].any():
            yield f"{name}: an epoch that was cut short, but the trial did not report its end"


def _last_starts(replicas: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, float]]:
    """Yield each replica with the start of each of its trials, the last one last."""
    order = np.argsort(starts, kind="stable")
    yield from zip(replicas[order].tolist(), starts[order].tolist(), strict=True)


@check(
    "I14",
    "rounds of a replica differ, are trained in ascending order, and leave none out",
    why="Budgets follow rounds, so rounds must follow one another.",
)
def rounds(e: Evidence) -> Iterator[str]:
    """Each replica trains its candidates in the order of their rounds."""
    trials = e.table("trials")
    used = np.flatnonzero(e.trained & (e.status != REJECTED))
    order = used[np.lexsort((trials["t_start"][used], trials["replica"][used]))]
    same = trials["replica"][order][1:] == trials["replica"][order][:-1]
    backwards = same & (np.diff(trials["round"][order]) <= 0)
    late = np.isin(np.arange(len(e.trained)), order[1:][backwards])
    yield from rows_where(
        "trials", late, "its round is not higher than that of its replica's trial before it"
    )

    # A round is used up by its trial alone: a candidate that is rejected or dropped leaves it to another one.
    # Only the initial architecture has no other.
    begun = np.isfinite(trials["t_start"]) | np.isin(e.status, (DONE, STOPPED, FAILED))
    begun |= (e.status == REJECTED) & (trials["trial_id"] == 0)
    for replica in np.unique(trials["replica"][used]).tolist():
        own = trials["replica"] == replica
        last = int(trials["round"][used][trials["replica"][used] == replica].max())
        rounds = np.unique(trials["round"][own & begun])
        rounds = rounds[(rounds >= 1) & (rounds <= last)]
        if len(rounds) < last:
            missing = next(n for n, held in enumerate([*rounds.tolist(), 0], 1) if n != held)
            yield f"replica {replica} has no trial of round {missing}, but one of round {last}"


@check(
    "V08",
    f"children that inherit weights compute their parents' function: difference <= {MORPH_TOLERANCE:g}",
    why="A child that computes another function did not inherit its weights.",
)
def function_preserved(e: Evidence) -> Iterator[str]:
    """Inherited weights keep the parent's function; without inheritance no difference is measured."""
    difference = e.column("trials", "morph_max_abs_diff")
    measured = ~np.isnan(difference)
    if e.config.model.initial_weight != "inherit":
        yield from rows_where("trials", measured, "morph_max_abs_diff of a trial that inherits no weights")
        return

    # A child that was not trained had no weights yet, or failed for its difference. A trial on a killed
    # replica did not report the difference.
    children = e.column("trials", "parent_id") >= 0
    inherited = children & e.trained & np.isfinite(e.column("trials", "lr"))
    if inherited.any():
        yield (
            f"= {np.nanmax(difference[inherited], initial=0):.1e} at most in {int(inherited.sum())} children"
        )
    yield from rows_where(
        "trials", inherited & ~measured, "morph_max_abs_diff was not measured before training"
    )
    outside = inherited & measured & ~((difference >= 0) & (difference <= MORPH_TOLERANCE))
    yield from rows_where("trials", outside, f"morph_max_abs_diff is not between 0 and {MORPH_TOLERANCE:g}")
    yield from rows_where("trials", measured & ~children, "morph_max_abs_diff of the initial architecture")


@check(
    "V20", "a run with a resumed trial is not of class official", why="An official run is not interrupted."
)
def resumed(e: Evidence) -> Iterator[str]:
    """Official runs are not interrupted."""
    if e.attribute("class") == "official" and e.column("trials", "resumed").any():
        yield "an official run has resumed trials"

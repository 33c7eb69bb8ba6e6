# SPDX-License-Identifier: Apache-2.0
"""Class and division of a configuration: where it departs from the rules of the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aiperf_mpi.config.config import Config, settings, value_of
from aiperf_mpi.config.earlier import earlier_rules
from aiperf_mpi.config.setting import DEFAULT, FIXED, Rule, toml_value
from aiperf_mpi.config.toml import parse

#: Whether a run can be official. Every run is a trial until the judge has all checks of an official run.
OFFICIAL_RUNS = False


@dataclass(frozen=True, slots=True)
class Departure:
    """A setting whose value is not the one that its rule requires."""

    key: str
    value: Any
    rule: Rule

    def __str__(self) -> str:
        rule = self.rule
        return f"{self.key} = {toml_value(self.value)} ({rule.kind}: {rule.words}; {rule.source})"


def classify(config: Config, stored: str = "") -> tuple[str, str, tuple[Departure, ...]]:
    """Return class (`official` or `trial`), division (`closed` or `open`) and departures from the rules.

    `stored` is the text of the configuration if it comes from a result, to which its version's rules apply.
    """
    earlier = earlier_rules(parse(stored)) if stored else {}
    ruled = (
        earlier.get(key, (key, value_of(config, key), meaning.rule))
        for key, (_, meaning) in settings().items()
    )
    departures = tuple(
        Departure(key, value, rule)
        for key, value, rule in ruled
        if rule is not None and not rule.allows(value)
    )
    kinds = {departure.rule.kind for departure in departures}
    # In version 0.1 every run was a trial.
    official = OFFICIAL_RUNS and FIXED not in kinds and not earlier
    return ("official" if official else "trial", "open" if DEFAULT in kinds else "closed", departures)

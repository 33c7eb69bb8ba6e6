# SPDX-License-Identifier: Apache-2.0
"""Class and division of a run: where its configuration, its data and its course depart from the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

from aiperf_mpi.config.config import Config, settings, value_of
from aiperf_mpi.config.earlier import earlier_rules
from aiperf_mpi.config.ilsvrc import ILSVRC2012, Reference
from aiperf_mpi.config.setting import DEFAULT, FIXED, Rule, toml_value
from aiperf_mpi.config.toml import parse

#: Page with the rules that are not those of a setting.
_PAGE = "docs/rules.md"

#: Most by which the rate may still move at the end of an official run (V14).
MAX_DRIFT = 0.05


class PackedSet(Protocol):
    """What the class of a run depends on of its packed pictures."""

    @property
    def standin(self) -> bool:
        """Whether the pictures are made up."""

    @property
    def side(self) -> int:
        """Height and width of the pictures."""


@dataclass(frozen=True, slots=True)
class OfficialRules:
    """What an official run must keep. The benchmark has one set of rules, RULES; tests make others.

    Attributes:
        changed: rules of settings in place of those that the settings declare, by key.
        reference: the data set.
        max_drift: most by which the rate may still move at the end, as a part of the last rate.
    """

    changed: Mapping[str, Rule] = field(default_factory=lambda: MappingProxyType({}))
    reference: Reference = ILSVRC2012
    max_drift: float = MAX_DRIFT

    def of_setting(self, key: str) -> Rule | None:
        """Return the rule of a setting, None if it is free."""
        return self.changed.get(key, settings()[key][1].rule)

    @property
    def least_seconds(self) -> float:
        """The shortest core time in seconds."""
        rule = self.of_setting("run.time_limit")
        return rule.expected if rule is not None else 0.0


#: The rules of the benchmark.
RULES = OfficialRules()


@dataclass(frozen=True, slots=True)
class Departure:
    """A departure from a rule: a setting with another value than required, or what `words` say."""

    key: str
    value: Any
    rule: Rule
    words: str = ""

    def __str__(self) -> str:
        rule = self.rule
        if self.words:
            return f"{self.words} ({rule.kind}; {rule.source})"
        return f"{self.key} = {toml_value(self.value)} ({rule.kind}: {rule.words}; {rule.source})"


def classify(
    config: Config,
    packed: PackedSet | None = None,
    segments: int = 1,
    *,
    stored: str = "",
    rules: OfficialRules = RULES,
) -> tuple[str, str, tuple[Departure, ...]]:
    """Return class (`official` or `trial`), division (`closed` or `open`) and departures from the rules.

    Arguments:
        config: the configuration of the run.
        packed: the manifest of its packed data set, if it has one.
        segments: how often the run was started on its output folder: more than once if it was resumed.
        stored: the text of the configuration if it comes from a result, to which its version's rules apply.
        rules: what an official run must keep.
    """
    earlier = earlier_rules(parse(stored)) if stored else {}
    ruled = (earlier.get(key, (key, value_of(config, key), rules.of_setting(key))) for key in settings())
    departures = [
        Departure(key, value, rule)
        for key, value, rule in ruled
        if rule is not None and not rule.allows(value)
    ]
    departures += _of_data(config, packed, rules.reference)
    if segments > 1:
        departures.append(
            _condition("segments", segments, f"the run was resumed: it has {segments} segments")
        )
    kinds = {departure.rule.kind for departure in departures}
    # Every run of version 0.1 was a trial, and it had no such setting.
    if not (FIXED in kinds or earlier or config.run.official):
        what = "not all that an official run needs was there before the core time"
        departures.append(_condition("run.official", False, what))
        kinds.add(FIXED)
    official = FIXED not in kinds and not earlier
    return ("official" if official else "trial", "open" if DEFAULT in kinds else "closed", tuple(departures))


def fixed_departures(
    config: Config, packed: PackedSet | None = None, rules: OfficialRules = RULES
) -> tuple[Departure, ...]:
    """Return where a run departs from what is fixed, as far as settings and data tell before it.

    `run.official` is not among them: it follows from all that is known before the core time.
    """
    departures = classify(replace(config, run=replace(config.run, official=True)), packed, rules=rules)[2]
    return tuple(departure for departure in departures if departure.rule.kind == FIXED)


def _of_data(config: Config, packed: PackedSet | None, reference: Reference) -> Iterator[Departure]:
    """Yield the departures of a packed data set."""
    if packed is not None and packed.standin:
        yield _condition("standin", True, "the data set is a stand-in: its pictures are made up")
    if packed is not None and config.data.name == "imagenet" and packed.side != reference.side:
        rule = Rule(FIXED, reference.side, _PAGE)
        yield Departure("data.stored_size", packed.side, rule)


def _condition(key: str, value: Any, words: str) -> Departure:
    """Return a departure from a rule that is not one of a setting."""
    return Departure(key, value, Rule(FIXED, None, _PAGE), words)

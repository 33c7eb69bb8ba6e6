# SPDX-License-Identifier: Apache-2.0
"""Settings as the configurations of version 0.1 have them, so that its results are judged by its own rules.

A configuration that a person writes today has today's settings alone; only stored ones are read with these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aiperf_mpi.config.sections import MOST_WORKERS
from aiperf_mpi.config.setting import DEFAULT, FIXED, TABLE_4, ConfigError, Meaning, Rule, checked
from aiperf_mpi.paper import KERNELS


@dataclass(frozen=True, slots=True)
class EarlierSetting:
    """A setting of version 0.1.

    Attributes:
        key: its key, and `now` that of today.
        rule: the rule that applied to it, None for none.
        values: its values -> what they mean today; empty if they mean the same.
    """

    key: str
    now: str
    rule: Rule | None
    values: Mapping[Any, Any]


#: The settings that differ. The first one is in every configuration of version 0.1, and in no later one.
EARLIER = (
    EarlierSetting(
        "data.augment",
        "data.augmentation",
        Rule(DEFAULT, True, "authors' code"),
        {True: "cifar", False: "none"},
    ),
    EarlierSetting(
        "data.workers", "data.workers", Rule(DEFAULT, 48, f"{TABLE_4}, Parallel transformation"), {}
    ),
    EarlierSetting("run.time_limit", "run.time_limit", None, {}),
    EarlierSetting(
        "train.batch_per_device", "train.batch_per_device", Rule(DEFAULT, 448, f"{TABLE_4}, Batch size"), {}
    ),
    EarlierSetting("hpo.method", "hpo.method", Rule(FIXED, "bayesian", f"{TABLE_4}, HPO method"), {}),
    EarlierSetting("hpo.kernels", "hpo.kernels", Rule(DEFAULT, KERNELS, "authors' code"), {}),
    EarlierSetting("hpo.batches", "hpo.batches", None, {}),
)


#: Most threads in version 0.1, where nothing read their number.
_MOST_WORKERS = 4096


def translated(assignments: Iterable[tuple[str, str, Any]]) -> Iterator[tuple[str, str, Any]]:
    """Yield the values (origin, key, value) of a stored configuration under the keys of today.

    More threads than today's most become that number. Raises ConfigError for an earlier setting with a value
    that it never had.
    """
    given = list(assignments)
    earlier = any(key == EARLIER[0].key for _, key, _ in given)
    renamed = {item.key: item for item in EARLIER if item.values}
    for origin, key, value in given:
        if earlier and key == "data.workers" and type(value) is int and value <= _MOST_WORKERS:
            value = min(value, MOST_WORKERS)
        if (item := renamed.get(key)) is None:
            yield origin, key, value
            continue
        try:
            yield origin, item.now, item.values[checked(key, value, bool, Meaning(""))]
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None


def earlier_rules(tables: Mapping[str, Any]) -> dict[str, tuple[str, Any, Rule | None]]:
    """Return (key, value, rule) as of version 0.1 by today's key, for the tables of a stored configuration.

    It is empty if a later version stored them.
    """
    stored = {item.key: _value(tables, item.key) for item in EARLIER}
    if stored[EARLIER[0].key] is None:
        return {}
    return {
        item.now: (item.key, value, item.rule) for item in EARLIER if (value := stored[item.key]) is not None
    }


def _value(tables: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key (`section.name`), None if there is none."""
    section, _, name = key.partition(".")
    table = tables.get(section)
    value = table.get(name) if isinstance(table, dict) else None
    return tuple(value) if isinstance(value, list) else value

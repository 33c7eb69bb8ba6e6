# SPDX-License-Identifier: Apache-2.0
"""The table of classes: each setting changed alone -> class, division and reason, against Table 4 by rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from aiperf_mpi.config import Config, from_toml
from aiperf_mpi.config.classes import OfficialRules, classify, fixed_departures
from aiperf_mpi.config.config import settings, value_of
from aiperf_mpi.config.sections import Run
from aiperf_mpi.config.setting import DEFAULT, FIXED, TABLE_4, Rule
from aiperf_mpi.results.judge.rules import TABLE_4_ROWS

#: Rule of each setting: another value makes a trial (fixed), the division open (default), or neither (free).
EXPECTED = {
    FIXED: """run.time_limit run.tick data.name data.image_size data.channels data.classes data.train_images
        data.val_images model.width model.blocks search.method search.morphs hpo.enabled hpo.method
        hpo.from_round hpo.kernels hpo.batches result.max_error fault.raise_in_round fault.disturb_in_round
        fault.nan_in_round fault.hang_in_round fault.tamper_in_round fault.untimed_sleep_seconds""",
    DEFAULT: """data.augmentation model.initial_weight model.zero_gamma train.lr train.momentum
        train.label_smoothing train.epochs train.round_epochs train.patience_base train.patience_step
        train.patience_max train.min_delta train.sync_statistics search.max_morphs search.max_units
        search.max_parameters""",
    "class": "run.official",
    "free": """run.preset run.seed run.output run.stuck_seconds run.view data.path data.stored_size
        data.workers data.stage data.check_hashes train.batch_per_device train.precision train.stem
        train.forms train.in_flight_steps search.population search.sample_size search.queue_depth
        search.stale_after parallel.trainers_per_node parallel.trainers_per_replica parallel.address
        parallel.dispatch parallel.ranks_per_node parallel.host_devices parallel.history_capacity
        parallel.compile_ahead parallel.cache parallel.prewarm parallel.memory_limit parallel.poll_seconds
        result.fsync_seconds result.partial_seconds result.keep_checkpoints result.checkpoint_seconds
        monitor.seconds declared.device declared.peak_ops declared.form declared.source
        declared.vouched_by fault.raise_replica fault.raise_trainer fault.disturb_replica
        fault.nan_replica fault.hang_replica fault.tamper_replica fault.untimed_sleep_rank""",
}
RULES = {key: kind for kind, keys in EXPECTED.items() for key in keys.split()}

#: Values that a rule allows next to the default.
ALLOWED = {"run.time_limit": (7200.0, 43_200.0), "hpo.method": ("tpe",)}


#: A run that lacks nothing: the defaults, and what they become before the core time.
OFFICIAL = Config(run=Run(official=True))


def changed(key: str, value: Any) -> Config:
    """Return an official run with another value of one setting, whether or not a run could have it."""
    section, _, name = key.partition(".")
    config = OFFICIAL
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def others(key: str) -> list[Any]:
    """Return other values of a setting than its default, and than those that its rule allows as well."""
    default, choices = value_of(OFFICIAL, key), settings()[key][1].choices
    match default:
        case bool():
            return [not default]
        case str():
            return [one for one in choices or ("x",) if one not in (default, *ALLOWED.get(key, ()))]
        case tuple():
            return [default[:-1], default[:1], default[::-1]]
        case _:
            return [default - 1 if key == "run.time_limit" else default + 1]


def test_every_setting_has_its_rule() -> None:
    assert set(RULES) == set(settings())
    for key, (_, meaning) in settings().items():
        own = "class" if key == "run.official" else "free"
        assert RULES[key] == (meaning.rule.kind if meaning.rule else own), key
    assert classify(OFFICIAL) == ("official", "closed", ())


@pytest.mark.parametrize("key", RULES)
def test_the_class_that_follows_from_one_changed_setting(key: str) -> None:
    rule, values = RULES[key], others(key)
    assert values and all(value != value_of(OFFICIAL, key) for value in values)
    for value in values:
        cls, division, departures = classify(changed(key, value))
        assert cls == ("trial" if rule in (FIXED, "class") else "official"), value
        assert division == ("open" if rule == DEFAULT else "closed"), value
        # The reason: the setting, what it is, and the rule with its source.
        reasons = [] if rule == "free" else [key]
        assert [departure.key for departure in departures] == reasons
        for departure in departures if rule != "class" else ():
            assert str(departure).startswith(f"{key} = ") and f"({rule}: " in str(departure)
            assert departure.rule.source in str(departure)
    for value in ALLOWED.get(key, ()):
        assert classify(changed(key, value)) == ("official", "closed", ())


def test_the_words_of_a_departure_name_all_that_the_rule_allows() -> None:
    (method,) = classify(changed("hpo.method", "grid"))[2]
    assert str(method) == 'hpo.method = "grid" (fixed: "bayesian" or "tpe"; Table 4, HPO method)'
    (short,) = classify(changed("run.time_limit", 60.0))[2]
    assert str(short) == "run.time_limit = 60.0 (fixed: at least 3600.0; authors' README, section 2)"
    (batches,) = classify(changed("hpo.batches", (64,)))[2]
    assert str(batches) == (
        "hpo.batches = [64] (fixed: [256, 320, 384, 448, 512]; section 4.5, search space)"
    )


# -- what is not a setting -------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """What the class depends on of a packed set."""

    standin: bool = False
    side: int = 256


@pytest.mark.parametrize(
    ("packed", "segments", "reason"),
    [
        (Packed(), 1, ""),
        (
            Packed(standin=True),
            1,
            "the data set is a stand-in: its pictures are made up (fixed; docs/rules.md)",
        ),
        (Packed(side=224), 1, "data.stored_size = 224 (fixed: 256; docs/rules.md)"),
        (Packed(side=288), 1, "data.stored_size = 288 (fixed: 256; docs/rules.md)"),
        (Packed(), 2, "the run was resumed: it has 2 segments (fixed; docs/rules.md)"),
    ],
)
def test_data_and_course_of_a_run_decide_too(packed: Packed, segments: int, reason: str) -> None:
    cls, division, departures = classify(OFFICIAL, packed, segments)
    assert (cls, division) == ("trial" if reason else "official", "closed")
    assert list(map(str, departures)) == ([reason] if reason else [])


def test_a_run_that_lacked_something_before_the_core_time_is_a_trial() -> None:
    (lack,) = classify(Config())[2]
    assert (lack.key, classify(Config())[0]) == ("run.official", "trial")
    assert str(lack).startswith("not all that an official run needs was there before the core time (fixed;")
    # Before a run it is not known yet, and where something fixed is departed from, that is the reason.
    assert fixed_departures(Config()) == ()
    (tick,) = classify(replace(Config(), run=Run(tick=60.0)))[2]
    assert tick.key == "run.tick" and fixed_departures(Config(run=Run(tick=60.0))) == (tick,)


def test_other_rules_are_passed_and_never_set() -> None:
    """Only a caller can give other rules: no setting, file or variable has them."""
    config = changed("run.time_limit", 20.0)
    shorter = OfficialRules({"run.time_limit": Rule(FIXED, 20.0, "a test", least=True)})
    assert classify(config, rules=shorter) == ("official", "closed", ())
    assert shorter.least_seconds == 20 and OfficialRules().least_seconds == 3600
    assert classify(config)[0] == "trial"


# -- Table 4 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", TABLE_4_ROWS)
def test_a_row_of_table_4_is_kept_by_its_settings(row: str) -> None:
    value, keys, why = TABLE_4_ROWS[row]
    rules = [settings()[key][1].rule for key in keys]
    kind = value.partition(":")[0]
    if why:
        # Nothing can depart from the row, or it is free, for the reason that the table gives.
        assert rules in ([], [None])
        return
    assert rules and all(rule is not None and rule.kind == kind for rule in rules)
    assert any(rule is not None and row in rule.source for rule in rules)


def test_every_rule_of_table_4_is_of_one_of_its_rows() -> None:
    rows = {key: row for row, (_, keys, _) in TABLE_4_ROWS.items() for key in keys}
    for key, (_, meaning) in settings().items():
        if meaning.rule and meaning.rule.source.startswith(TABLE_4):
            assert meaning.rule.source == f"{TABLE_4}, {rows[key]}", key


def test_a_stored_configuration_of_version_0_1_has_the_rules_of_that_version() -> None:
    lines = ["[data]", "augment = true", "workers = 48", "[run]", "time_limit = 140.0"]
    lines += ["[train]", "batch_per_device = 256", "[hpo]", 'method = "tpe"', "kernels = [3, 5]"]
    text = "\n".join([*lines, "batches = [64]"])
    cls, division, departures = classify(from_toml(text), stored=text)
    assert (cls, division) == ("trial", "open")
    assert list(map(str, departures)) == [
        "train.batch_per_device = 256 (default: 448; Table 4, Batch size)",
        'hpo.method = "tpe" (fixed: "bayesian"; Table 4, HPO method)',
        "hpo.kernels = [3, 5] (default: [3, 5, 7]; authors' code)",
    ]
    # Every run of that version was a trial.
    kept = "[data]\naugment = true\nworkers = 48\n"
    assert classify(from_toml(kept), stored=kept) == ("trial", "closed", ())

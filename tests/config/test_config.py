# SPDX-License-Identifier: Apache-2.0
"""The configuration: its sources and their order, refusals and their messages, and departures from rules."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiperf_mpi.config import Config, ConfigError, classify, from_toml, load, preset_names
from aiperf_mpi.config.classes import fixed_departures
from aiperf_mpi.config.config import settings
from aiperf_mpi.config.setting import DEFAULT, FIXED, nearest, toml_value
from aiperf_mpi.network.architecture import OPS
from aiperf_mpi.search.hpo import OPTIMISERS
from aiperf_mpi.search.nas import SEARCHES


def write(folder: Path, text: str, name: str = "site.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# -- sources and their order -----------------------------------------------------------------------


def test_every_preset_resolves_and_reads_back() -> None:
    assert preset_names() == ("cifar10", "demo", "imagenet", "imagenet-synthetic")
    for name in preset_names():
        config = load(name)
        assert config.run.preset == name
        assert from_toml(config.to_toml()) == config
        assert len(config.sha256) == 64


def test_later_sources_win(tmp_path: Path) -> None:
    first = write(tmp_path, "[run]\nseed = 1\ntime_limit = 50\n[train]\nlr = 0.2\n", "first.toml")
    second = write(tmp_path, "[run]\nseed = 2\n", "second.toml")

    # demo has seed 2021 (default), time_limit 140 and batch_per_device 32 (preset).
    assert load("demo").run.seed == 2021
    assert load("demo", [first]).run.seed == 1
    assert load("demo", [first, second]).run.seed == 2
    assert load("demo", [first, second], seed=3).run.seed == 3
    assert load("demo", [first, second], ["run.seed=4"], seed=3).run.seed == 4
    assert load("demo", [first, second], ["run.seed=4", "run.seed=5"], seed=3).run.seed == 5

    config = load("demo", [first, second], seed=3)
    assert (config.run.time_limit, config.train.lr, config.train.batch_per_device) == (50.0, 0.2, 32)


def test_a_flag_that_was_not_given_changes_nothing() -> None:
    assert load("demo", seed=None, time_limit=None, output=None, view=None, ranks_per_node=None) == load(
        "demo"
    )


def test_a_resolved_configuration_names_its_preset(tmp_path: Path) -> None:
    stored = load("demo", sets=["train.lr=0.05"], seed=9)
    again = load(None, [write(tmp_path, stored.to_toml())])
    assert again == stored
    assert again.sha256 == stored.sha256


def test_a_preset_named_by_a_file_is_read(tmp_path: Path) -> None:
    named = write(tmp_path, '[run]\npreset = "demo"\n')
    assert load(None, [named]) == load("demo")
    assert load("cifar10", [named], ["data.path=x"]).data.name == "cifar10"


def test_set_takes_toml_values_and_bare_words() -> None:
    sets = ["train.round_epochs=[2, 4]", "model.zero_gamma=false", "run.output=runs/a b", 'data.path="x=y"']
    config = load("demo", sets=[*sets, "run.tick=3"])
    assert config.train.round_epochs == (2, 4)
    assert config.model.zero_gamma is False
    assert (config.run.output, config.data.path) == (f"{Path.cwd()}/runs/a b", f"{Path.cwd()}/x=y")
    assert config.run.tick == 3.0 and isinstance(config.run.tick, float)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "parts"),
    [
        # An unknown key names the nearest valid one.
        ("train.batchsize=1", ["train.batchsize", "train.batch_per_device"]),
        ("train.learning_rate=1", ["train.learning_rate", "train.lr?"]),
        ("seed=1", ["seed", "run.seed"]),
        ("trian.lr=1", ["trian.lr", "train.lr?"]),
        ("data.nam=digits", ["data.nam", "data.name?"]),
        # A wrong type.
        ("run.seed=1.5", ["run.seed", "1.5", "an integer"]),
        ("run.seed=true", ["run.seed", "True", "an integer"]),
        ("model.zero_gamma=1", ["model.zero_gamma", "true or false"]),
        ("train.lr='fast'", ["train.lr", "'fast'", "a number"]),
        ("train.lr=fast", ["train.lr", "fast", "TOML"]),
        ("train.round_epochs=4", ["train.round_epochs", "4", "list of integers"]),
        ("train.round_epochs=[1, 2.5]", ["train.round_epochs", "2.5", "an integer"]),
        ("train.round_epochs=[]", ["train.round_epochs", "empty"]),
        ("run.output=5", ["run.output", "5", "a string"]),
        # An impossible value.
        ("train.batch_per_device=0", ["train.batch_per_device", "0", "too small"]),
        ("train.lr=nan", ["train.lr", "nan", "finite"]),
        ("run.time_limit=inf", ["run.time_limit", "inf"]),
        pytest.param("train.lr=1" + "0" * 400, ["train.lr", "too large"], id="an integer beyond floats"),
        pytest.param("model.blocks=" + "[" * 5000, ["model.blocks", "TOML"], id="brackets beyond the stack"),
        ("train.momentum=1.0", ["train.momentum", "1.0", "too large"]),
        ("data.name='digit'", ["data.name", "'digit'", "'digits'"]),
        ("train.precision='float8'", ["train.precision", "float8", "bfloat16"]),
        ("search.morphs=['deeper', 'shallower']", ["search.morphs", "shallower"]),
        ("hpo.kernels=[3, 4]", ["hpo.kernels", "4", "even"]),
        # Settings that contradict one another.
        ("train.batch_per_device=2000", ["train.batch_per_device", "2000", "1437"]),
        ("train.epochs=3", ["train.round_epochs", "8", "train.epochs = 3"]),
        ("train.round_epochs=[8, 4]", ["train.round_epochs", "[8, 4]"]),
        ("train.patience_base=9", ["train.patience_base", "9", "patience_max = 8"]),
        ("search.sample_size=50", ["search.sample_size", "50", "population = 12"]),
        ("train.stem='winograd'", ["train.stem", "winograd", "plain, space_to_depth"]),
        ("search.max_units=48", ["search.max_units", "48", "49"]),
        (
            "search.max_parameters=1",
            ["search.max_parameters", "1 is less", "parameters of the initial network"],
        ),
        ("hpo.batches=[16, 1438]", ["hpo.batches", "1438", "1437"]),
        ("model.blocks=[1,1,1,1,1,1,1,1,1]", ["blocks", "8 stages"]),
        ("data.classes=11", ["data.classes", "11", "10"]),
        ("data.channels=2", ["data.channels", "2", "1 or 3"]),
        ("data.train_images=1438", ["data.train_images", "1438", "1437"]),
        # Not a setting.
        ("train=1", ["--set train=1: train is a section; write train.NAME=VALUE"]),
        ("x.y=1", ["x.y is not a setting; sections: run, data, model, "]),
        ("run.zz=1", ["run.zz is not a setting; those of section run: "]),
        ("sede=1", ["sede is not a setting; did you mean run.seed?"]),
        ("train.lr", ["--set train.lr", "section.name=value"]),
        ("=3", ["--set =3", "section.name=value"]),
        # A second setting in the same argument would be lost without a message.
        ("train.lr=0.1\ntrain.epochs=3", ["train.lr=0.1", "one setting"]),
    ],
)
def test_refused_with_key_value_and_what_to_write(sets: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load("demo", sets=[sets])
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="preset 'dmeo' is unknown; did you mean 'demo'"):
        load("dmeo")
    with pytest.raises(ConfigError, match="preset 'foo' is unknown; presets: cifar10, demo"):
        load("foo")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[run\nseed = 1", "not valid TOML"),
        ("[run]\nseed = 1\nseed = 2", "not valid TOML"),
        ("seed = 1", "seed is not a setting; did you mean run.seed"),
        ("[training]\n", "training is not a setting; did you mean train?"),
        ("train = 1", "train is a section; write [train], and NAME = VALUE below it"),
        ("[run.more]\nseed = 1", "run.more is not a setting"),
        ("[train]\nlearning_rate = 1", "train.learning_rate is not a setting; did you mean train.lr?"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load("demo", [path])
    assert str(path) in str(caught.value) and part in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'[run]\noutput = "\xe9"\n')
    for path, part in (
        (tmp_path / "none", "does not exist; --config takes a TOML file: check the path"),
        (tmp_path / "demo", "--config takes a TOML file: use --preset demo"),
        (tmp_path, "a folder, not a file; --config takes a TOML file"),
        (tmp_path / "latin", "UTF-8"),
    ):
        with pytest.raises(ConfigError) as caught:
            load("demo", [path])
        assert str(path) in str(caught.value) and part in str(caught.value)


def test_settings_are_frozen() -> None:
    config = load("demo")
    with pytest.raises(AttributeError):
        config.train.lr = 1.0  # type: ignore[misc]


# -- TOML ------------------------------------------------------------------------------------------

_VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text().filter(str.isprintable),
)


@given(st.one_of(_VALUES, st.lists(_VALUES).map(tuple)))
def test_every_value_is_read_back(value: object) -> None:
    back = tomllib.loads(f"value = {toml_value(value)}")["value"]
    assert (tuple(back) if isinstance(back, list) else back) == value


@given(
    st.integers(0, 2**63 - 1),
    st.floats(1, 1e9),
    st.text().filter(lambda text: text.isprintable() and not {"~", "$"} & set(text) and "://" not in text),
    st.lists(st.sampled_from(OPS), min_size=1),
)
def test_every_configuration_is_read_back(seed: int, limit: float, output: str, morphs: list[str]) -> None:
    sets = [f"run.output={toml_value(output)}", f"search.morphs={toml_value(tuple(morphs))}"]
    config = load("demo", sets=sets, seed=seed, time_limit=limit)
    assert from_toml(config.to_toml()) == config
    assert config.run.output == (str(Path.cwd() / output) if output else "")


def test_the_hash_follows_every_setting() -> None:
    assert load("demo").sha256 == load("demo").sha256
    assert load("demo").sha256 != load("demo", sets=["train.lr=0.11"]).sha256


# -- a declared peak -------------------------------------------------------------------------------

DECLARED = {
    "device": "New 1",
    "peak_ops": "4e14",
    "form": "card",
    "source": "New 1 datasheet, 2027",
    "vouched_by": "A. Person, Site",
}


def declared(**changes: str) -> Config:
    """Return the configuration of a run in bfloat16 with a declared peak."""
    sets = [f"declared.{name}={value}" for name, value in (DECLARED | changes).items() if value]
    return load("imagenet", sets=["train.precision=bfloat16", *sets])


def test_a_peak_can_be_declared() -> None:
    config = declared()
    assert (config.declared.device, config.declared.peak_ops) == ("New 1", 4e14)
    assert from_toml(config.to_toml()) == config
    assert declared(peak_ops="2.5e15", form="module").declared.peak_ops == 2.5e15


@pytest.mark.parametrize("missing", ["device", "peak_ops", "source", "vouched_by"])
def test_a_peak_is_declared_as_a_whole(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"declared.{missing} is missing: a declared peak has device, "):
        declared(**{missing: ""})


@pytest.mark.parametrize(
    ("form", "peak", "most"), [("card", "8.4e14", "8.3550e"), ("module", "2.6e15", "2.5166e")]
)
def test_a_declared_peak_is_not_above_all_known_devices_of_its_form(form: str, peak: str, most: str) -> None:
    with pytest.raises(ConfigError, match=rf"declared.peak_ops: .* more than the {most}.* known {form}"):
        declared(form=form, peak_ops=peak)


def test_a_declared_peak_is_that_of_one_precision() -> None:
    stated = [f"declared.{name}={value}" for name, value in DECLARED.items()]
    with pytest.raises(ConfigError, match="train.precision: auto, but a declared peak is that of one precis"):
        load("imagenet", sets=stated)


def test_a_device_of_the_table_is_not_declared() -> None:
    with pytest.raises(ConfigError, match="declared.device: 'NVIDIA H200' has a peak in .*peaks.py"):
        declared(device="NVIDIA H200")
    # In a stored configuration: the table may have it since.
    assert from_toml(declared().to_toml().replace("New 1", "NVIDIA H200")).declared.device == "NVIDIA H200"


# -- the rules -------------------------------------------------------------------------------------


def test_the_rows_of_table_4_are_the_defaults() -> None:
    """Table 4 of the paper, and section 4.5 for the data set's numbers and the step of the score."""
    config = Config()
    assert (config.data.name, config.data.image_size, config.data.channels) == ("imagenet", 224, 3)
    assert (config.data.train_images, config.data.val_images) == (1_281_167, 50_000)
    assert (config.model.width, config.model.blocks) == (64, (3, 4, 6, 3))  # ResNet-50
    assert (config.model.initial_weight, config.train.batch_per_device) == ("he", 448)
    assert (config.train.lr, config.train.momentum, config.train.epochs) == (0.1, 0.9, 60)
    assert (config.result.max_error, config.hpo.from_round) == (0.30, 4)
    # As many threads as the trainer has cores, and at most those of Table 4, Parallel transformation.
    assert [config.data.threads(cores) for cores in (1, 8, 48, 192)] == [1, 8, 48, 48]
    assert load("imagenet", sets=["data.workers=3"]).data.threads(8) == 3
    assert config.run.tick == 0.1 * 3600
    assert len(config.base.blocks) == 4 and config.base.width == 64


#: Each row of Table 4 that a setting can depart from, with its rule, and a value that departs.
TABLE_4_ROWS = [
    ("search.morphs=['deeper']", FIXED, "NAS method"),
    ("hpo.enabled=false", FIXED, "HPO method"),
    ("data.name='synthetic'", FIXED, "Dataset"),
    ("model.width=32", FIXED, "Initial architecture"),
    ("model.blocks=[3, 4, 23, 3]", FIXED, "Initial architecture"),
    ("model.zero_gamma=true", DEFAULT, "Initial weight"),
    ("search.method=random", FIXED, "NAS method"),
    ("train.momentum=0.8", DEFAULT, "Optimizer"),
    ("train.lr=0.2", DEFAULT, "Learning rate"),
    ("train.label_smoothing=0.0", DEFAULT, "Loss function"),
    ("train.epochs=90", DEFAULT, "Maximum epoch"),
    ("result.max_error=0.35", FIXED, "Maximum error"),
]


@pytest.mark.parametrize(("change", "rule", "row"), TABLE_4_ROWS)
def test_a_departure_is_found_with_its_row(change: str, rule: str, row: str) -> None:
    _, _, before = classify(load("imagenet", sets=["run.official=true"]))
    _, division, after = classify(load("imagenet", sets=["run.official=true", change]))
    (departure,) = [departure for departure in after if departure not in before]
    assert departure.key == change.partition("=")[0]
    assert departure.rule.kind == rule
    assert row in departure.rule.source
    assert str(departure).startswith(departure.key) and rule in str(departure)
    assert division == ("open" if rule == DEFAULT else "closed")


def test_the_preset_of_imagenet_alone_can_be_official() -> None:
    assert {name for name in preset_names() if not fixed_departures(load(name))} == {"imagenet"}
    assert classify(load("imagenet", sets=["run.official=true"])) == ("official", "closed", ())
    other = classify(load("imagenet", sets=["hpo.method=random", "search.method=random"]))
    assert other[0] == "trial" and {departure.key for departure in other[2]} == {
        "hpo.method",
        "search.method",
    }


def test_an_injected_fault_departs() -> None:
    for name in ("raise_in_round", "nan_in_round", "tamper_in_round"):
        assert f"fault.{name}" in {d.key for d in classify(load("demo", sets=[f"fault.{name}=1"]))[2]}
    assert "fault.untimed_sleep_seconds" in {
        d.key for d in classify(load("demo", sets=["fault.untimed_sleep_seconds=2"]))[2]
    }


def test_choices_are_what_the_program_has() -> None:
    known = settings()
    assert set(known["search.method"][1].choices) == set(SEARCHES)
    assert set(known["hpo.method"][1].choices) == set(OPTIMISERS)


def test_every_setting_has_a_text_and_allows_its_default() -> None:
    for key, (_, meaning) in settings().items():
        assert meaning.text, key
    assert from_toml(Config().to_toml()) == Config()
    assert {item.name for item in fields(Config)} == {key.partition(".")[0] for key in settings()}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.learning_rate", "train.lr"),
        ("train.batch_size", "train.batch_per_device"),
        ("train.width", "model.width"),
        ("time-limit", "run.time_limit"),
        ("parallel.devices", "parallel.host_devices"),
        ("data.size", "data.image_size"),
    ],
)
def test_nearest_is_what_was_meant(key: str, meant: str) -> None:
    assert nearest(key, settings()) == meant


def test_a_space_to_depth_stem_needs_an_even_image_size() -> None:
    assert load("demo", sets=["train.stem='space_to_depth'"]).train.stem == "space_to_depth"
    with pytest.raises(ConfigError, match="train.stem: space_to_depth needs .* data.image_size is 33"):
        load("demo", sets=["train.stem='space_to_depth'", "data.image_size=33"])


# -- configurations of version 0.1 -------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "form"), [("true", "cifar"), ("false", "none")])
def test_an_earlier_configuration_keeps_its_meaning_and_its_rules(stored: str, form: str) -> None:
    text = f"[data]\naugment = {stored}\nworkers = 48\n"
    config = from_toml(text)
    assert config.data.augmentation == form and config.data.workers == 48
    departures = [str(departure) for departure in classify(config, stored=text)[2]]
    expected = "data.augment = false (default: true; authors' code)"
    assert departures == ([expected] if stored == "false" else [])

    # Today's rules know neither the setting nor its rule.
    assert [d.key for d in classify(config)[2]] == ["data.augmentation", "run.official"]


def test_an_earlier_number_of_threads_above_todays_most_is_read() -> None:
    text = "[data]\naugment = true\nworkers = 64\n"
    config = from_toml(text)
    assert config.data.workers == 48
    assert [d.key for d in classify(config, stored=text)[2]] == ["data.workers"]
    for wrong in ("[data]\nworkers = 64\n", "[data]\naugment = true\nworkers = 4097\n"):
        with pytest.raises(ConfigError, match="data.workers"):
            from_toml(wrong)


def test_an_earlier_setting_is_read_from_stored_configurations_alone() -> None:
    with pytest.raises(ConfigError, match="data.augment is not a setting; did you mean data.augmentation?"):
        load("demo", sets=["data.augment=false"])
    with pytest.raises(ConfigError, match="result: data.augment: 1 is an integer, but must be true or false"):
        from_toml("[data]\naugment = 1\n", "result")


@pytest.mark.parametrize(
    ("name", "form"), [("imagenet", "resized_crop"), ("cifar10", "cifar"), ("demo", "none")]
)
def test_each_data_set_has_its_augmentation(name: str, form: str) -> None:
    assert load(name).data.augmentation_form == form
    assert load(name, sets=["data.augmentation=crop"]).data.augmentation_form == "crop"


def test_stored_images_are_as_large_as_the_networks_or_larger() -> None:
    assert load("imagenet").data.stored_side == 224
    assert load("imagenet", sets=["data.stored_size=256"]).data.stored_side == 256
    with pytest.raises(ConfigError, match="data.stored_size: 192 is less than data.image_size = 224"):
        load("imagenet", sets=["data.stored_size=192"])
    with pytest.raises(
        ConfigError, match="data.stored_size: 40 does not fit data.name = 'cifar10', which needs 32"
    ):
        load("cifar10", sets=["data.stored_size=40"])

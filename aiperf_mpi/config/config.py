# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: frozen dataclasses, filled from defaults, a preset, files, flags and `--set`.

Later sources win: default < preset < files (in order) < flags < `--set`. The settings themselves, and what
the paper's rules say of them, are in :mod:`aiperf_mpi.config.sections`; :mod:`aiperf_mpi.config.classes`
compares a configuration with the rules.
"""

from __future__ import annotations

import hashlib
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from aiperf_mpi.config.datasets import DATASETS
from aiperf_mpi.config.declared import Declared, check_declared, check_unknown
from aiperf_mpi.config.earlier import translated
from aiperf_mpi.config.expected import SECTION, Expected, expected_of
from aiperf_mpi.config.fault import Fault
from aiperf_mpi.config.paths import expanded
from aiperf_mpi.config.search import Hpo, Search
from aiperf_mpi.config.sections import Data, Model, Monitor, Parallel, Result, Run, Train
from aiperf_mpi.config.setting import ConfigError, Meaning, checked, nearest, shown, toml_value
from aiperf_mpi.config.toml import TomlError, parse, read
from aiperf_mpi.network.architecture import Base, resnet50
from aiperf_mpi.printable import counted, named

__all__ = ["Config", "ConfigError", "from_toml", "load", "preset_expectation", "preset_names"]

#: Most names that a message lists as choices.
MOST_CHOICES = 12


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a run. Build one with :func:`load` or :func:`from_toml`, which check it."""

    run: Run = field(default_factory=Run)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    train: Train = field(default_factory=Train)
    search: Search = field(default_factory=Search)
    hpo: Hpo = field(default_factory=Hpo)
    parallel: Parallel = field(default_factory=Parallel)
    result: Result = field(default_factory=Result)
    monitor: Monitor = field(default_factory=Monitor)
    declared: Declared = field(default_factory=Declared)
    fault: Fault = field(default_factory=Fault)

    @property
    def base(self) -> Base:
        """The shape of the network before any morph."""
        data, model = self.data, self.model
        return Base(data.image_size, data.channels, data.classes, model.width, model.blocks)

    def to_toml(self) -> str:
        """Return the whole configuration as TOML; :func:`from_toml` makes an equal Config from it."""
        lines = []
        for name in _SECTIONS:
            section = getattr(self, name)
            lines.append(f"[{name}]")
            lines += [f"{item.name} = {toml_value(getattr(section, item.name))}" for item in fields(section)]
            lines.append("")
        return "\n".join(lines)

    @property
    def sha256(self) -> str:
        """SHA-256 of :meth:`to_toml`, in hexadecimal digits."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()


_SECTIONS: Mapping[str, type] = {
    item.name: typing.get_type_hints(Config)[item.name] for item in fields(Config)
}

#: Command-line flags and their settings.
FLAGS = {
    "seed": "run.seed",
    "time_limit": "run.time_limit",
    "output": "run.output",
    "stage": "data.stage",
    "view": "run.view",
    "ranks_per_node": "parallel.ranks_per_node",
}


@cache
def settings() -> Mapping[str, tuple[Any, Meaning]]:
    """Return the type and the :class:`Meaning` of every setting, by key (`section.name`)."""
    return {
        f"{name}.{item.name}": (typing.get_type_hints(section)[item.name], item.metadata["meaning"])
        for name, section in _SECTIONS.items()
        for item in fields(section)
    }


def preset_names() -> tuple[str, ...]:
    """Return the names of the presets in the package, sorted."""
    names = (entry.name for entry in resources.files("aiperf_mpi.config.presets").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load(
    preset: str | None = None, files: Iterable[str | Path] = (), sets: Sequence[str] = (), **flags: Any
) -> Config:
    """Return the checked configuration of a run.

    Arguments:
        preset: name of a preset; by default the preset that a file names in `run.preset`, or none.
        files: TOML files; later files win.
        sets: texts `section.name=value` with the value in TOML; a string setting also takes a bare word.
        flags: values for the keys of FLAGS; None if the flag was not given.

    Raises ConfigError naming the source, the key, the value and the nearest valid key.
    """
    from_files: list[tuple[str, str, Any]] = []
    for path in files:
        from_files += _assignments(_settings_of(_read_file(path)), f"--config {named(path)}")
    presets = [value for _, key, value in from_files if key == "run.preset"]
    chosen = preset if preset is not None else (presets[-1] if presets else "")

    # Every source becomes (origin, key, value); the last one wins.
    assignments = _preset_assignments(chosen) if chosen else []
    assignments += from_files
    for flag, value in flags.items():
        if flag not in FLAGS:
            raise ConfigError(f"--{flag}: no such flag; flags: {', '.join(FLAGS)}")
        if value is not None:
            assignments.append((f"--{flag.replace('_', '-')}", FLAGS[flag], value))
    assignments += [_parse_set(text) for text in sets]
    assignments.append(("--preset", "run.preset", chosen))
    config = _with_whole_paths(_build(assignments))
    check_unknown(config.declared)
    return config


def with_changes(config: Config, sets: Sequence[str] = (), **flags: Any) -> Config:
    """Return a configuration with the settings of flags and texts `section.name=value`, as `load` reads them.

    Raises ConfigError as `load` does.
    """
    assignments = list(_assignments(parse(config.to_toml()), "the configuration of the run"))
    assignments += [
        (f"--{flag.replace('_', '-')}", FLAGS[flag], value)
        for flag, value in flags.items()
        if value is not None
    ]
    return _with_whole_paths(_build([*assignments, *map(_parse_set, sets)]))


def from_toml(text: str, origin: str = "configuration") -> Config:
    """Return the configuration that :meth:`Config.to_toml` wrote; no preset is read.

    Settings of version 0.1 become those of today, see :mod:`aiperf_mpi.config.earlier`. `origin` names the
    text in messages. Raises ConfigError if the text is not a configuration.
    """
    try:
        tables = parse(text)
    except TomlError as error:
        raise ConfigError(f"{origin}: {error}") from None
    return _build(translated(_assignments(tables, origin)))


def with_data(config: Config, changes: Mapping[str, int]) -> Config:
    """Return the configuration with other settings of section `data`.

    Raises ConfigError where they contradict others.
    """
    changed = replace(config, data=replace(config.data, **changes))  # type: ignore[arg-type]
    _check_together(changed)
    return changed


# -- reading the sources ---------------------------------------------------------------------------


def value_of(config: Config, key: str) -> Any:
    """Return the value of a setting by its key."""
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _read_file(path: str | Path) -> dict[str, Any]:
    """Return the tables of a TOML file. Raises ConfigError naming the file."""
    names = preset_names()
    hint = f"use --preset {Path(path).stem}" if Path(path).stem in names else "check the path"
    return read(path, hint)


def _preset_assignments(name: str) -> list[tuple[str, str, Any]]:
    """Return the values of a preset as (origin, key, value)."""
    names = preset_names()
    if name not in names:
        guess = nearest(str(name), names)
        hint = f" did you mean {guess!r}?" if guess else ""
        raise ConfigError(f"preset {shown(name)} is unknown;{hint} presets: {', '.join(names)}")
    return list(_assignments(_settings_of(_preset_tables(name)), f"preset {name}"))


def _settings_of(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a file without what it expects of a run, which a copy of a preset has, too."""
    return {key: value for key, value in tables.items() if key != SECTION}


def _preset_tables(name: str) -> dict[str, Any]:
    return parse((resources.files("aiperf_mpi.config.presets") / f"{name}.toml").read_text(encoding="utf-8"))


def preset_expectation(name: str) -> Expected:
    """Return what a run of a preset of the package is expected to give."""
    return expected_of(_preset_tables(name))


def _assignments(tables: Mapping[str, Any], origin: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the values of a TOML document as (origin, key, value); a key outside of a table has no dot."""
    for section, content in tables.items():
        if isinstance(content, dict):
            yield from ((origin, f"{section}.{name}", value) for name, value in content.items())
            if not content and section not in _SECTIONS:
                yield origin, section, content
        else:
            yield origin, section, content


def _parse_set(text: str) -> tuple[str, str, Any]:
    """Return the argument of one `--set` as (origin, key, value)."""
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not text.isprintable():
        raise ConfigError(
            f"--set {shown(text)}: has characters that cannot be printed; one --set takes one setting"
        )
    if not equals or not key:
        raise ConfigError(
            f"--set {named(text)}: write it as section.name=value, for example --set train.lr=0.05"
        )
    if key not in settings():
        form = f"{key}.NAME=VALUE"
        raise ConfigError(f"--set {named(text)}: {_unknown_key(key, form)}")
    try:
        return f"--set {named(text)}", key, parse(f"value = {value}")["value"]
    except TomlError:
        if settings()[key][0] is str:
            return f"--set {named(text)}", key, value
        raise ConfigError(
            f'--set {named(text)}: {shown(value)} is not a TOML value (a number, true, "text", [1, 2])'
        ) from None


def _unknown_key(key: str, form: str) -> str:
    """Return why `key` is not a setting, and what to write; `form` is how to write a setting of a section."""
    key = named(key)
    if key in _SECTIONS:
        return f"{key} is a section; write {form}"
    if guess := nearest(key, (*_SECTIONS, *settings())):
        return f"{key} is not a setting; did you mean {guess}?"
    section = key.partition(".")[0]
    if section in _SECTIONS:
        names = [item.name for item in fields(_SECTIONS[section])]
        known = ", ".join(names) if len(names) <= MOST_CHOICES else "the option --check prints them"
        return f"{key} is not a setting; those of section {section}: {known}"
    return f"{key} is not a setting; sections: {', '.join(_SECTIONS)}"


def _build(assignments: Iterable[tuple[str, str, Any]]) -> Config:
    """Build a configuration from (origin, key, value); the last value of a key wins."""
    known = settings()
    values: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    for origin, key, value in assignments:
        if key not in known:
            raise ConfigError(f"{origin}: {_unknown_key(key, f'[{key}], and NAME = VALUE below it')}")
        section, _, name = key.partition(".")
        try:
            values[section][name] = checked(key, value, *known[key])
        except ConfigError as error:
            raise ConfigError(f"{origin}: {error}") from None

    config = Config(**{name: section(**values[name]) for name, section in _SECTIONS.items()})
    _check_together(config)
    return config


def _with_whole_paths(config: Config) -> Config:
    """Return the configuration with whole paths, `~` and variables replaced. Raises ConfigError.

    One rank does it for all: another rank may have another working directory or home folder.
    """

    def whole(key: str) -> str:
        text = value_of(config, key)
        return str(expanded(key, text)) if text else ""

    return replace(
        config,
        run=replace(config.run, output=whole("run.output")),
        data=replace(config.data, path=whole("data.path"), stage=whole("data.stage")),
        parallel=replace(config.parallel, cache=whole("parallel.cache")),
    )


def _check_together(config: Config) -> None:
    """Raise ConfigError if settings contradict one another."""
    data, train, search = config.data, config.train, config.search
    _check_data(data)
    check_declared(config.declared, train.precision)
    if train.batch_per_device > data.train_images:
        raise ConfigError(
            f"train.batch_per_device: {train.batch_per_device} is more than data.train_images = "
            f"{data.train_images}: an epoch would have no whole batch"
        )
    if max(train.round_epochs) > train.epochs:
        raise ConfigError(
            f"train.round_epochs: {max(train.round_epochs)} is more than train.epochs = {train.epochs}: "
            "the learning rate would fall below zero"
        )
    if list(train.round_epochs) != sorted(train.round_epochs):
        raise ConfigError(f"train.round_epochs: {list(train.round_epochs)} must not fall from round to round")
    if train.patience_base > train.patience_max:
        raise ConfigError(
            f"train.patience_base: {train.patience_base} is more than train.patience_max = "
            f"{train.patience_max}"
        )
    if search.sample_size > search.population:
        raise ConfigError(
            f"search.sample_size: {search.sample_size} is more than search.population = {search.population}"
        )
    if config.hpo.enabled and max(config.hpo.batches) > data.train_images:
        raise ConfigError(
            f"hpo.batches: {max(config.hpo.batches)} is more than data.train_images = {data.train_images}: "
            "an epoch would have no whole batch"
        )
    try:
        initial = resnet50(config.base)
    except ValueError as error:
        raise ConfigError(f"data and model: {error}") from None
    if search.max_units < initial.unit_count:
        raise ConfigError(
            f"search.max_units: {search.max_units} is less than the "
            f"{counted(initial.unit_count, 'unit')} of the initial network"
        )
    if search.max_parameters < initial.parameters:
        raise ConfigError(
            f"search.max_parameters: {search.max_parameters} is less than the {initial.parameters} "
            f"parameters of the initial network: no child of it would fit"
        )
    if train.stem != "plain" and data.image_size % 2:
        raise ConfigError(
            f"train.stem: {train.stem} needs images of an even size, but data.image_size is "
            f'{data.image_size}; set train.stem = "plain"'
        )
    even = [kernel for kernel in config.hpo.kernels if kernel % 2 == 0]
    if even:
        raise ConfigError(f"hpo.kernels: {even[0]} is even; kernels are odd, so that they have a centre")


def _check_data(data: Data) -> None:
    """Check the shape and the number of images against the limits of the data set."""
    limits = DATASETS[data.name]
    for key, value, allowed in (
        ("classes", data.classes, limits.classes),
        ("channels", data.channels, limits.channels),
        ("image_size", data.image_size, limits.sizes),
        ("stored_size", data.stored_side, (data.image_size,) if limits.in_memory else ()),
    ):
        if allowed and value not in allowed:
            choices = " or ".join(str(choice) for choice in allowed)
            raise ConfigError(
                f"data.{key}: {value} does not fit data.name = {data.name!r}, which needs {choices}"
            )
    if data.stored_side < data.image_size:
        raise ConfigError(
            f"data.stored_size: {data.stored_size} is less than data.image_size = {data.image_size}: devices "
            "crop the stored images, and do not enlarge them"
        )
    for key, most in zip(("train_images", "val_images"), limits.images, strict=False):
        if (value := getattr(data, key)) > most:
            raise ConfigError(
                f"data.{key}: {value} is more than the {counted(most, 'image')} of data.name = {data.name!r}"
            )

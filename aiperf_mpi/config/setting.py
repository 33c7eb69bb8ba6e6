# SPDX-License-Identifier: Apache-2.0
"""Declare and check a single setting: its default, its bounds, and the rule that applies to it.

:mod:`aiperf_mpi.config.sections` declares the settings with :func:`setting`; :func:`checked` converts a value
that a person wrote into the value that the benchmark uses, or reports the problem.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from aiperf_mpi.ending import Refusal
from aiperf_mpi.printable import plain

#: Sources of the rules.
TABLE_4 = "Table 4"
SECTION_4_5 = "section 4.5"

#: Kinds of rules (section 4.5 of the paper). A run that departs from a fixed rule is not official; a run that
#: departs from a default belongs to the open division.
FIXED, DEFAULT = "fixed", "default"


#: Least similarity (`difflib`) of a name to the one that a message suggests for it. Half of it is enough
#: where the whole keys are as similar as that.
SIMILAR = 0.6


#: Most bits of an integer (the magnitude of a signed 64-bit one).
INTEGER_BITS = 63

#: Most characters of a value or name in a message, and of a name for which a similar one is searched.
MOST_SHOWN = 120


class ConfigError(Refusal, ValueError):
    """A configuration that cannot be run; the message names the key, the value and what to write instead."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The benchmark's rule for a setting.

    Attributes:
        kind: fixed or default.
        expected: the value that it requires.
        source: its place.
        others: values that it allows as well.
        least: whether larger values than `expected` are allowed as well.
    """

    kind: str
    expected: Any
    source: str
    others: tuple[Any, ...] = ()
    least: bool = False

    def allows(self, value: Any) -> bool:
        """Return whether a value of the setting keeps the rule."""
        return value in (self.expected, *self.others) or (self.least and value >= self.expected)

    @property
    def words(self) -> str:
        """The values that it allows, as TOML text."""
        values = " or ".join(map(toml_value, (self.expected, *self.others)))
        return f"at least {values}" if self.least else values


@dataclass(frozen=True, slots=True)
class Meaning:
    """Description of a setting: one line of text, inclusive bounds, choices, and its rule."""

    text: str
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    rule: Rule | None = None


def setting(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[Any] = (),
    rule: str = "",
    source: str = "",
    others: tuple[Any, ...] = (),
    least: bool = False,
) -> Any:
    """Return a dataclass field with its :class:`Meaning` in the metadata.

    `rule` is FIXED, DEFAULT or empty; the rule requires the field's default, or as `others` and `least` of
    :class:`Rule` say; `source` is its place. Bounds and choices apply to each element of a tuple.
    """
    marked = Rule(rule, default, source, others, least) if rule else None
    return field(default=default, metadata={"meaning": Meaning(text, low, high, tuple(choices), marked)})


def nearest(key: str, known: Iterable[str]) -> str:
    """Return the key of `known` that a person probably meant by `key`; "" if none is similar.

    It is the same name in another section, if there is one. Otherwise it is the most similar key of the same
    section, or of all sections if that section does not exist. A key that is the short form of the name (`lr`
    of `learning_rate`) counts as most similar.
    """
    section, _, name = key[:MOST_SHOWN].rpartition(".")
    key, every = key[:MOST_SHOWN], list(known)
    same_name = [candidate for candidate in every if candidate.rpartition(".")[2] == name]
    same_section = [candidate for candidate in every if section and candidate.rpartition(".")[0] == section]

    def is_similar(candidate: str) -> bool:
        other = candidate.rpartition(".")[2]
        if len(name) >= 3 and other.startswith(name) or likeness(candidate) >= 3:
            return True
        of_key = difflib.SequenceMatcher(None, key, candidate).ratio()
        of_name = difflib.SequenceMatcher(None, name, other).ratio()
        return of_name >= SIMILAR or (of_key >= SIMILAR and of_name >= SIMILAR / 2)

    def likeness(candidate: str) -> float:
        other = candidate.rpartition(".")[2]
        if other == "".join(part[:1] for part in name.split("_")):
            return 3.0
        # A name that is a word of the other, such as `size` of `image_size`, is as near as its beginning.
        common = name if name in other.split("_") else os.path.commonprefix([name, other])
        start = len(common) / max(1, len(name))
        return (
            difflib.SequenceMatcher(None, key, candidate).ratio()
            + difflib.SequenceMatcher(None, name, other).ratio()
            + start
        )

    guess = max(same_name or same_section or every, key=likeness, default="")
    return guess if same_name or is_similar(guess) else ""


def checked(key: str, value: Any, kind: Any, meaning: Meaning) -> Any:
    """Return `value` as the setting's type `kind`.

    Integers are converted to floats and lists to tuples; nothing else is converted, so that a typing error is
    found. Raises ConfigError naming the key, the value and the reason.
    """
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(
                f"{key}: {shown(value)} is not a list of {_kind_name(kind)}, for example {key} = [...]"
            )
        if not value:
            raise ConfigError(f"{key}: the list is empty, but needs at least one entry")
        element = typing.get_args(kind)[0]
        return tuple(checked(key, entry, element, meaning) for entry in value)

    if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
        raise ConfigError(f"{key}: an integer of {value.bit_length()} bits is too large")
    # A bool is an int in Python, but `seed = true` is a mistake in a configuration.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(
            f"{key}: {shown(value)} is {_kind_name(type(value))}, but must be {_kind_name(kind)}"
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: {shown(value)} is not a finite number")
    if isinstance(value, str) and not value.isprintable():
        more = f"; {remedy}" if (remedy := of_locale(value)) else ""
        raise ConfigError(f"{key}: {shown(value)} has characters that cannot be printed{more}")

    if meaning.choices and value not in meaning.choices:
        if len(meaning.choices) == 1:
            raise ConfigError(f"{key}: this version has only {key} = {toml_value(meaning.choices[0])}")
        options = ", ".join(str(choice) for choice in meaning.choices)
        guess = nearest(value, meaning.choices) if isinstance(value, str) else ""
        hint = f"; did you mean {guess!r}?" if guess else ""
        raise ConfigError(f"{key}: {shown(value)} is none of {options}{hint}")
    if meaning.low is not None and value < meaning.low:
        raise ConfigError(f"{key}: {shown(value)} is too small, the least is {meaning.low:g}")
    if meaning.high is not None and value > meaning.high:
        raise ConfigError(f"{key}: {shown(value)} is too large, the most is {meaning.high:g}")
    return value


def of_locale(text: str) -> str:
    """Return the remedy for bytes of a text that UTF-8 can read but the locale cannot."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8" or not any("\udc80" <= letter <= "\udcff" for letter in text):
        return ""
    try:
        text.encode(errors="surrogateescape").decode()
    except UnicodeError:
        return ""
    return f"this locale reads them as {encoding}: set PYTHONUTF8=1, or a UTF-8 locale (LC_ALL=C.UTF-8)"


def shown(value: Any) -> str:
    """Return a value for a message: its Python text, cut after MOST_SHOWN characters.

    A value without such a text, as it is nested too deeply or has too many digits, is named by its type.
    """
    try:
        text = plain(repr(value))
    except (RecursionError, ValueError):
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def toml_value(value: Any) -> str:
    """Format a bool, int, float, string or tuple of them as TOML text."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
        case tuple():
            return "[" + ", ".join(toml_value(entry) for entry in value) + "]"
        case _:
            return repr(value)


def _kind_name(kind: Any) -> str:
    """Return the name of a type for a message."""
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string", list: "a list"}
    if isinstance(kind, types.GenericAlias):
        return {int: "integers", float: "numbers", str: "strings"}[typing.get_args(kind)[0]]
    return names.get(kind, f"a {getattr(kind, '__name__', kind)}")

# SPDX-License-Identifier: Apache-2.0
"""Read an architecture that a person wrote as JSON (`--arch`): bounded, and refused in one line."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from aiperf_mpi.config.paths import expanded, message, readable_file, reading
from aiperf_mpi.config.setting import ConfigError
from aiperf_mpi.files import read_text
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.printable import plain

#: Most bytes of an architecture file: the longest list of morphs takes a tenth of it.
MOST_BYTES = 4 << 20

#: Most morphs, and most parameters (also the most of `search.max_parameters`), of a network from a file.
MOST_MORPHS, MOST_PARAMETERS = 4096, 2**40

_OPTION, _FORMAT = "--arch", "see docs/architecture-json.md"

#: Most characters of a reason, which may quote a value of the file.
_MOST_REASON = 300


def read_architecture(path: str) -> Architecture:
    """Return the architecture of a JSON file. Raises ConfigError naming the file, the reason, what to do."""
    file = expanded(_OPTION, path, stored=False)
    readable_file(_OPTION, file, "name a JSON file")
    with reading(_OPTION, file, f"name a JSON file of at most {MOST_BYTES} bytes"):
        text = read_text(file, MOST_BYTES)
    try:
        data = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
        morphs = data.get("morphs") if isinstance(data, dict) else None
        if isinstance(morphs, list) and len(morphs) > MOST_MORPHS:
            raise ValueError(f"architecture: {len(morphs)} morphs are more than {MOST_MORPHS}, the most")
        architecture = Architecture.from_dict(data)
        if architecture.parameters > MOST_PARAMETERS:
            raise ValueError(f"architecture: more than {MOST_PARAMETERS} parameters, the most")
        return architecture
    except json.JSONDecodeError as error:
        reason = f"not JSON (line {error.lineno}, column {error.colno})"
    except RecursionError:
        reason = "architecture: the JSON text is nested too deep"
    except (ValueError, TypeError) as error:
        reason = plain(str(error))[:_MOST_REASON]
        if "integer string conversion" in reason:
            reason = "architecture: a number has too many digits"
    raise ConfigError(message(_OPTION, file, reason, _FORMAT)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError for a key that it has twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"architecture: the key {key[:80]!r} is written twice")
        found[key] = value
    return found


def _no_number(word: str) -> NoReturn:
    """Raise ValueError: NaN and infinities are not JSON."""
    raise ValueError(f"architecture: {word} is not a number in JSON")

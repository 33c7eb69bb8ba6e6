# SPDX-License-Identifier: Apache-2.0
"""The variables of JAX and XLA: which of them would end a process, slow it down, or change its numbers.

Nothing here imports JAX: a wrong variable may end the process at its import.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from aiperf_mpi.config import ConfigError
from aiperf_mpi.files import FileError, read_bytes
from aiperf_mpi.planning.finding import Finding
from aiperf_mpi.printable import counted, plain

#: The flag by which XLA makes several devices of a host's cores, and JAX's variable for the same.
HOST_DEVICES, CPU_DEVICES = "--xla_force_host_platform_device_count", "JAX_NUM_CPU_DEVICES"

#: Variables that slow down training or change its numbers, with what they do.
_CHANGES = {
    "JAX_DISABLE_JIT": "steps are not compiled",
    "JAX_ENABLE_X64": "numbers have 64 bits",
    "JAX_DEBUG_NANS": "each step waits for its values",
    "JAX_DEBUG_INFS": "each step waits for its values",
    "JAX_LOG_COMPILES": "each compilation is logged",
    "JAX_DUMP_IR_TO": "each program is written to a file",
    "JAX_ENABLE_CHECKS": "each operation is checked",
}

#: Endings of shared libraries: of Linux and macOS, which has both.
_LIBRARIES = ("*.so", "*.dylib")

_NO = ("", "0", "false", "f", "no", "n", "off")

#: Most bytes of a file with flags (XLA_FLAGS=/path).
_MOST_BYTES = 1 << 20


def judge(
    environ: Mapping[str, str] = os.environ, cores: int = 0, host_devices: int = 0
) -> tuple[Finding, ...]:
    """Return what is to be said of these variables before JAX reads them; this process has `cores`.

    `host_devices` is the setting that replaces them, where it is not 0.
    """
    found = [*_unknown_flags(environ), *(() if host_devices else _devices(environ, cores))]
    if host_devices and environ.get("JAX_PLATFORMS", "cpu") not in ("", "cpu"):
        text = (
            f"JAX_PLATFORMS={environ['JAX_PLATFORMS'][:80]} is not used: parallel.host_devices asks for CPUs"
        )
        found.append(
            Finding(
                "warn",
                "JAX",
                text,
                "unset JAX_PLATFORMS; on a host with such devices, --set parallel.host_devices=0 uses them",
            )
        )
    for name, effect in _CHANGES.items():
        if environ.get(name, "").lower() not in _NO:
            text = f"{name}={environ[name][:80]}: {effect}"
            found.append(Finding("warn", "JAX", text, f"unset {name} for a run that counts"))
    return tuple(found)


def flags(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the flags in XLA_FLAGS, or in the file that it names. Raises ConfigError for an unreadable file.

    Never waits: XLA itself would wait for the other end of a FIFO.
    """
    text = environ.get("XLA_FLAGS", "").strip()
    if text and not text.startswith("-"):
        try:
            text = read_bytes(text, _MOST_BYTES).decode(errors="replace")
        except FileError as error:
            raise ConfigError(
                f"XLA_FLAGS={plain(text[:200])}: XLA reads a text that does not begin with -- as the name of "
                f"a file: {error.reason}; write --flag=value, or unset XLA_FLAGS"
            ) from None
    return re.findall(r"(?:^|\s)(--?[^\s=]+(?:=(?:\"[^\"]*\"|'[^']*'|\S*))?)", text)


def _unknown_flags(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield a failure for a flag that XLA does not know: it would end the process without an exception."""
    try:
        names = [flag.partition("=")[0] for flag in flags(environ)]
    except ConfigError as error:
        text, _, remedy = str(error).rpartition("; ")
        yield Finding("fail", "JAX", text, remedy)
        return
    unknown = unknown_flags(names)
    if unknown:
        shown = ", ".join(unknown)[:300]
        text = f"XLA_FLAGS: this version of XLA does not know {shown} and would end the process"
        yield Finding("fail", "JAX", text, "remove it from XLA_FLAGS")


def unknown_flags(names: list[str]) -> list[str]:
    """Return those flags whose names are not in jaxlib's libraries; none where these are not found."""
    left = set(names)
    libraries = _libraries() if names else []
    for path in libraries:
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
                left -= {name for name in left if view.find(name.lstrip("-").encode() + b"\0") >= 0}
        except (OSError, ValueError):
            return []
        if not left:
            break
    return sorted(left) if libraries else []


def _libraries() -> list[Path]:
    """Return the shared libraries of jaxlib, the largest first."""
    spec = find_spec("jaxlib")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for folder in folders for ending in _LIBRARIES for path in Path(folder).glob(ending)]
    return sorted(found, key=lambda path: -path.stat().st_size)


def _devices(environ: Mapping[str, str], cores: int) -> Iterator[Finding]:
    """Yield a warning where variables make more devices than this process has cores."""
    texts = {CPU_DEVICES: environ.get(CPU_DEVICES, "")}
    with suppress(ConfigError):  # an unreadable file is a finding of its own
        for flag in flags(environ):
            name, _, value = flag.partition("=")
            if name == HOST_DEVICES and value:
                texts["XLA_FLAGS"] = value
    for name, text in texts.items():
        if text and not text.isdecimal():
            yield Finding(
                "fail", "JAX", f"{name}: {text[:80]!r} is not a number of devices", f"correct {name}"
            )
        if cores and text.isdecimal() and len(text) < 10 and int(text) > cores:
            what = f"{name} makes {int(text)} devices of the {counted(cores, 'core')} of this process"
            yield Finding("warn", "JAX", what, f"unset {name}, or ask for as many cores")


@contextmanager
def told_by_variable(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Turn what JAX raises at its import, or while it opens devices, into a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except (AssertionError, RuntimeError, ValueError, OSError, ImportError, KeyError) as error:
        raise ConfigError("; ".join(cannot_open(type(error).__name__, str(error), environ))) from error


def cannot_open(kind: str, words: str, environ: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return what an error of JAX means, by these variables, and what to do.

    `kind` is the class of the error, "" where JAX has ended its process, and `words` are its text.
    """
    text = " ".join(words.split())[:400]
    platforms = environ.get("JAX_PLATFORMS") or environ.get("JAX_PLATFORM_NAME")
    named = [name for name in sorted(environ) if name.startswith("JAX_") and name.lower() in text.lower()]
    if named and "JAX_PLATFORMS" not in named:
        shown = ", ".join(f"{name}={environ[name][:80]}" for name in named)
        return f"{shown}: JAX does not accept it: {text}", "correct or unset it"
    if platforms:
        variable = "JAX_PLATFORMS" if environ.get("JAX_PLATFORMS") else "JAX_PLATFORM_NAME"
        reason = text or "its plugin finds no device"
        return (
            f"{variable}={platforms[:80]}: JAX cannot open it on this host: {reason}",
            f"install the extra for it (cuda12, cuda13, rocm), ask for its devices, or unset {variable}; "
            f"{variable}=cpu trains on the CPU",
        )
    return (
        f"JAX cannot open its devices: {': '.join(filter(None, (kind, text)))}",
        "look at the driver, at LD_LIBRARY_PATH and at the variables of CUDA, ROCm and XLA, or set "
        "JAX_PLATFORMS=cpu to train on the CPU",
    )

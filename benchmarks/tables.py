# SPDX-License-Identifier: Apache-2.0
"""Write results of benchmarks: Markdown tables, the same data as JSON, and the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from aiperf_mpi.config import ConfigError
from aiperf_mpi.config.paths import expanded
from aiperf_mpi.machine.inventory import cpu, packages, source

#: Environment variables that change how fast a step is.
FLAGS = (
    "XLA_FLAGS",
    "JAX_PLATFORMS",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with the first column left-aligned and all others right-aligned.

    Raises ValueError for a row whose number of cells is not that of `heads`.
    """
    lines = [list(map(str, row)) for row in rows]
    for line in lines:
        if len(line) != len(heads):
            raise ValueError(f"a table of {len(heads)} columns: a row of {len(line)}: {line}")
    rule = ["---"] + ["---:"] * (len(heads) - 1)
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/") for cell in line) + " |"
        for line in [list(heads), rule, *lines]
    )


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits, or more before its point; `-` for None."""
    if value is None:
        return "-"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def goals(met: Mapping[str, bool]) -> str:
    """Return a line for each goal that says whether it is met."""
    return "\n".join(f"- {goal}: {'met' if good else 'MISSED'}" for goal, good in met.items())


def machine() -> dict[str, Any]:
    """Return the hardware and software that numbers depend on, without names of host, folders or users."""
    processor = cpu()
    return {
        "processor": processor["model"],
        "cores": processor["usable"],
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "packages": packages(),
        "source": source(),
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "driver": _driver(),
    }


def described(facts: dict[str, Any]) -> str:
    """Return one paragraph of `machine()`, with the devices if a part has added them."""
    versions = ", ".join(
        f"{name} {facts['packages'][name]}" for name in ("jax", "flax") if name in facts["packages"]
    )
    commit = (facts["source"]["commit"] or "unknown")[:12] + (
        " with changes" if facts["source"]["dirty"] else ""
    )
    text = (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, load {facts['load']} at "
        f"the start; Python {facts['python']}, {versions}; source {commit}"
    )
    devices = facts.get("devices")
    flags = (
        "; " + ", ".join(f"{name}={value}" for name, value in facts["flags"].items())
        if facts["flags"]
        else ""
    )
    return (
        text
        + (f"; {devices['count']} x {devices['kind']} ({devices['platform']})" if devices else "")
        + flags
        + "."
    )


def out_folder(text: str, option: str = "--out") -> Path:
    """Return the folder of an option, absolute; argparse tells what is wrong with it before anything is
    measured."""
    try:
        return expanded(option, text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def write(folder: Path | None, name: str, text: str, data: Any, quiet: bool = False) -> None:
    """Print the text unless `quiet`; with a folder, write it as NAME.md and the data as NAME.json."""
    if not quiet:
        print(text, flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text.rstrip() + "\n")
        (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")


def _driver() -> str:
    """Return the version of NVIDIA's driver; empty without one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""

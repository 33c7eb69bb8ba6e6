# SPDX-License-Identifier: Apache-2.0
"""Measure a training step and its parts: ResNet-50 and three of its morphs on one device.

    python benchmarks/training.py --preset gpu|cpu [--levers] [--flags] [--profile] [--run] [--out FOLDER]

By default it measures: images/s and OPS next to the same process's matrix products and copies; pmap against
plain jit; fed against resident batches; cold against warm compilation, and what a compilation costs the steps
that run meanwhile; the same step in PyTorch, in turn with ours. `--levers` and `--flags` try what may make
the step faster, one change at a time; `--profile` shows where its time goes; `--run` trains candidates under
mpirun and reads the gaps between them from the result file. `--only` names the parts to run.

Every part runs in a process of its own, with a limit of its own; the tables are written after each of them,
so earlier results stay if a later part fails or the time is up.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import pages  # noqa: E402
from benchmarks.levers import FLAGS, levers  # noqa: E402
from benchmarks.shape import PRESETS, Shape  # noqa: E402
from benchmarks.tables import described, machine, out_folder, write  # noqa: E402

#: Parts that run by default, and parts with an option of their own.
USUAL = ("throughput", "morphs", "mapped", "fed", "compilation", "beside", "peer")
ASKED = ("levers", "flags", "profile", "run")

Row = dict[str, Any]

#: Fields of a shape that are folders of this machine, which the output leaves out.
LOCAL = ("cache", "peer_python")


class Session:
    """Runs parts one after the other until the time is up, and keeps their rows."""

    def __init__(self, given: argparse.Namespace, shape: Shape) -> None:
        self.given, self.shape = given, shape
        self.end = time.monotonic() + given.seconds
        self.found: Row = {
            "machine": machine(),
            "parts": {},
            "shape": {key: value for key, value in dataclasses.asdict(shape).items() if key not in LOCAL},
        }

    def part(
        self, title: str, part: str, environ: Row | None = None, cache: str | None = None, **options: Any
    ) -> None:
        """Run a part of PARTS in `parts.py` and add its rows to those of the table `title`."""
        shape = self.shape if cache is None else dataclasses.replace(self.shape, cache=cache)
        rows = self.found["parts"].setdefault(title, [])
        words = json.dumps({"shape": dataclasses.asdict(shape), **options})
        for row in self._rows(part, words, {**os.environ, **(environ or {})}):
            if "devices" in row:
                self.found["machine"]["devices"] = row["devices"]
            else:
                rows.append({"name": options.get("name", part), **row})
        self.save()

    def _rows(self, name: str, options: str, environ: Row) -> list[Row]:
        limit = min(self.given.limit, self.end - time.monotonic())
        if limit <= 0:
            return [{"failed": f"not run: the {self.given.seconds:g} s of --seconds were over"}]
        words = [sys.executable, str(Path(__file__).with_name("parts.py")), name, options]
        begin = time.monotonic()
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=limit, env=environ)
        except subprocess.TimeoutExpired as stopped:
            text, ending = stopped.stdout or b"", f"stopped after its {limit:.0f} s"
            text = text.decode() if isinstance(text, bytes) else text
        else:
            text, ending = done.stdout, ""
            if done.returncode:
                last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
                ending = f"its process ended with status {done.returncode}: {' '.join(last)}"[:300]
        rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        print(f"{name}: {time.monotonic() - begin:.0f} s {ending}", file=sys.stderr, flush=True)
        return rows + ([{"failed": ending}] if ending else [])

    def save(self) -> None:
        """Write the tables so far."""
        if self.given.out is not None:
            write(self.given.out, self.given.name, self.text(), self.found, quiet=True)

    def text(self) -> str:
        """Return the page: a paragraph on the machine and a table for each part."""
        tables = [pages.PAGES[title](rows) for title, rows in self.found["parts"].items()]
        shape = ", ".join(
            f"{key} {value}" for key, value in self.found["shape"].items() if value not in ("", None)
        )
        return "\n\n".join(
            [f"# {self.given.title}", described(self.found["machine"]), f"Shape: {shape}.", *tables]
        )


# -- the parts, each with the processes that it takes ----------------------------------------------


def run_compilation(session: Session) -> None:
    """Compile the same program twice, each time in a new process, with one cache that is empty at first."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            session.part("compilation", "compilation", cache=folder)
            session.found["parts"]["compilation"][-1]["name"] = name
    session.save()


def run_peer(session: Session) -> None:
    """Compare with PyTorch. Two processes share the device, so neither may reserve its memory."""
    session.part("peer", "peer", {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


def run_levers(session: Session) -> None:
    """Measure changes of the program, each in one process with the default."""
    shape = session.shape
    for lever in levers(shape.batches, shape.precision, shape.width):
        session.part(
            "levers", "lever", name=lever.name, changes=dict(lever.settings), network=dict(lever.network)
        )


def run_flags(session: Session) -> None:
    """Measure flags of XLA, each in its own process between two of the default."""
    session.part("flags", "plain_step", name="default, before")
    for added in FLAGS["cpu" if session.given.preset == "cpu" else "gpu"]:
        flags = f"{os.environ.get('XLA_FLAGS', '')} {added}".strip()
        session.part("flags", "plain_step", {"XLA_FLAGS": flags}, name=added)
    session.part("flags", "plain_step", name="default, after")


def run_profile(session: Session) -> None:
    """Profile the step; with an output folder, the trace stays next to the tables."""
    if session.given.out is not None:
        session.part("profile", "profile", folder=str(session.given.out / f"{session.given.name}_trace"))
        return
    with tempfile.TemporaryDirectory() as folder:
        session.part("profile", "profile", folder=folder)


def run_candidates(session: Session) -> None:
    """Train candidates under mpirun, see `candidates.py`; their shape comes from the preset."""
    from benchmarks.candidates import measure

    left = min(session.given.run_seconds, session.end - time.monotonic())
    session.found["parts"]["run"] = [measure(session.given.preset, session.given.candidates, left)]
    session.save()


RUNNERS: dict[str, Callable[[Session], None]] = {
    **{
        name: partial(Session.part, title=name, part=name)
        for name in ("throughput", "morphs", "mapped", "fed", "beside")
    },
    "compilation": run_compilation,
    "peer": run_peer,
    "levers": run_levers,
    "flags": run_flags,
    "profile": run_profile,
    "run": run_candidates,
}


def cache_folder(text: str) -> str:
    """Return the folder of `--cache`, absolute, as the text that a shape has in JSON."""
    return str(out_folder(text, "--cache"))


def arguments() -> argparse.Namespace:
    """Parse the command line; options without a value take that of the preset."""
    parser = argparse.ArgumentParser(description="How fast a training step is, and what it is made of.")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="shape and lengths (default cpu)")
    for name in ASKED:
        parser.add_argument(f"--{name}", action="store_true", help=f"the part {name}, too")
    parser.add_argument("--only", help=f"parts to run, of {','.join((*USUAL, *ASKED))}")
    parser.add_argument("--image", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--classes", type=int)
    parser.add_argument("--blocks", type=int, nargs="+")
    parser.add_argument("--batches", type=int, nargs="+", help="the first one is used where only one is")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--steps", type=int, help="of a window")
    parser.add_argument("--repeats", type=int, help="windows")
    parser.add_argument("--matrix", type=int, help="rows of the matrices whose product is measured")
    parser.add_argument("--copy-mib", type=int, help="size of the array that is copied")
    parser.add_argument("--fed-images", type=int, help="images of the data set that is read")
    parser.add_argument("--peers", nargs="+", choices=("eager", "compiled", "autotuned"))
    parser.add_argument("--peer-python", help="the Python that has PyTorch (default: this one)")
    parser.add_argument(
        "--cache", type=cache_folder, help="compilation cache (default: a folder of this run)"
    )
    parser.add_argument("--candidates", type=int, default=5, help="of --run (default 5)")
    parser.add_argument(
        "--run-seconds", type=float, default=560.0, help="limit of --run, start and end included"
    )
    parser.add_argument("--limit", type=float, default=900.0, help="most seconds of one part's process")
    parser.add_argument("--seconds", type=float, default=36_000.0, help="most seconds of it all")
    parser.add_argument("--name", default="training", help="of the files in --out (default training)")
    parser.add_argument("--title", default="The training step", help="of the page")
    parser.add_argument("--out", type=out_folder, help="folder for NAME.md and .json (default: print only)")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write; return 2 for an unknown part, else 0: a table with failures is a result."""
    given = arguments()
    chosen = (
        given.only.split(",") if given.only else [*USUAL, *(name for name in ASKED if getattr(given, name))]
    )
    if unknown := set(chosen) - set(RUNNERS):
        print(
            f"training.py: no part {', '.join(sorted(unknown))}; parts: {', '.join(RUNNERS)}", file=sys.stderr
        )
        return 2
    asked = {item.name: getattr(given, item.name, None) for item in dataclasses.fields(Shape)}
    shape = dataclasses.replace(
        PRESETS[given.preset],
        **{
            key: tuple(value) if isinstance(value, list) else value
            for key, value in asked.items()
            if value is not None
        },
    )
    with tempfile.TemporaryDirectory() as folder:
        session = Session(given, dataclasses.replace(shape, cache=shape.cache or folder))
        for name in chosen:
            RUNNERS[name](session)
    write(given.out, given.name, session.text(), session.found)
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Train candidates one after the other, as the benchmark does: a real run under mpirun.

    python benchmarks/candidates.py --preset gpu|cpu [--candidates 5] [--seconds 560] [--out FOLDER]

The run has a coordinator, a trainer and a generator; the times come from its result file. On an accelerator,
each candidate trains three epochs of 120,000 made-up images of ImageNet's shape. On a CPU it trains tiny
networks, which show only that it works. The run is drained after enough candidates have ended. `training.py
--run` includes this.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import h5py  # noqa: E402
import numpy as np  # noqa: E402

from aiperf_mpi.phases import PHASES  # noqa: E402
from aiperf_mpi.results.output import journal  # noqa: E402
from aiperf_mpi.trials.record import DONE, OUTCOME, STOPPED  # noqa: E402
from benchmarks import pages  # noqa: E402
from benchmarks.tables import described, machine, out_folder, write  # noqa: E402

RANKS, EPOCHS = 3, 3

#: Settings of a run by preset. Few morphs at a time, so that candidates stay alike and only the gaps differ.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "gpu": (
        "data.train_images=120000",
        "data.val_images=5000",
        "train.batch_per_device=256",
        "hpo.batches=[256]",
        "model.zero_gamma=true",
        "search.max_morphs=2",
    ),
    "cpu": (
        "data.image_size=16",
        "data.classes=4",
        "data.train_images=4096",
        "data.val_images=256",
        "model.blocks=[1,1]",
        "model.width=8",
        "model.zero_gamma=true",
        "train.batch_per_device=32",
        "train.precision='float32'",
        "hpo.batches=[32]",
        "search.max_morphs=2",
        "search.max_units=12",
        "search.max_parameters=100000",
        "parallel.host_devices=1",
        "result.partial_seconds=5.0",
    ),
}

#: A whole validation at the end of each epoch is part of it; no candidate ends before its last epoch.
COMMON = (f"train.round_epochs=[{EPOCHS}]", "train.patience_base=20", "run.tick=5.0")

#: Without these variables, Open MPI refuses to run as root or with more ranks than cores; MPICH ignores them.
LAUNCH = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}

#: Seconds reserved for the end of a run: its last validation and its result file.
ENDING = 45.0

Row = dict[str, Any]


def launcher() -> str:
    """Return the mpiexec of this environment, else of the path; raises RuntimeError without one."""
    own = Path(sysconfig.get_path("scripts")) / "mpiexec"
    launcher_path = str(own) if own.is_file() else shutil.which("mpiexec") or shutil.which("mpirun")
    if not launcher_path:
        raise RuntimeError("there is no mpiexec: install the extra mpich or openmpi, or load the site's MPI")
    return launcher_path


def train(preset: str, candidates: int, seconds: float, folder: Path) -> None:
    """Run into `folder` until enough candidates have ended or `seconds` have passed.

    Raises RuntimeError with the end of the log if the run fails.
    """
    words = [
        launcher(),
        "-n",
        str(RANKS),
        sys.executable,
        "-m",
        "aiperf_mpi",
        "--preset",
        "imagenet-synthetic",
        "--output",
        str(folder),
        "--view",
        "plain",
        "--time-limit",
        str(3600.0),
    ]
    for text in (*SETTINGS[preset], *COMMON):
        words += ["--set", text]
    errors, limit = folder.with_suffix(".log"), time.monotonic() + seconds - ENDING
    with errors.open("w") as log:
        job = subprocess.Popen(
            words,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **LAUNCH},
        )
        try:
            while (
                job.poll() is None
                and time.monotonic() < limit
                and ended(folder / "journal.jsonl") < candidates
            ):
                time.sleep(0.5)
            if job.poll() is None:
                job.send_signal(signal.SIGUSR1)
            job.wait(timeout=ENDING)
        except subprocess.TimeoutExpired:
            raise RuntimeError(
                f"the run did not end within {ENDING:.0f} s of its drain: {last(errors)}"
            ) from None
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
    if job.returncode not in (0, 4):
        raise RuntimeError(f"the run ended with status {job.returncode}: {last(errors)}")


def last(log: Path) -> str:
    """Return the last lines of a log."""
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])[-300:]


def ended(path: Path) -> int:
    """Return the number of candidates that have ended well so far."""
    if not path.exists():
        return 0
    return sum(
        record["kind"] == OUTCOME and record["status"] in (DONE, STOPPED)
        for record in journal.replay(path).records
    )


def summary(path: Path, candidates: int) -> Row:
    """Return the gaps between the first candidates that ended well, and their rates, from the result file.

    Raises RuntimeError if there are none.
    """
    with h5py.File(path) as file:
        trials, epochs, ranks = (
            {name: column[...] for name, column in file[table].items()}
            for table in ("trials", "epochs", "ranks")
        )
        status = "VALID" if file.attrs["valid"] else f"INVALID ({file.attrs['invalid_reasons']})"
        images = int(file.attrs["train_images"])
    good = trials["trial_id"][np.isin(trials["status"].astype(str), ("done", "stopped"))]
    begins = {int(trial): float(trials["t_first_step"][trials["trial_id"] == trial][0]) for trial in good}
    order = sorted(begins, key=lambda trial: begins[trial])[:candidates]
    if not order:
        raise RuntimeError("no candidate ended well")

    rows, before, inside = [], None, 0.0
    for trial in order:
        own = epochs["trial_id"] == trial
        start, end = begins[trial], float(epochs["t_end"][own].max())
        # An epoch is timed from before its first batch is there; a candidate's first one counts from its
        # first step.
        seconds = float((epochs["t_end"] - np.maximum(epochs["t_start"], start))[own].sum())
        samples = int(epochs["train_samples"][own].sum() + epochs["val_samples"][own].sum())
        rows.append(
            {
                "trial": trial,
                "epochs": int(own.sum()),
                "start_s": start,
                "end_s": end,
                "gap_s": None if before is None else start - before,
                "images_per_second": samples / seconds,
                "ops_per_second": float(epochs["ops"][own].sum()) / seconds,
            }
        )
        before, inside = end, inside + seconds
    span = rows[-1]["end_s"] - rows[0]["start_s"]
    trainer = int(np.flatnonzero(ranks["role"].astype(str) == "trainer")[0])
    phases = ", ".join(f"{phase} {ranks[f'seconds_{phase}'][trainer]:.1f} s" for phase in PHASES)
    return {
        "trials": rows,
        "epochs": EPOCHS,
        "train_images": images,
        "status": status,
        "span_s": span,
        "share": inside / span,
        "phases": phases,
    }


def measure(preset: str, candidates: int, seconds: float) -> Row:
    """Return a row with the summary of a run, or with its failure."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(preset, candidates, seconds, Path(folder) / "run")
            return {"name": "run", **summary(Path(folder) / "run" / "result.h5", candidates)}
        except (RuntimeError, OSError, KeyError) as error:
            return {"name": "run", "failed": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Train, print and write; return 1 if the run failed."""
    parser = argparse.ArgumentParser(
        description="Candidates one after the other under mpirun, and the gaps between."
    )
    parser.add_argument("--preset", choices=SETTINGS, default="cpu")
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=560.0, help="limit, start and end included")
    parser.add_argument("--out", type=out_folder, help="folder for candidates.md and .json")
    given = parser.parse_args()
    place = machine()
    row = measure(given.preset, given.candidates, given.seconds)
    text = "\n\n".join(["# Candidates one after the other", described(place), pages.run([row])])
    write(given.out, "candidates", text, {"machine": place, "run": row})
    return int("failed" in row)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The measurements of `training.py`; each runs in its own process and prints one row of JSON after another.

    python benchmarks/parts.py PART OPTIONS      (OPTIONS: JSON with the shape, and what else the part takes)

A row that cannot be measured has its error under `failed`, and the part continues with the next.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from aiperf_mpi.crosscheck.check import check_operations  # noqa: E402
from aiperf_mpi.crosscheck.trace import train_arguments  # noqa: E402
from aiperf_mpi.data.dataset import in_memory  # noqa: E402
from aiperf_mpi.data.loader import train_batches  # noqa: E402
from aiperf_mpi.network.architecture import Architecture  # noqa: E402
from aiperf_mpi.opcount.analytical import operations  # noqa: E402
from aiperf_mpi.opcount.forms import STEMS, executed_difference  # noqa: E402
from aiperf_mpi.training.steps.compile import compile_steps, use_compilation_cache  # noqa: E402
from aiperf_mpi.training.steps.devices import AXIS, Feed  # noqa: E402
from aiperf_mpi.training.steps.dispatch import over_devices  # noqa: E402
from aiperf_mpi.training.steps.step import train_step  # noqa: E402
from aiperf_mpi.trials.candidate import Candidate  # noqa: E402
from benchmarks.ceilings import copy_rate, matrix_rate, modelled_bytes  # noqa: E402
from benchmarks.onestep import MORPHS, Measured, Step, in_turn, morphed, ratio, settings_of  # noqa: E402
from benchmarks.peer import Peer  # noqa: E402
from benchmarks.profiling import by_operation, device_events  # noqa: E402
from benchmarks.shape import Shape  # noqa: E402

Row = dict[str, Any]

#: Bytes of an activation by its precision.
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

#: Steps that a training dispatches ahead of the one that computes (the default of `train.in_flight_steps`).
IN_FLIGHT = 2

#: Python's switch interval next to a compiling thread, in s: with the default, tracing starves the steps.
SWITCH_SECONDS = 2e-4

#: Steps of a profile.
PROFILED_STEPS = 3


def attempt(name: str, work: Callable[[], Row]) -> Row:
    """Return the row that `work` measures, or a row with the error."""
    try:
        return {"name": name, **work()}
    except Exception as error:
        text = " ".join(str(error).split())
        return {"name": name, "failed": f"{type(error).__name__}: {text}"[:300]}
    finally:
        # What a failed or finished step held on the device goes before the next one comes.
        gc.collect()


# -- speed -----------------------------------------------------------------------------------------


def ceilings(shape: Shape) -> Row:
    """Yield the rates of matrix products and of copies in this process."""
    return {
        "bfloat16": matrix_rate(shape.matrix, jnp.bfloat16, shape.repeats),
        "float32": matrix_rate(shape.matrix, jnp.float32, shape.repeats),
        "bytes_per_second": copy_rate(shape.copy_mib << 20, shape.repeats),
        "matrix": shape.matrix,
        "copy_mib": shape.copy_mib,
    }


def throughput(shape: Shape) -> Iterator[Row]:
    """Yield ResNet-50 at every batch size, next to the ceilings of the same process."""
    yield from _speeds(shape, [(shape.name, shape.network, batch) for batch in shape.batches])


def morphs(shape: Shape) -> Iterator[Row]:
    """Yield a morph of ResNet-50 of each kind at the first batch size, as in `throughput`."""
    yield from _speeds(shape, [(op, morphed(shape.network, op), shape.batches[0]) for op in MORPHS])


def _speeds(shape: Shape, cases: Sequence[tuple[str, Architecture, int]]) -> Iterator[Row]:
    tops = attempt("ceilings", lambda: ceilings(shape))
    yield tops

    def measure(network: Architecture, batch: int) -> Row:
        step = Step(network, settings_of(shape, batch_per_device=batch))
        measured = Measured(batch, [step.window(shape.steps) for _ in range(shape.repeats)])
        row = {**step.described(), **measured.as_dict()}
        row["ops_per_second"] = measured.rate * row["operations"]
        row["modelled_bytes"] = modelled_bytes(network.layers(), ITEMSIZE[shape.precision])
        if "failed" not in tops:
            row["of_matrix"] = (
                row["ops_per_second"] / tops["float32" if shape.precision == "float32" else "bfloat16"]
            )
            row["of_memory"] = measured.rate * row["modelled_bytes"] / tops["bytes_per_second"]
            row["of_memory_xla"] = (row["xla_bytes"] or 0) / batch * measured.rate / tops[
                "bytes_per_second"
            ] or None
        return row

    for name, network, batch in cases:
        yield attempt(name, lambda network=network, batch=batch: measure(network, batch))


def mapped(shape: Shape) -> Iterator[Row]:
    """Yield the step under pmap, as the benchmark runs it, and under plain jit, in turn."""

    def measure() -> Row:
        step = Step(shape.network, settings_of(shape))
        plain = jax.jit(
            jax.vmap(train_step(shape.network, step.settings), in_axes=(0, 0, 0, None), axis_name=AXIS),
            donate_argnums=0,
        )
        device, rate = jax.devices()[0], jnp.float32(0.001)
        images, labels = jax.device_put((step.images, step.labels), device)
        state = jax.device_put(jax.tree.map(np.asarray, step.state), device)
        compiled = plain.lower(state, images, labels, rate).compile()

        def window() -> float:
            nonlocal state
            begin = time.perf_counter()
            for _ in range(shape.steps):
                state, metrics = compiled(state, images, labels, rate)
            float(metrics.loss[0])
            return (time.perf_counter() - begin) / shape.steps

        window()
        windows = in_turn({"pmap": lambda: step.window(shape.steps), "jit": window}, shape.repeats)
        return {**windows, **ratio(windows["pmap"], windows["jit"])}

    yield attempt("pmap to jit, time of a step", measure)


def fed(shape: Shape) -> Iterator[Row]:
    """Yield the step on batches from a loader and a thread, and on a batch on the device, in turn."""

    def measure() -> Row:
        batch = shape.batches[0]
        rng, form = np.random.default_rng(0), (shape.image, shape.image, 3)
        train, val = (
            (rng.integers(0, 256, (count, *form), np.uint8), rng.integers(0, shape.classes, count, np.int32))
            for count in (shape.fed_images, batch)
        )
        data = in_memory("random", train, val, shape.classes, "")
        step = Step(shape.network, settings_of(shape))

        def batches() -> Iterator[Any]:
            return itertools.chain.from_iterable(
                train_batches(data, 0, epoch, 1, batch) for epoch in itertools.count()
            )

        with Feed(batches(), step.compiled.sharding, whole=True) as feed:

            def take() -> Any:
                while (batch_taken := feed.take(0.05)) is None:
                    continue
                return batch_taken

            def window() -> float:
                # As a training does: the metrics of a step are fetched while the next ones are under way. The
                # batches that arrived before the window are used up outside of it.
                pending: deque[Any] = deque()
                for count in range(shape.steps + IN_FLIGHT):
                    if count == IN_FLIGHT:
                        while pending:
                            jax.device_get(pending.popleft())
                        begin = time.perf_counter()
                    taken = take()
                    if len(pending) >= IN_FLIGHT:
                        jax.device_get(pending.popleft())
                    pending.append(step.run(taken.images, taken.labels))
                while pending:
                    jax.device_get(pending.popleft())
                return (time.perf_counter() - begin) / shape.steps

            window()
            windows = in_turn({"fed": window, "resident": lambda: step.window(shape.steps)}, shape.repeats)
            begin = time.perf_counter()
            for _ in range(shape.steps):
                take()
            alone = shape.steps * batch / (time.perf_counter() - begin)
        resident = Measured(batch, windows["resident"]).rate
        return {
            **windows,
            **ratio(windows["resident"], windows["fed"]),
            "loader_images_per_second": alone,
            "loader_to_demand": alone / resident,
        }

    yield attempt("fed to resident, images per second", measure)


def compilation(shape: Shape) -> Iterator[Row]:
    """Yield one compilation of the step in this new process: seconds to trace, to lower, and in XLA."""

    def measure() -> Row:
        network, settings = shape.network, settings_of(shape)
        *on_device, rate = train_arguments(network, settings).shapes
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), on_device)
        step = over_devices(
            train_step(network, settings),
            jax.devices()[:1],
            in_axes=(0, 0, 0, None),
            out_axes=(0, None),
            donate=(0,),
        )
        times = [time.perf_counter()]
        # Lowering takes up the trace that the first line makes.
        for work in (lambda: jax.make_jaxpr(step)(*shapes, rate), lambda: step.lower(*shapes, rate)):
            lowered = work()
            times.append(time.perf_counter())
        lowered.compile()
        times.append(time.perf_counter())
        names = ("trace_s", "lower_s", "compile_s")
        return dict(zip(names, np.diff(times).tolist(), strict=True))

    yield attempt("compilation", measure)


def beside(shape: Shape) -> Iterator[Row]:
    """Yield single steps alone, and steps while a thread compiles a morph that is in no cache."""

    def measure() -> Row:
        step = Step(shape.network, settings_of(shape))
        alone = [step.window(1) for _ in range(shape.steps)]
        compiled: list[float] = []
        thread = threading.Thread(
            target=lambda: compiled.append(compile_seconds(morphed(shape.network, "wider")))
        )
        jax.config.update("jax_enable_compilation_cache", False)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_SECONDS)
        thread.start()
        during = []
        while thread.is_alive():
            during.append(step.window(1))
        sys.setswitchinterval(interval)
        thread.join()
        if not compiled:
            raise RuntimeError("the compilation in the thread failed; its message is on standard error")
        return {"alone": alone, "beside": during, "compile_s": compiled[0]}

    def compile_seconds(network: Architecture) -> float:
        begin = time.perf_counter()
        compile_steps(network, settings_of(shape), jax.devices()[:1])
        return time.perf_counter() - begin

    yield attempt("a step during a compilation", measure)


# -- levers ----------------------------------------------------------------------------------------


def lever(shape: Shape, name: str, changes: Row, network: Row) -> Iterator[Row]:
    """Yield the step as it is and with one change, in one process and in turn.

    Arguments:
        changes: fields of `StepSettings`; network: fields of `Shape` that change the network.
    """

    def measure() -> Row:
        other = Shape.of({**shape.__dict__, **network})
        usual = Step(shape.network, settings_of(shape))
        changed = Step(other.network, settings_of(other, **changes))
        windows = in_turn(
            {"default": lambda: usual.window(shape.steps), "changed": lambda: changed.window(shape.steps)},
            shape.repeats,
        )
        rates = {
            key: Measured(step.settings.batch_per_device, windows[key]).rate
            for key, step in (("default", usual), ("changed", changed))
        }
        # Per image, so that other batch sizes compare; in operations, so that other networks do.
        parts = [
            [
                seconds / step.settings.batch_per_device / operations(step.network)[0]
                for seconds in windows[key]
            ]
            for key, step in (("default", usual), ("changed", changed))
        ]
        row = {
            **windows,
            **ratio(*parts),
            **{f"{key}_images_per_second": rate for key, rate in rates.items()},
            **changed.described(),
        }
        return {**row, "ops_per_second": rates["changed"] * row["operations"], **counted(changed)}

    yield attempt(name, measure)


def counted(step: Step) -> Row:
    """Return executed minus credited operations per image; raises if they are not exact."""
    network, settings = step.network, step.settings
    candidate = Candidate.new(
        network,
        (),
        parent_id=-1,
        replica=0,
        generator=0,
        round=1,
        seed=0,
        batch_per_device=settings.batch_per_device,
        devices=1,
    )
    if problem := check_operations(candidate, settings, 1):
        raise ArithmeticError(problem)
    return {"executed_more": sum(executed_difference(network.layers(), STEMS[settings.stem]).values())}


def plain_step(shape: Shape, name: str) -> Iterator[Row]:
    """Yield the step as it is, with the flags of this process."""

    def measure() -> Row:
        step = Step(shape.network, settings_of(shape))
        measured = Measured(shape.batches[0], [step.window(shape.steps) for _ in range(shape.repeats)])
        return {**step.described(), **measured.as_dict(), "flags": os.environ.get("XLA_FLAGS", "")}

    yield attempt(name, measure)


# -- peer ------------------------------------------------------------------------------------------


def peer(shape: Shape) -> Iterator[Row]:
    """Yield this step without augmentation, and PyTorch's step in each of its ways, in turn."""
    step = Step(shape.network, settings_of(shape, augmentation="none"))
    losses = [float(step.run(step.images, step.labels).loss) / shape.batches[0] for _ in range(3)]
    form = {
        "batch": shape.batches[0],
        "image": shape.image,
        "width": shape.width,
        "blocks": list(shape.blocks),
        "classes": shape.classes,
        "precision": shape.precision,
    }
    other = Peer(shape.peer_python)

    def measure(way: str) -> Row:
        made = other.ask(way=way, shape=form)
        ours, theirs = (
            (lambda: step.window(shape.steps)),
            (lambda: other.ask(way=way, steps=shape.steps)["seconds"]),
        )
        windows = in_turn({"ours": ours, "theirs": theirs}, shape.repeats)
        rates = {f"{key}_images_per_second": Measured(shape.batches[0], windows[key]).rate for key in windows}
        return {**made, **windows, **rates, **ratio(windows["theirs"], windows["ours"])}

    try:
        yield {"name": "ours", **step.described(), "losses": losses}
        for way in shape.peers:
            yield attempt(f"PyTorch, {way}", lambda way=way: measure(way))
    finally:
        other.end()


# -- profile ---------------------------------------------------------------------------------------


def profile(shape: Shape, folder: str) -> Iterator[Row]:
    """Yield the time of a step by operation of the compiled program; the trace stays in `folder`."""

    def measure() -> Row:
        step = Step(shape.network, settings_of(shape))
        with jax.profiler.trace(folder):
            step.window(PROFILED_STEPS)
        (path,) = Path(folder).rglob("*.xplane.pb")
        events = device_events(jax.profiler.ProfileData.from_file(str(path)))
        return {"steps": PROFILED_STEPS, **by_operation(events, step.compiled.train.as_text())}

    yield attempt("profile", measure)


PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    part.__name__: part
    for part in (throughput, morphs, mapped, fed, compilation, beside, lever, plain_step, peer, profile)
}


def main() -> int:
    """Run one part and print its rows; the first row describes the machine."""
    options = json.loads(sys.argv[2])
    shape = Shape.of(options.pop("shape"))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if shape.cache:
        use_compilation_cache(shape.cache)
    first = jax.devices()[0]
    devices = {"kind": first.device_kind, "platform": first.platform, "count": len(jax.devices())}
    for row in itertools.chain([{"devices": devices}], PARTS[sys.argv[1]](shape, **options)):
        print(json.dumps(row), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

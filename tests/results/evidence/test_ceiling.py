# SPDX-License-Identifier: Apache-2.0
"""Devices of ranks and their peak rates: rates above a peak (V10), devices that count twice (V11)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aiperf_mpi.config import classify, load
from aiperf_mpi.machine.peaks import peak_rates
from aiperf_mpi.results.evidence.ceiling import driven
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.file.resultfile import Result
from aiperf_mpi.results.file.rows import RANK_ROW, new_row
from aiperf_mpi.results.judge import judge
from aiperf_mpi.results.judge.checks import CHECKS, Outcome
from aiperf_mpi.results.report import compare, html, text
from aiperf_mpi.results.report.text import text_report
from aiperf_mpi.results.report.verdict import verdict_json, verdict_lines
from tests.helpers.results.changes import written
from tests.helpers.results.example_run import BATCH, Example, example_run

A100 = "NVIDIA A100-SXM4-40GB"

#: Matrices of float32 on one of them (TF32), op/s; each of the example's two replicas has two.
PEAK = 156e12


def accelerated(*sets: str) -> Example:
    """Return the example on two nodes of two accelerators, with networks of the size of ResNet-50 on 448
    pixels, and further settings.

    The 1408 images of an epoch and their validation take 1.39e14 operations in a second, with the morphs of
    its children up to 1.78e14, of the 3.12e14 that a replica's devices can do.
    """
    large = ("model.width=64", "data.image_size=448", "search.max_parameters=1000000000")
    example = example_run(sets=(*large, *sets))
    example.header = dataclasses.replace(example.header, inventory=nodes(A100, peak_rates(A100)))
    for rank in np.flatnonzero(example.ranks["role"] == b"trainer"):
        node = example.ranks["node"][rank]
        example.ranks["device"][rank] = f"2 x {A100}".encode()
        example.ranks["device_uuid"][rank] = f"GPU-{node}a,GPU-{node}b".encode()
    return example


def faster(example: Example, factor: float) -> None:
    """Every time of the run, and its configuration, divided by `factor`: nothing disagrees with anything."""
    for rows in (example.epochs, example.trials, example.samples, example.ranks):
        for name in (
            "t_start",
            "t_first_step",
            "t_end",
            "t",
            "trace_seconds",
            "compile_seconds",
            "energy_joules",
            "wall_seconds",
            "phase_seconds",
        ):
            if name in (rows.dtype.names or ()):
                rows[name] /= factor
    example.core_seconds /= factor
    tick = example.header.tick / factor
    config = load(
        "demo",
        sets=(
            "run.time_limit=" + repr(example.core_seconds),
            f"run.tick={tick!r}",
            f"train.batch_per_device={BATCH}",
            "train.round_epochs=[3]",
            "train.precision=float32",
            "model.width=64",
            "data.image_size=448",
            "search.max_parameters=1000000000",
        ),
        seed=example.header.seed,
    )
    example.header = dataclasses.replace(
        example.header,
        time_limit=example.core_seconds,
        tick=tick,
        config_toml=config.to_toml(),
        config_sha256=config.sha256,
        departures=tuple(map(str, classify(config)[2])),
    )


def judged(example: Example, folder: Path) -> judge.Verdict:
    """The verdict on what the writer makes of the example; every sum, series and hash fits."""
    return judge.judge(written(example, folder))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of the example on accelerators."""
    return written(accelerated(), tmp_path_factory.mktemp("result"))


@pytest.fixture(scope="module")
def result(path: Path) -> Result:
    """Its content, which is valid."""
    found, verdict = judge.judge_file(path)
    assert verdict.valid, verdict.reasons
    return found


def checked(
    result: Result,
    identifier: str,
    inventory: dict[str, Any] | None = None,
    attributes: dict[str, Any] | None = None,
    **ranks: dict[int, str],
) -> Outcome:
    """Return the outcome of a check for other texts in /ranks (by column and rank), attributes or
    inventory."""
    columns = {name: values.copy() for name, values in result.tables["ranks"].items()}
    for name, texts in ranks.items():
        for rank, words in texts.items():
            columns[name][rank] = words
    documents = dict(result.documents)
    if inventory is not None:
        documents["system/inventory_json"] = json.dumps(inventory)
    attributes = result.attributes | (attributes or {})
    # The one segment has what the attributes say.
    segments = result.tables["segments"]
    segments = segments | {name: np.array([attributes[name]]) for name in segments if name in attributes}
    new = Result(result.tables | {"ranks": columns, "segments": segments}, attributes, documents)
    return next(check for check in CHECKS if check.id == identifier).run(Evidence(new))


def nodes(name: str, peak: object) -> dict[str, Any]:
    """An inventory of two nodes with two of these accelerators each."""
    return {"nodes": [{"nodes": "0-1", "accelerators": [{"name": name, "peak": peak}] * 2}]}


# -- V10 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "valid"),
    [(4.0, False), *(pytest.param(*pair, marks=pytest.mark.full) for pair in ((1.5, True), (8.0, False)))],
)
def test_times_shrunk_beyond_the_peak_are_found(factor: float, valid: bool, tmp_path: Path) -> None:
    # 1.78e14 x 1.5 is below 3.12e14, 1.39e14 x 4 does not: 0.25 s and the slack of 0.01 s have room for
    # 8e13.
    example = accelerated()
    faster(example, factor)
    verdict = judged(example, tmp_path)
    assert verdict.reason_ids == (() if valid else ("V10",)), verdict.reasons
    texts = "; ".join(reason.text for reason in verdict.reasons)
    assert valid or ("/epochs row 0" in texts and "replica 0: " in texts and "replica 1: " in texts)
    assert verdict.peak_ops == 4 * PEAK and "datasheet" in verdict.peak_source

    # An invalid run has no utilisation of its peak, and no rate in images.
    data = json.loads(verdict_json(verdict))
    assert valid or (data["mfu"] is data["resnet50_images"] is None and data["peak_ops"] == 4 * PEAK)
    assert ("MFU" in text_report(tmp_path / "result.h5")) is valid


@pytest.mark.parametrize(("seconds", "found"), [(0.453, False), (0.451, True)])
@pytest.mark.parametrize("status", ["done", "failed"])
def test_one_epoch_beyond_the_peak_is_found(result: Result, seconds: float, found: bool, status: str) -> None:
    # The 1.442e14 operations of the second trial's second epoch take 0.462 s at least, of which 0.01 s are
    # the clock's; the run as a whole is as slow as it was. What a failed trial executed took its time, too.
    epochs, trials = dict(result.tables["epochs"]), dict(result.tables["trials"])
    epochs["t_end"] = np.where(
        np.arange(len(epochs["t_end"])) == 4, epochs["t_start"] + seconds, epochs["t_end"]
    )
    trials["status"] = np.where(np.arange(len(trials["status"])) == 1, status, trials["status"])
    new = Result(result.tables | {"epochs": epochs, "trials": trials}, result.attributes, result.documents)
    outcome = checked(new, "V10")
    assert outcome.problems == (
        ("/epochs row 4: more operations than the devices can execute in its time",) if found else ()
    )


def test_a_peak_is_that_of_the_precision(result: Result) -> None:
    trials = dict(result.tables["trials"])
    trials["precision"] = np.full(len(trials["precision"]), "bfloat16", object)
    new = Result(
        result.tables | {"trials": trials}, result.attributes | {"precision": "bfloat16"}, result.documents
    )
    assert Evidence(new).ceiling.total == 4 * 312e12
    assert Evidence(result).ceiling.total == 4 * PEAK
    assert checked(new, "V10").problems == ()


@pytest.mark.parametrize("name", [A100, "New 1"])
def test_a_rate_that_the_inventory_states_counts_nothing(name: str, result: Result) -> None:
    stated = dict.fromkeys(("matrix16_ops", "matrix32_ops", "float32_ops", "memory_bytes_per_second"), 1e30)
    outcomes = [
        checked(result, "V10", nodes(name, peak), device={1: f"2 x {name}", 3: f"2 x {name}"})
        for peak in (stated | {"source": "a leaflet"}, "unknown: no entry", {"source": "a leaflet"}, None)
    ]
    words = "6.2400e+14 op/s" if name == A100 else "New 1: no peak known"
    assert all(outcome == outcomes[0] for outcome in outcomes)
    assert outcomes[0].problems == () and words in outcomes[0].measured


@pytest.mark.parametrize(("seconds", "found"), [(0.04, True), (0.05, False)])
def test_an_unknown_accelerator_is_not_faster_than_all_known(
    seconds: float, found: bool, result: Result
) -> None:
    # The fastest multiplies float32 at 1.25e15 op/s: 1.442e14 operations take two of them 0.0577 s, of which
    # 0.01 s are the clock's. A processor announces its own rate, which bounds nothing.
    epochs = dict(result.tables["epochs"])
    epochs["t_end"] = np.where(
        np.arange(len(epochs["t_end"])) == 4, epochs["t_start"] + seconds, epochs["t_end"]
    )
    new = Result(result.tables | {"epochs": epochs}, result.attributes, result.documents)
    outcome = checked(new, "V10", nodes("New 1", None), device={1: "2 x New 1", 3: "2 x New 1"})
    assert [text.partition(":")[0] for text in outcome.problems] == ["/epochs row 4"] * found
    assert checked(new, "V10", {}, device={1: "2 x cpu", 3: "2 x cpu"}).problems == ()


def declaring(result: Result, **changes: object) -> Result:
    """Return the result of a run that declared the peak of New 1."""
    stated = {"device": "New 1", "peak_ops": 1e14, "source": "New 1 datasheet", "vouched_by": "A. Person"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in (stated | changes).items()]
    text = result.documents["config/resolved_toml"]
    before, _, after = text.partition("[declared]\n")
    declared = f"{before}[declared]\n" + "\n".join(lines) + "\n\n" + after[after.index("[fault]") :]
    return Result(result.tables, result.attributes, result.documents | {"config/resolved_toml": declared})


def test_a_declared_peak_bounds_the_rate_and_may_be_that_of_an_official_run(result: Result) -> None:
    new = {1: "2 x New 1", 3: "2 x New 1"}
    slow = checked(declaring(result), "V10", nodes("New 1", None), device=new)
    assert "4.0000e+14 op/s, declared" in slow.measured and slow.problems == ()
    fast = checked(declaring(result, peak_ops=1e13), "V10", nodes("New 1", None), device=new)
    assert "4.0000e+13 op/s, declared" in fast.measured and len(fast.problems) == 3
    official = {"class": "official"}
    assert checked(declaring(result), "V10", nodes("New 1", None), official, device=new).problems == ()
    other = {1: "2 x New 2", 3: "2 x New 2"}
    undeclared = checked(declaring(result), "V10", nodes("New 2", None), official, device=other)
    assert "or a declared one" in undeclared.problems[0]
    # The table counts where it knows the device.
    known = checked(declaring(result, device=A100), "V10")
    assert "6.2400e+14 op/s" in known.measured and "declared" not in known.measured


@pytest.mark.parametrize(("peak", "form"), [(1e30, "module"), (1.26e15, "module"), (4.2e14, "card")])
def test_no_declared_peak_is_above_the_fastest_known_device_of_its_form(
    peak: float, form: str, result: Result
) -> None:
    forged = declaring(result, peak_ops=peak, form=form)
    (problem,) = checked(
        forged, "V10", nodes("New 1", None), device={1: "2 x New 1", 3: "2 x New 1"}
    ).problems
    assert (
        problem.startswith("cannot be checked: /config/resolved_toml: ") or "declared.peak_ops: " in problem
    )


def test_verdict_and_report_say_that_a_peak_is_declared(tmp_path: Path) -> None:
    declared = {"device": "New 1", "peak_ops": "1e14", "source": "New 1 datasheet", "vouched_by": "A. Person"}
    example = accelerated(*(f"declared.{name}={value}" for name, value in declared.items()))
    example.header = dataclasses.replace(example.header, inventory=nodes("New 1", peak_rates("New 1")))
    for rank in np.flatnonzero(example.ranks["role"] == b"trainer"):
        example.ranks["device"][rank] = b"2 x New 1"
    verdict = judged(example, tmp_path)
    words = (
        "declared, not in the table: 1.0000e+14 op/s of a module by New 1 datasheet; A. Person vouches for it"
    )
    assert verdict.valid and verdict.peak_ops == 4e14 and verdict.peak_source == f"New 1: {words}"
    assert f"AIPERF_MPI peak: {words}" in verdict_lines(verdict)
    assert words in " ".join(text_report(tmp_path / "result.h5").split())


def test_processors_have_a_peak_for_the_utilisation_alone(result: Result) -> None:
    # 4 cores x 2 GHz x 16 lanes x 4, which the two trainers of a host share; each has two devices of it.
    processor = {"cores": 4, "max_mhz": 2000.0, "vector_bits": 512}
    inventory = {"nodes": [{"nodes": "0-1", "accelerators": "there is none", "cpu": processor}]}
    cpu = {1: "2 x cpu", 3: "2 x cpu"}
    alone = checked(result, "V10", inventory, device=cpu)
    shared = checked(result, "V10", inventory, device=cpu, hostname={1: "n0", 3: "n0"})
    assert "of 1.0240e+12 op/s" in alone.measured and "of 5.1200e+11 op/s" in shared.measured
    # The rate of this run is far above both.
    assert alone.problems == shared.problems == ()
    official = checked(result, "V10", inventory, {"class": "official"}, device=cpu)
    assert "machine/peaks.py" in official.problems[0]


@pytest.mark.parametrize("kind", ["NVIDIA B200", "cpu"])
def test_ranks_and_inventory_name_the_same_devices(kind: str, result: Result) -> None:
    outcome = checked(result, "V10", device={1: f"2 x {kind}", 3: f"2 x {kind}"})
    assert outcome.problems[0] == f"rank 1 drives {kind!r}, but the inventory gives node 0 {A100!r}"


def test_only_an_official_run_must_know_its_peak(result: Result) -> None:
    # An unknown device has no bound: an official run must have devices of the table.
    cpu, none = {1: "2 x cpu", 3: "2 x cpu"}, {"nodes": [{"nodes": "0-1", "accelerators": "there is none"}]}
    trial = checked(result, "V10", none, device=cpu)
    official = checked(result, "V10", none, {"class": "official"}, device=cpu)
    assert trial.problems == () and "cpu: no peak known" in trial.measured
    assert "machine/peaks.py" in official.problems[0]
    assert checked(result, "V10", None, {"class": "official"}).problems == ()


@pytest.mark.parametrize("ranges", ["0-99999999999", "1-0,0", ""])
def test_nodes_of_an_inventory_do_not_keep_the_judge_busy(ranges: str, result: Result) -> None:
    inventory = nodes(A100, peak_rates(A100))
    inventory["nodes"][0]["nodes"] = ranges
    assert "op/s" in checked(result, "V10", inventory).measured or ranges == ""
    assert "replicas" in checked(result, "V10", None, {"n_replicas": 2**31 - 1}).problems[0]


def test_utilisation_of_the_peak_is_outcome_everywhere_alike(path: Path) -> None:
    example, verdict = accelerated(), judge.judge(path)
    # Counted here by the rows: 8.5 s of four devices.
    total = sum(
        candidate.train_ops * int(rows["train_samples"].sum())
        + candidate.val_ops * int(rows["val_samples"].sum())
        for candidate in example.candidates
        for rows in [example.epochs[example.epochs["trial_id"] == candidate.trial_id]]
    )
    assert verdict.mfu == pytest.approx(total / 8.5 / (4 * PEAK), rel=1e-12)
    # Epochs follow one another without a gap, so that both utilisations are the same.
    outcome = (
        f"credited operations are {verdict.mfu:.2%} of what the devices can do in the core time; "
        f"{verdict.mfu:.2%}"
    )
    images = f"that of {verdict.resnet50_images:,.3g} images of ImageNet a second on ResNet-50"
    evidence = Evidence(judge.judge_file(path)[0])
    page = "".join(html.element(part) for part in text.SECTIONS["Rate over time"](evidence, verdict))
    for report in (text_report(path), page):
        joined = " ".join(report.split())
        assert outcome in joined and images in joined and "6.240000e+14 op/s (624 TOPS)" in joined
    data = json.loads(verdict_json(verdict))
    assert (data["mfu"], data["peak_ops"], data["resnet50_images"]) == (
        verdict.mfu,
        4 * PEAK,
        verdict.resnet50_images,
    )
    assert verdict.resnet50_images == pytest.approx(verdict.rate / 23.358e9, rel=1e-4)
    side = compare.to_text(compare.compare([compare.entry(path)]))
    assert f"{verdict.resnet50_images:,.3g} images/s" in side and f"{verdict.mfu:.2%}" in side


# -- V11 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (
            {"hostname": {1: "n0", 3: "n0"}, "device_uuid": {3: "GPU-0b,GPU-1a"}},
            "ranks 1 and 3 drive the same device of n0: GPU-0b",
        ),
        ({"device_uuid": {1: "GPU-0a,GPU-0a"}}, "ranks 1 and 1 drive the same device of node0: GPU-0a"),
        ({"device_uuid": {1: "GPU-0a"}}, "rank 1 names 1 UUIDs of 2 devices"),
        ({"device_uuid": {1: "GPU-0a,"}}, "rank 1: '' is not a UUID"),
        ({"device_uuid": {1: "0,1"}}, "rank 1: '0' is not a UUID"),
        ({"device": {1: f"4 x {A100}"}}, "rank 1 drives 4 devices, but each trainer has 2"),
        ({"device": {1: A100}}, f"cannot be checked: device is {A100!r}, not a number of devices of a kind"),
        ({"device_uuid": {2: "GPU-0a"}}, "/ranks row 2: it trains nothing, but drives devices"),
        ({"device": {0: f"2 x {A100}"}}, "/ranks row 0: it trains nothing, but drives devices"),
    ],
)
def test_a_device_counts_once(ranks: dict[str, dict[int, str]], text: str, result: Result) -> None:
    assert text in checked(result, "V11", **ranks).problems


def test_nodes_of_one_host_have_their_own_devices(result: Result) -> None:
    # And two hosts may have devices of the same name.
    for ranks in ({"hostname": dict.fromkeys((1, 2, 3, 4), "n0")}, {"device_uuid": {3: "GPU-0a,GPU-0b"}}):
        outcome = checked(result, "V11", None, None, **ranks)
        assert outcome.problems == () and outcome.measured == "5 of 5 ranks; 4 of 4 devices by UUID"


def test_an_official_run_names_its_accelerators(result: Result) -> None:
    silent = {1: "none: NVML: no driver", 3: "none: NVML: no driver"}
    assert checked(result, "V11", device_uuid=silent).problems == ()
    official = checked(result, "V11", None, {"class": "official"}, device_uuid=silent)
    assert "an official run names its accelerators" in official.problems[0]
    cpu = {1: "2 x cpu", 3: "2 x cpu"}
    assert checked(result, "V11", None, {"class": "official"}, device_uuid=silent, device=cpu).problems == ()


def test_a_rank_has_room_for_the_uuids_of_sixteen_devices() -> None:
    # Of 40 characters each and 15 commas: 655.
    uuids = ",".join(f"GPU-{number:08x}-0000-0000-0000-000000000000" for number in range(16))
    assert len(uuids) == 655 and new_row(RANK_ROW, device_uuid=uuids)["device_uuid"][0].decode() == uuids


def test_devices_of_a_rank_are_a_number_and_a_kind() -> None:
    assert driven("4 x NVIDIA H200") == (4, "NVIDIA H200") and driven("1 x cpu") == (1, "cpu")
    for words in ("", "cpu", "0 x cpu", "-1 x cpu", "4 x ", "999999 x cpu"):
        with pytest.raises(ValueError, match="not a number of devices"):
            driven(words)

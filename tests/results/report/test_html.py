# SPDX-License-Identifier: Apache-2.0
"""The HTML report of any readable file: the judge's verdict, all text escaped, nothing loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import h5py
import pytest

from aiperf_mpi import hdf5
from aiperf_mpi.__main__ import main
from aiperf_mpi.opcount.analytical import count_layer
from aiperf_mpi.results.judge.judge import judge
from aiperf_mpi.results.output import process
from aiperf_mpi.results.report import html
from aiperf_mpi.results.report import verdict as verdict_module
from aiperf_mpi.results.report.pictures import PICTURES
from aiperf_mpi.trials.record import PROPOSED
from tests.helpers.results.browser import CHROMIUM, Browser
from tests.helpers.results.example_run import Example, example_run


def written(example: Example, folder: Path) -> Path:
    hdf5.write(folder / "result.h5", process.final_image(example.run()))
    return folder / "result.h5"


def test_page_says_what_the_judge_says(tmp_path: Path) -> None:
    file = written(example_run(), tmp_path)
    assert main(["report", str(file), "--html", str(tmp_path / "r.html")]) == 0
    page, verdict = (tmp_path / "r.html").read_text(), judge(file)
    for line in verdict_module.verdict_lines(verdict)[1:]:
        key, _, value = line.removeprefix("AIPERF_MPI ").partition(": ")
        assert f"<dt>{key}</dt><dd>{escape(value)}</dd>" in page
    assert f'<h1 class="{verdict_module.status(verdict)}">' in page and "cannot be shown" not in page
    assert len(page) < 3_000_000 and page.count("<svg") == len(PICTURES)
    for title, _, _ in html.SECTIONS:
        assert f"<h2>{title}</h2>" in page
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        # Its text is text, and it has a name and a description for screen readers.
        assert "<text" in picture and re.search(
            r'role="img" aria-labelledby="(\S+) (\S+)"><title id="\1">.+?</title>'
            r'<desc id="\2">.+?</desc>',
            picture,
        )
        ElementTree.fromstring(picture)
    no_outside(page)


def no_outside(page: str) -> None:
    """Check that a page loads and runs nothing, and that its identifiers are unique and its references
    valid."""
    assert not re.search(r"<script|<img|<link rel=\"style|@import|url\((?!#)", page)
    assert not re.search(r'(?:src|href)="(?!#|data:,|data:image/png;base64,)', page)
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(identifiers)


def test_the_best_network_stands_there_layer_by_layer(tmp_path: Path) -> None:
    example = example_run()
    page = html.html_report(written(example, tmp_path))
    best = next(c for c in example.candidates if c.trial_id == 6).architecture
    for layer in best.layers():
        forward, backward, _ = count_layer(layer)
        row = (
            rf"<tr><td>{layer.name}</td><td>{layer.kind}</td>.*?>{forward:,}</td><td "
            rf'class="n">{backward:,}</td></tr>'
        )
        assert re.search(row, page), layer.name
    # Forward and backward of all layers, of the whole network.
    total = [sum(count_layer(layer)[i] for layer in best.layers()) for i in (0, 1)]
    assert f'{total[0]:,}</td><td class="n">{total[1]:,}</td></tr></tbody>' in page


def test_several_results_give_weak_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for replicas in (1, 2, 3):
        example = example_run(replicas=replicas)
        example.header = replace(example.header, run_id=f"run{replicas}")
        (tmp_path / str(replicas)).mkdir()
        files.append(str(written(example, tmp_path / str(replicas))))
    out = tmp_path / "r.html"
    assert main(["report", *files, "--html", str(out)]) == 0
    page = out.read_text()
    assert (
        page.count("<svg") == len(PICTURES) + 1
        and 'id="scaling-title"' in page
        and "cannot be shown" not in page
    )
    no_outside(page)
    assert main(["compare", *files, "--html", str(out)]) == 0
    page = out.read_text()
    assert page.count("<svg") == 1 and "efficiency" in page
    # The same in the text, after the report of the first one.
    assert main(["report", *files]) == 0
    output = capsys.readouterr().out
    assert output.startswith("AIPERF_MPI status: VALID\n") and "Weak scaling (rate against devices)" in output

    # An invalid run is shown without a rate that counts, and the exit code is that of an invalid run.
    example = example_run(replicas=3)
    example.ranks["phase_seconds"][1, -1] -= 5.0
    files[2] = str(written(example, tmp_path / "3"))
    assert main(["compare", *files, "--html", str(out)]) == 3
    assert "INVALID" in out.read_text() and "unscored_rate_ops" in out.read_text()


def test_invalid_page_has_its_reasons_and_no_score(tmp_path: Path) -> None:
    example = example_run()
    example.ranks["phase_seconds"][1, -1] -= 5.0
    page = html.html_report(written(example, tmp_path))
    assert (
        '<h1 class="INVALID">INVALID</h1>' in page
        and '<ul class="reasons"><li>V13: ' in page
        and 'class="rate"' not in page
    )
    assert "score_ops" not in page and "trial_rate_ops" not in page


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    example = example_run()
    example.trials["cause"][0] = b"<script>alert(1)</script>"
    page = html.html_report(written(example, tmp_path))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_partial_and_damaged_files_have_a_page(tmp_path: Path) -> None:
    file = written(example_run(), tmp_path)
    with h5py.File(file, "r+") as data:
        del data["ranks"], data["score_series/rate"]
        data.attrs["complete"] = 0
    page = html.html_report(file)
    assert ">INVALID</h1>" in page and "cannot be shown: /ranks/rank is missing" in page


def test_what_is_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x").write_text("no")
    assert main(["report", str(tmp_path / "x"), "--html", str(tmp_path / "r.html")]) == 2
    assert "not a result" in capsys.readouterr().err and not (tmp_path / "r.html").exists()
    file = written(example_run(), tmp_path)
    assert main(["report", str(file), "--html", str(tmp_path / "no" / "r.html")]) == 2
    assert "name a new file in a writable folder" in capsys.readouterr().err


def empty_run() -> Example:
    """Return a run that ended before the first epoch of its first trial."""
    example = example_run()
    kept = [i for i, record in enumerate(example.records) if record["kind"] == PROPOSED][:2]
    example.slots, example.records = [example.slots[i] for i in kept], [example.records[i] for i in kept]
    example.epochs, example.trials, example.final = example.epochs[:0], example.trials[:0], None
    return example


def test_a_run_without_a_trial_has_a_page(tmp_path: Path) -> None:
    page = html.html_report(written(empty_run(), tmp_path))
    assert "nothing was trained" in page and "cannot be shown" not in page
    assert "No trial has completed a validation yet" in page
    no_outside(page)


# -- in a browser ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start a headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install the package chromium")
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["normal", "invalid", "empty", "scaling", "10,000 trials"])
def test_page_in_a_browser(kind: str, browser: Browser, tmp_path: Path) -> None:
    """No overflow at 1280 and 400 pixels, no missing picture, nothing loaded, an empty console, light and
    dark."""
    others: list[Path] = []
    match kind:
        case "invalid":
            example = example_run()
            example.ranks["phase_seconds"][1, -1] -= 5.0
        case "empty":
            example = empty_run()
        case "10,000 trials":
            sets = ("train.epochs=60", "train.round_epochs=[60]")
            example = example_run(replicas=1000, trials_each=10, epochs_each=60, sets=sets)
        case _:
            example = example_run()
    if kind == "scaling":
        (tmp_path / "other").mkdir()
        larger = example_run(replicas=3)
        larger.header = replace(larger.header, run_id="larger")
        others = [written(larger, tmp_path / "other")]
    page = tmp_path / "page.html"
    page.write_text(html.html_report(written(example, tmp_path), *others), encoding="utf-8")
    assert page.stat().st_size < 3_000_000

    for width in (1280, 400):
        looks = []
        for scheme in ("light", "dark"):
            seen = browser.show(page, width, scheme)
            assert seen["scroll"] <= seen["client"] and width - 20 < seen["client"] <= width, seen
            assert (
                seen["beyond"] == 0 and seen["missing"] == 0 and seen["images"] == 0 and seen["unnamed"] == 0
            ), seen
            assert seen["pictures"] == page.read_text(encoding="utf-8").count("<svg") and seen["loaded"] == []
            assert contrast(seen["paper"], seen["ink"]) > 7  # WCAG 2.2, level AAA
            looks.append(seen["paper"])
        assert looks == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]
    assert browser.problems == []
    browser.print_pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours `rgb(r, g, b)` by WCAG 2, from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_page_can_be_read(scheme: str) -> None:
    """Text has a contrast of at least 4.5 to the paper, lines and bars one of 3 (WCAG 2.2, 1.4.3 and
    1.4.11)."""
    style = resources.files("aiperf_mpi.results.report").joinpath("report.html").read_text(encoding="utf-8")
    roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#\w+);", roots[("light", "dark").index(scheme)]))

    def rgb(name: str) -> str:
        digits = colours[name].removeprefix("#")
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        return f"rgb({', '.join(str(int(digits[i : i + 2], 16)) for i in (0, 2, 4))})"

    for name in ("ink", "faint", "good", "bad", "link"):
        assert contrast(rgb("paper"), rgb(name)) >= 4.5, name
    # Lines and dots; the other colours of the sequence only fill bars that have an edge and a legend.
    for name in ("c1", "c2", "c3", "c4"):
        assert contrast(rgb("paper"), rgb(name)) >= 3, name

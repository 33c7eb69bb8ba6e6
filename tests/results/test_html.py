# SPDX-License-Identifier: Apache-2.0
"""The HTML report: the judge's words, nothing from outside, nothing unescaped, of any file that can be read."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from xml.etree import ElementTree

import h5py
import pytest

from aiperf_mpi.__main__ import main
from aiperf_mpi.results import html, report, resultfile, writer
from aiperf_mpi.results.judge import judge
from tests.results.example_run import Example, example_run

BROWSER = shutil.which("chromium")


def written(example: Example, folder: Path) -> Path:
    resultfile.write(folder / "result.h5", writer.final_image(example.run()))
    return folder / "result.h5"


def test_page_says_what_the_judge_says(tmp_path: Path) -> None:
    file = written(example_run(), tmp_path)
    assert main(["report", str(file), "--html", str(tmp_path / "r.html")]) == 0
    page, verdict = (tmp_path / "r.html").read_text(), judge(file)
    for line in report.verdict_lines(verdict)[1:]:
        key, _, value = line.removeprefix("AIPERF_MPI ").partition(": ")
        assert f"<dt>{key}</dt><dd>{escape(value)}</dd>" in page
    assert f'<h1 class="{report.status(verdict)}">' in page and "cannot be shown" not in page
    assert len(page) < 3_000_000 and page.count("<svg") == len(html.PICTURES)
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert "<text" in picture
        ElementTree.fromstring(picture)

    # Nothing is loaded from outside, nothing runs, no identifier stands twice.
    assert not re.search(r"<script|<img|<link rel=\"style|@import|url\((?!#)", page)
    assert not re.search(r'(?:src|href)="(?!#|data:,)', page)
    found = re.findall(r' id="([^"]+)"', page)
    assert len(found) == len(set(found))


def test_invalid_page_has_its_reasons_and_no_score(tmp_path: Path) -> None:
    example = example_run()
    example.ranks["phase_seconds"][1, -1] -= 5.0
    page = html.html_report(written(example, tmp_path))
    assert '<h1 class="INVALID">INVALID</h1><ul class="reasons"><li>V13: ' in page
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
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_a_browser(width: int, tmp_path: Path) -> None:
    page = html.html_report(written(example_run(), tmp_path))
    # The page stands in a frame of the width to test, as a window has a least width; a script outside of it measures.
    frame = (f'<iframe id="f" style="width:{width}px;height:900px;border:0" srcdoc="{escape(page)}"></iframe><script>'
             'f.onload=()=>{const d=f.contentDocument.documentElement;'
             'document.title=d.scrollWidth+" "+d.clientWidth+" "'
             '+[...f.contentDocument.querySelectorAll("svg")].filter(s=>s.getBoundingClientRect().height<50).length}'
             '</script>')  # fmt: skip
    (tmp_path / "frame.html").write_text(frame)
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--virtual-time-budget=3000",
               "--dump-dom", f"file://{tmp_path / 'frame.html'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(\d+) (\d+) (\d+)</title>", done.stdout)
    assert title is not None
    scroll, client, missing = map(int, title.groups())
    assert width - 20 < client <= width and scroll <= client and missing == 0  # a scroll bar takes 15 pixels

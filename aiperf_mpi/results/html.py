# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that loads nothing: the verdict with its reasons, pictures, tables; for screen and print.

It has no script, and every text of the result is escaped. Whatever is said of a score comes from the judge.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from string import Template

from rich.console import Console

from aiperf_mpi.results import plots, report, text
from aiperf_mpi.results.evidence import Evidence
from aiperf_mpi.results.judge import Verdict, read
from aiperf_mpi.results.plain import plain, plain_result

#: What a section over damaged rows may raise; it then says why it is not there.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

#: Columns of the tables, which scroll by themselves on a narrow screen.
_WIDTH = 110

#: Pictures by title, in order.
PICTURES: dict[str, Callable[[Evidence, Verdict], str]] = {
    "Rate and regulated rate over time": plots.score_over_time,
    "Accuracy of every trial": plots.error_of_trials,
    "Time by kind on each rank": plots.time_by_kind,
}

_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>aiperf_mpi: $title</title><link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #59636e; --line: #d1d9e0; --good: #116329;
  --bad: #a40e26; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ed; --faint: #9aa4af; --line: #3a424c;
  --good: #5fd07d; --bad: #ff8080; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .2rem 0; } h2 { font-size: 1.15rem; margin: 1.8rem 0 .5rem; }
.VALID { color: var(--good); } .INVALID { color: var(--bad); } p, .faint { color: var(--faint); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .8rem 0; }
dt { color: var(--faint); } dd { margin: 0; font-variant-numeric: tabular-nums; }
.reasons { border-left: .3rem solid var(--bad); padding: .2rem 1rem .2rem 2rem; margin: .8rem 0; }
section { border-top: 1px solid var(--line); } svg { width: 100%; max-width: 42rem; height: auto; display: block; }
pre { overflow-x: auto; font: .78rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; margin: .4rem 0; }
@media print { body { max-width: none; padding: 0; } section { break-inside: avoid-page; } pre { font-size: 6.5pt; } }
</style></head><body>
<header><p>aiperf_mpi benchmark report</p><h1 class="$status">$status</h1>$reasons<dl>$pairs</dl></header>
$sections
</body></html>
""")


def html_report(path: Path | str) -> str:
    """The page of a result file; raises NotAResult if it is no result at all."""
    result, verdict = read(path)
    evidence = Evidence(plain_result(result))
    said = [line.removeprefix(f"{report.PREFIX} ").partition(": ") for line in report.verdict_lines(verdict)]
    reasons = "".join(f"<li>{escape(line)}</li>" for line in report.reason_lines(verdict))
    sections = [_section(title, picture, evidence, verdict) for title, picture in PICTURES.items()]
    for title in text.SECTIONS:
        sections.append(_section(title, partial(_table, title), evidence, verdict))
    return _PAGE.substitute(
        title=escape(Path(path).name), status=report.status(verdict),
        reasons=f'<ul class="reasons">{reasons}</ul>' if reasons else "",
        pairs="".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, _, value in said if key != "status"),
        sections="\n".join(sections),
    )  # fmt: skip


def write_html(path: Path | str, out: Path | str) -> None:
    """Write the page of the result `path` to the file `out`; raises NotAResult and OSError."""
    Path(out).write_text(html_report(path), encoding="utf-8")


def _section(title: str, content: Callable[[Evidence, Verdict], str], e: Evidence, verdict: Verdict) -> str:
    try:
        body = content(e, verdict)
    except _DAMAGE as error:
        body = f"<p>cannot be shown: {escape(plain(str(error)))}</p>"
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(title: str, e: Evidence, verdict: Verdict) -> str:
    out = io.StringIO()
    console = Console(file=out, width=_WIDTH, no_color=True, highlight=False, emoji=False, markup=False)
    for part in text.SECTIONS[title](e, verdict):
        console.print(part)
    lines = (line.rstrip() for line in out.getvalue().splitlines())
    return f'<pre tabindex="0">{escape(chr(10).join(lines))}</pre>'

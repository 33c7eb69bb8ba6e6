# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file for screen and print: the verdict with its reasons, pictures and tables.

The page has no script and loads nothing, and every text of the result is escaped. All statements about a
score come from the judge. The tables are those of the text report, as elements of the page.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from aiperf_mpi.opcount.rates import ops_text
from aiperf_mpi.phases import PHASES
from aiperf_mpi.printable import PREFIX, named, plain
from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.plain_result import plain_result
from aiperf_mpi.results.judge.judge import Verdict, judge_file
from aiperf_mpi.results.report import compare, details, pictures, text
from aiperf_mpi.results.report.answers import TIME, Answer, answers, phase_shares
from aiperf_mpi.results.report.verdict import rate_pairs, rate_titles, reason_lines, status, verdict_lines

#: Errors that a section may raise for damaged rows; the page then shows the error instead of the section.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

#: Sections after the verdict: title, name of its picture in PICTURES, name of its table in TABLES ('' for
#: none).
SECTIONS: tuple[tuple[str, str, str], ...] = (
    ("Rate over time", "Rate over time", "Rate over time"),
    ("Utilisation and memory", "Utilisation and memory", "Utilisation"),
    ("Accuracy of every trial", "Accuracy of every trial", "Trials"),
    ("Search tree", "Search tree", "Tree of trials (morphs, status, error)"),
    ("What chose the candidates", "", "What chose the candidates"),
    ("Best network, layer by layer", "", "Layers"),
    ("Operations by three methods", "", "Operations by three methods"),
    ("Best known hyperparameters", "", "Best known hyperparameters"),
    ("Time by kind", "Time by kind", "Time by kind (s)"),
    ("Data", "", "Data"),
    ("Time between candidates", "", "Between candidates (s)"),
    ("Places and clocks of ranks", "", "Places and clocks of ranks"),
    ("Power and energy", "Power", "Energy"),
    ("System", "", "System"),
    ("Run", "", "Run"),
    ("Messages", "", "Messages"),
)

#: The tables of the text report, and those that are too long for a terminal.
TABLES = text.SECTIONS | {"Layers": details.layers, "Operations by three methods": details.operations}

#: Tables with more rows scroll on a screen; on paper they are printed whole.
TALL = 60

#: Title of the section that compares runs.
SCALING = "Runs side by side and weak scaling"


def html_report(path: Path | str, *others: Path | str) -> str:
    """Return the page of a result file; with `others` it also compares all runs and shows their weak scaling.

    Raises NotAResult if one of the files is not a result.
    """
    result, verdict = judge_file(path)
    evidence = Evidence(plain_result(result))
    entries = (
        [compare.entry_of(os.fspath(path), Evidence(result), verdict), *map(compare.entry, others)]
        if others
        else []
    )
    sections = [
        (title, partial(_of_result, picture, table, evidence, verdict)) for title, picture, table in SECTIONS
    ]
    if entries:
        sections.insert(2, (SCALING, partial(_of_runs, entries)))
    return _page(named(Path(path).name), _head(evidence, verdict, named(Path(path).name)), sections)


def html_comparison(paths: Sequence[Path | str]) -> tuple[str, bool]:
    """Return the page that compares several runs, and whether all of them are valid. Raises NotAResult."""
    entries = [compare.entry(path) for path in paths]
    sections = [(SCALING, partial(_of_runs, entries))]
    return _page("comparison", "<h1>Comparison of runs</h1>", sections), all(e.verdict.valid for e in entries)


# -- the page --------------------------------------------------------------------------------------


def _head(e: Evidence, verdict: Verdict, file: str) -> str:
    """Return the top of a page: the status and the rate, the answers to a reader's first questions, all
    reasons, and all other facts of the verdict."""
    outcome = status(verdict)
    rate, title = ops_text(verdict.rate), rate_titles(verdict)[0]
    head = f'<div class="outcome"><h1 class="{outcome}">{outcome}</h1>'
    if verdict.valid:
        exact = f"<strong>{escape(next(rate_pairs(verdict))[1])}</strong>"
        head += f'<p class="rate"><strong>{escape(rate)}</strong> {title} <small>({exact})</small></p>'
    head += (
        f'</div><div class="answers">{"".join(_answer(e, one) for one in answers(e, verdict, file))}</div>'
    )
    if not verdict.valid:
        reasons = "".join(f"<li>{escape(line)}</li>" for line in reason_lines(verdict))
        head += f'<h2>Why it is invalid</h2><ul class="reasons">{reasons}</ul>'

    facts = [line.removeprefix(f"{PREFIX} ").partition(": ") for line in verdict_lines(verdict)]
    pairs = (f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, _, value in facts if key != "status")
    return f"{head}<h2>The verdict, key by key</h2><dl>{''.join(pairs)}</dl>"


def _answer(e: Evidence, answer: Answer) -> str:
    """Return a question with its answer; that on the time has a bar of the phases."""
    bar = _body(lambda: _bar(phase_shares(e))) if answer.question == TIME else ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in answer.lines)
    return f"<div><h2>{escape(answer.question)}</h2>{bar}{lines}</div>"


def _bar(shares: Mapping[str, float]) -> str:
    """Return a bar of the phases' shares of the trainers' time, in the colours of `Time by kind`."""
    parts = ""
    for phase, share in shares.items():
        colour = f"var(--c{PHASES.index(phase) + 1})"
        parts += f'<i style="width:{share:.2%};background:{colour}" title="{phase} {share:.1%}"></i>'
    return f'<div class="bar" aria-hidden="true">{parts}</div>'


def _page(title: str, head: str, sections: Iterable[tuple[str, Callable[[], str]]]) -> str:
    """Return a whole page: its head, links to its sections if there are several, and the sections."""
    template = (
        resources.files("aiperf_mpi.results.report").joinpath("report.html").read_text(encoding="utf-8")
    )
    bodies = [(heading, _body(content)) for heading, content in sections]
    names = [f"s{number}" for number in range(len(bodies))]
    named = list(zip(names, bodies, strict=True))
    links = "".join(f'<a href="#{name}">{escape(heading)}</a> ' for name, (heading, _) in named)
    return Template(template).substitute(
        title=escape(title),
        head=head,
        links=f'<nav aria-label="Sections">{links}</nav>' if len(bodies) > 1 else "",
        sections="\n".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>'
            for name, (heading, body) in named
        ),
    )


def _body(content: Callable[[], str]) -> str:
    """Return the content of a section, or a paragraph that says why it cannot be shown."""
    try:
        return content()
    except pictures.NothingToShow as nothing:
        return f"<p>{escape(str(nothing))}</p>"
    except _DAMAGE as error:
        return f"<p>cannot be shown: {escape(plain(str(error)))}</p>"


def _of_result(picture: str, table: str, e: Evidence, verdict: Verdict) -> str:
    """Return a picture and a table of one result; if one cannot be shown, the other still is."""
    parts = []
    if picture:
        parts.append(_body(lambda: f"<figure>{pictures.PICTURES[picture](e, verdict)}</figure>"))
    if table:
        parts.append(_body(lambda: "".join(map(element, TABLES[table](e, verdict)))))
    return "".join(parts)


def _of_runs(entries: Sequence[compare.Entry]) -> str:
    """Return the comparison of runs: the picture of weak scaling, texts and tables."""
    comparison = compare.compare(entries)
    if comparison.scaling:
        picture = f"<figure>{pictures.weak_scaling(comparison.scaling)}</figure>"
    else:
        picture = "<p>Weak scaling needs valid runs with at least two different numbers of devices.</p>"
    return picture + "".join(map(element, compare.parts(comparison)))


# -- elements --------------------------------------------------------------------------------------


def element(part: object) -> str:
    """Return a table, tree or text of the text report as an element of the page."""
    match part:
        case Table():
            return _table(part)
        case Tree():
            return f'<div class="wide"><ul class="tree">{_branch(part)}</ul></div>'
        case Text():
            return f"<p>{escape(part.plain.strip())}</p>" if part.plain.strip() else ""
    raise TypeError(f"a part of a report cannot be a {type(part).__name__}")


def _table(table: Table) -> str:
    """Return a table as HTML; it scrolls if it is wider than the screen, or very long."""
    kinds = [' class="n"' if column.justify == "right" else "" for column in table.columns]
    heads = [str(column.header) for column in table.columns]
    rows = zip(*([str(cell).strip() for cell in column.cells] for column in table.columns), strict=True)
    body = "".join(
        "<tr>"
        + "".join(f"<td{kind}>{_cell(cell)}</td>" for kind, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>' for kind, name in zip(kinds, heads, strict=True)
    )
    head = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    tall = " tall" if len(table.rows) > TALL else ""
    return f'<div class="wide{tall}" tabindex="0"><table>{head}<tbody>{body}</tbody></table></div>'


def _cell(text_of_cell: str) -> str:
    """Return an escaped cell with its line breaks."""
    return escape(text_of_cell).replace("\n", "<br>")


def _branch(tree: Tree) -> str:
    """Return a branch and its children as a nested list; recursive, as a report's trees are shallow."""
    inner = "".join(_branch(child) for child in tree.children)
    return f"<li>{escape(str(tree.label))}{f'<ul>{inner}</ul>' if inner else ''}</li>"

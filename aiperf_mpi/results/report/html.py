# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that loads nothing: the verdict with its reasons, pictures, tables; for screen
and print.

It has no script, and every text of the result is escaped. Whatever is said of a score comes from the judge.
Tables are those of the terminal's report, as elements of the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from aiperf_mpi.results.evidence.evidence import Evidence
from aiperf_mpi.results.evidence.printable import plain, plain_result
from aiperf_mpi.results.judge.judge import Verdict, judge_file
from aiperf_mpi.results.report import compare, details, pictures, text
from aiperf_mpi.results.report import verdict as verdict_module

#: What a section over damaged rows may raise; it then says why it is not there.
_DAMAGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)

#: Sections behind the verdict: title, the picture of that name if there is one, the table of that name in the
#: text.
SECTIONS: tuple[tuple[str, str, str], ...] = (
    ("Rate over time", "Rate over time", "Rate over time"),
    ("Utilisation and memory", "Utilisation and memory", "Utilisation"),
    ("Accuracy of every trial", "Accuracy of every trial", "Trials"),
    ("Search tree", "Search tree", "Tree of trials (morphs, status, error)"),
    ("Best network, layer by layer", "", "Layers"),
    ("Operations by three methods", "", "Operations by three methods"),
    ("Best known hyperparameters", "", "Best known hyperparameters"),
    ("Time by kind", "Time by kind", "Time by kind (s)"),
    ("Time between candidates", "", "Between candidates (s)"),
    ("Places and clocks of ranks", "", "Places and clocks of ranks"),
    ("Power and energy", "Power", "Energy"),
    ("System", "", "System"),
    ("Run", "", "Run"),
    ("Messages", "", "Messages"),
)

#: The tables of the text, and those that are too long for a terminal.
TABLES = text.SECTIONS | {"Layers": details.layers, "Operations by three methods": details.operations}

#: Tables of more rows scroll by themselves on a screen; on paper they stand whole.
TALL = 60

SCALING = "Runs side by side and weak scaling"


def html_report(path: Path | str, *others: Path | str) -> str:
    """The page of a result file; with `others` it also has them side by side, and their weak scaling.

    Raises NotAResult if one of them is no result at all.
    """
    result, verdict = judge_file(path)
    evidence = Evidence(plain_result(result))
    entries = (
        [compare.entry_of(str(path), Evidence(result), verdict), *map(compare.entry, others)]
        if others
        else []
    )
    sections = [
        (title, partial(_of_result, picture, table, evidence, verdict)) for title, picture, table in SECTIONS
    ]
    if entries:
        sections.insert(2, (SCALING, partial(_of_runs, entries)))
    lines = verdict_module.verdict_lines(verdict)
    said = [line.removeprefix(f"{verdict_module.PREFIX} ").partition(": ") for line in lines]
    reasons = "".join(f"<li>{escape(line)}</li>" for line in verdict_module.reason_lines(verdict))
    pairs = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, _, value in said if key != "status"
    )
    status = verdict_module.status(verdict)
    head = f'<h1 class="{status}">{status}</h1>'
    if verdict.valid:
        _, value = next(verdict_module.rate_pairs(verdict))
        head += (
            f'<p class="rate"><strong>{escape(value)}</strong> {verdict_module.rate_titles(verdict)[0]}</p>'
        )
    else:
        head += f'<ul class="reasons">{reasons}</ul>'
    return _page(Path(path).name, f"{head}<dl>{pairs}</dl>", sections)


def html_comparison(paths: Sequence[Path | str]) -> tuple[str, bool]:
    """The page of several runs side by side, and whether all of them are valid; raises NotAResult."""
    entries = [compare.entry(path) for path in paths]
    sections = [(SCALING, partial(_of_runs, entries))]
    return _page("comparison", "<h1>Comparison of runs</h1>", sections), all(e.verdict.valid for e in entries)


# -- the page --------------------------------------------------------------------------------------


def _page(title: str, head: str, sections: Iterable[tuple[str, Callable[[], str]]]) -> str:
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
    try:
        return content()
    except pictures.NothingToShow as nothing:
        return f"<p>{escape(str(nothing))}</p>"
    except _DAMAGE as error:
        return f"<p>cannot be shown: {escape(plain(str(error)))}</p>"


def _of_result(picture: str, table: str, e: Evidence, verdict: Verdict) -> str:
    """A picture and a table of one result; where one cannot be shown the other still is."""
    parts = []
    if picture:
        parts.append(_body(lambda: f"<figure>{pictures.PICTURES[picture](e, verdict)}</figure>"))
    if table:
        parts.append(_body(lambda: "".join(map(element, TABLES[table](e, verdict)))))
    return "".join(parts)


def _of_runs(entries: Sequence[compare.Entry]) -> str:
    found = compare.compare(entries)
    drawn = (
        f"<figure>{pictures.weak_scaling(found.scaling)}</figure>"
        if found.scaling
        else ("<p>Weak scaling needs valid runs on at least two numbers of devices.</p>")
    )
    return drawn + "".join(map(element, compare.parts(found)))


# -- elements --------------------------------------------------------------------------------------


def element(part: object) -> str:
    """A table, tree or text of the terminal's report as an element of the page."""
    match part:
        case Table():
            return _table(part)
        case Tree():
            return f'<div class="wide"><ul class="tree">{_branch(part)}</ul></div>'
        case Text():
            return f"<p>{escape(part.plain.strip())}</p>" if part.plain.strip() else ""
    raise TypeError(f"a report has no parts of type {type(part).__name__}")


def _table(table: Table) -> str:
    """Columns of numbers stand at the right; a wide table scrolls by itself on a narrow screen."""
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
    return escape(text_of_cell).replace("\n", "<br>")


def _branch(tree: Tree) -> str:
    """A branch and its children; trees of a report are a few levels deep, or few branches long."""
    inner = "".join(_branch(child) for child in tree.children)
    return f"<li>{escape(str(tree.label))}{f'<ul>{inner}</ul>' if inner else ''}</li>"

"""A report as one HTML page that needs nothing from outside: no script, no network, no other file."""

from collections.abc import Mapping
from html import escape
from string import Template

from chameleon_lora import __version__
from chameleon_lora.report.drawing import HOW_TO_INSTALL, Drawing
from chameleon_lora.report.markup import figure, folded_table, plots_box, prose
from chameleon_lora.report.table import Table
from chameleon_lora.reproduce.finding import Verdict
from chameleon_lora.reproduce.page_style import STYLE
from chameleon_lora.reproduce.report import DID_NOT_RUN, Report, RowResult

MARKS = {
    Verdict.HOLDS.value: ("&#10003;", "holds"),
    Verdict.PARTLY.value: ("&#8776;", "partly"),
    Verdict.FAILS.value: ("&#10007;", "fails"),
    DID_NOT_RUN: ("!", "broken"),
}
"""Of each verdict, the sign before its word and the class that colours both."""

# HTML that is XML as well, so that a strict parser can check it.
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/>
<title>The paper's claims, measured again</title>
<style>
$style</style>
</head>
<body>
<a class="skip" href="#rows">To the table</a>
<main>
<header>
<h1>The paper's claims, measured again</h1>
<p>Each row of the evaluation in <cite>Chameleon: Adaptive Caching and Scheduling for Many-Adapter LLM
Inference</cite> (MICRO '25), on the simulator of chameleon-lora $version: what the paper gives, what we
find, and whether the claim holds.</p>
<p><strong>$verdicts.</strong> Made by <code>$command</code>: $runs. The same command gives the same
figures again.</p>
$missing</header>
<h2 id="rows">All rows</h2>
<div class="scroll" role="region" aria-labelledby="rows" tabindex="0">
<table class="rows">
<thead><tr><th scope="col">What is compared</th><th scope="col">Paper</th><th scope="col">Here</th>\
<th scope="col">Verdict</th></tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>
<dl class="key">
<div><dt>$holds</dt><dd>as large as claimed, or larger</dd></div>
<div><dt>$partly</dt><dd>in the claimed direction, but smaller</dd></div>
<div><dt>$fails</dt><dd>no such effect here, or the opposite</dd></div>
</dl>
$sections
</main>
</body>
</html>
""")

ROW = Template("""\
<tr><th scope="row"><a href="#$key">$claim</a></th><td>$paper</td><td>$ours</td><td>$verdict</td></tr>""")

SECTION = Template("""\
<section id="$key" aria-labelledby="$key-title">
<h2 id="$key-title">$claim</h2>
<dl class="figures">
<div><dt>Paper</dt><dd>$paper</dd></div>
<div><dt>Here</dt><dd>$ours</dd></div>
<div><dt>Verdict</dt><dd>$verdict</dd></div>
</dl>
$body
<p class="again"><span>Again: <code>$command</code></span> <a href="#rows">All rows</a></p>
</section>""")


def page_text(report: Report, drawings: Mapping[str, tuple[Drawing, ...]] | None) -> str:
    """The whole page; `drawings` are a row's plots by its key, None if nothing was there to draw them."""
    missing = (
        f"<p>Plots are left out, because matplotlib was not installed: "
        f"<code>{escape(HOW_TO_INSTALL)}</code></p>\n"
    )
    return PAGE.substitute(
        style=STYLE,
        version=escape(__version__),
        verdicts=escape(report.verdicts),
        command=escape(report.command),
        runs=escape(report.runs),
        missing=missing if drawings is None else "",
        rows="\n".join(ROW.substitute(_words(result)) for result in report.results),
        holds=_badge(Verdict.HOLDS.value),
        partly=_badge(Verdict.PARTLY.value),
        fails=_badge(Verdict.FAILS.value),
        sections="\n".join(
            _section(result, report, (drawings or {}).get(result.row.key, ()))
            for result in report.results
        ),
    )


def _words(result: RowResult) -> dict[str, str]:
    row = result.row
    return {
        "key": escape(row.key),
        "claim": escape(row.claim[:1].upper() + row.claim[1:]),
        "paper": escape(row.paper),
        "ours": escape(result.ours),
        "verdict": _badge(result.word),
    }


def _badge(word: str) -> str:
    sign, name = MARKS[word]
    return (
        f'<span class="verdict {name}"><span aria-hidden="true">{sign}</span> {escape(word)}</span>'
    )


def _section(result: RowResult, report: Report, drawings: tuple[Drawing, ...]) -> str:
    finding, key = result.finding, result.row.key
    parts = [f"<p>{prose(text)}</p>" for text in result.note.split("\n\n") if text]
    if finding and drawings:
        figures = [
            figure(plot, drawing, f"{key}-{number}-")
            for number, (plot, drawing) in enumerate(zip(finding.plots, drawings, strict=True), 1)
        ]
        parts.append(plots_box(figures))
    if finding:
        count = len(finding.tables)
        places = [f" ({n} of {count})" if count > 1 else "" for n in range(1, count + 1)]
        parts += map(_folded, finding.tables, places)
    quick = " --quick" if "--quick" in report.command.split() else ""
    command = escape(f"chameleon reproduce{quick} {key}")
    return SECTION.substitute(_words(result), body="\n".join(parts), command=command)


def _folded(table: Table, place: str) -> str:
    names = " · ".join(cell for cell in table.head if cell)
    return folded_table(table, f"Figures{place}: {names}")

"""What went wrong: failed requests, runs that fell behind, folders that could not be read."""

from collections import Counter, defaultdict

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.report.page import Section, Sheet
from chameleon_lora.report.reading import Evidence
from chameleon_lora.report.run import RecordedRun
from chameleon_lora.report.table import MISSING, Table, counted, ms, plain

MOST_NAMED = 5


def warnings(evidence: Evidence) -> tuple[str, ...]:
    """A sentence for each thing that makes the figures doubtful; shown before them."""
    late = [run for run in evidence.runs if _is_late(run)]
    sent = sum(run.figures.requests for run in evidence.runs)
    failed = sum(run.figures.requests - run.figures.completed for run in evidence.runs)
    found = [f"Left out: {text}" for text in evidence.skipped]
    found += evidence.comparison.troubles if evidence.comparison else ()
    if late:
        names = ", ".join(f"`{run.folder}`" for run in late[:MOST_NAMED])
        more = f" and {len(late) - MOST_NAMED} more" if len(late) > MOST_NAMED else ""
        found.append(
            f"The load generator fell behind in {counted(len(late), 'run')}, so their latencies are its "
            f"own as much as the server's: {names}{more}."
        )
    if failed:
        found.append(f"{failed} of {sent} requests failed; the causes are below.")
    return tuple(found)


def trouble_section(evidence: Evidence) -> Section:
    """Failed requests by cause, and how late requests were sent."""
    causes = _cause_rows(evidence)
    sheets = []
    if causes:
        head = ("arm", "cause", "requests", "for example")
        sheets.append(Sheet("Failed requests by cause", Table(head, causes)))
    sheets.append(_lateness_sheet(evidence))
    notes = () if causes else ("No request failed.",)
    return Section("trouble", "Failures and lateness", notes, (), tuple(sheets))


def runs_section(evidence: Evidence) -> Section:
    """Every run with its folder and the command that makes it again."""
    rows = tuple(
        (
            run.folder,
            run.label,
            run.purpose.value,
            _point(run),
            str(run.repeat),
            str(run.figures.requests),
            ms(run.figures.ttft.p99_s if run.figures.ttft else None),
        )
        for run in evidence.runs
    )
    head = ("folder", "arm", "made for", "at", "repeat", "requests", "P99 TTFT, ms")
    sheets = [Sheet(counted(len(rows), "run"), Table(head, rows), is_folded=True)]
    # A comparison's one command makes all its runs.
    if evidence.comparison is None:
        commands = {run.command: run for run in evidence.runs if run.command}
        again = tuple((run.label, command) for command, run in commands.items())
        if again:
            sheets.append(Sheet("Commands", Table(("arm", "command"), again), is_folded=True))
    return Section("runs", "Runs", (), (), tuple(sheets))


def _is_late(run: RecordedRun) -> bool:
    return run.figures.lateness is not None and run.figures.lateness.has_fallen_behind


def _cause_rows(evidence: Evidence) -> tuple[tuple[str, ...], ...]:
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    for run in evidence.runs:
        for error in run.figures.errors:
            counts[run.label, error.cause] += error.count
            examples.setdefault((run.label, error.cause), error.example)
    return tuple(
        (label, cause, str(count), examples[label, cause])
        for label in evidence.arms
        for (other, cause), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        if other == label
    )


def _lateness_sheet(evidence: Evidence) -> Sheet:
    """The worst over an arm's runs."""
    runs: defaultdict[str, list[RecordedRun]] = defaultdict(list)
    for run in evidence.runs:
        runs[run.label].append(run)
    rows = []
    for label in evidence.arms:
        late = [run.figures.lateness for run in runs[label] if run.figures.lateness]
        rows.append(
            (
                label,
                str(len(runs[label])),
                str(sum(found.has_fallen_behind for found in late)),
                ms(max((found.p99_s for found in late), default=None)),
                ms(max((found.max_s for found in late), default=None)),
            )
        )
    head = ("arm", "runs", "fell behind", "P99 of the worst run, ms", "most, ms")
    return Sheet("How late requests were sent", Table(head, tuple(rows)))


def _point(run: RecordedRun) -> str:
    match run.purpose:
        case Purpose.LOAD if run.load is not None:
            return f"{100.0 * run.load:g} % of capacity"
        case Purpose.CLIFF if run.active_over_slots is not None:
            return f"{plain(run.active_over_slots)} adapters a slot"
        case _:
            return MISSING if run.rate_per_s is None else f"{plain(run.rate_per_s)} requests/s"

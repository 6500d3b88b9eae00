"""What a report of runs says, from its title to the list of its runs."""

from collections import Counter

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.report.adapters import adapters_section
from chameleon_lora.report.headline import arms_section, headline_section
from chameleon_lora.report.latency import cliff_section, distribution_sections, load_section
from chameleon_lora.report.page import Page, Section
from chameleon_lora.report.reading import Evidence
from chameleon_lora.report.table import counted, listed, ms, plain
from chameleon_lora.report.timeline import timeline_section, waits_section
from chameleon_lora.report.trouble import runs_section, trouble_section, warnings

PURPOSE_WORDS = {
    Purpose.RUN: "by themselves",
    Purpose.LOAD: "at shares of capacity",
    Purpose.SEARCH: "to find the highest rate",
    Purpose.CLIFF: "with more and more adapters",
}


def report_page(evidence: Evidence, command: str) -> Page:
    """The whole page; `command` makes it again."""
    sections: tuple[Section | None, ...] = (
        headline_section(evidence),
        arms_section(evidence),
        *distribution_sections(evidence),
        load_section(evidence),
        cliff_section(evidence),
        timeline_section(evidence),
        waits_section(evidence),
        adapters_section(evidence),
        trouble_section(evidence),
        runs_section(evidence),
    )
    return Page(
        title=_title(evidence),
        lead=_lead(evidence),
        facts=_facts(evidence),
        warnings=warnings(evidence),
        sections=tuple(section for section in sections if section),
        command=command,
    )


def _title(evidence: Evidence) -> str:
    match evidence.arms:
        case (only,):
            return f"Benchmark of {only}"
        case (base, other):
            return f"{other} against {base}"
        case arms:
            base = evidence.comparison.base if evidence.comparison else ""
            count = len(arms)
            return f"{count - 1} configurations against {base}" if base else f"{count} servers"


def _lead(evidence: Evidence) -> str:
    purposes = Counter(run.purpose for run in evidence.runs)
    kinds = [
        f"{purposes[purpose]} {PURPOSE_WORDS[purpose]}" for purpose in Purpose if purposes[purpose]
    ]
    told = f" ({', '.join(kinds)})" if len(kinds) > 1 else ""
    runs = counted(len(evidence.runs), "run")
    requests = sum(run.figures.requests for run in evidence.runs)
    return f"{runs} of {listed(evidence.arms)}{told}, with {requests} requests that count."


def _facts(evidence: Evidence) -> tuple[tuple[str, str], ...]:
    found, slo_s = evidence.comparison, evidence.slo_s
    limit = (
        "none, or not one for all runs"
        if slo_s is None
        else f"time to first token of {ms(slo_s)} ms"
    )
    facts = [("Objective", limit)]
    if found is None:
        return tuple(facts)
    facts.append(("Machine", found.machine))
    facts.append((f"Capacity of {found.base}", f"{plain(found.capacity_per_s)} requests/s"))
    facts.append(("Repeats ended", found.stopped))
    facts.append(("Measured again by", f"`{found.command}`" if found.command else "not recorded"))
    return tuple(facts)

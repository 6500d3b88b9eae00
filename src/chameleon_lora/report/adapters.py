"""Who waits: requests by adapter, by rank, and by where their adapter was."""

from collections.abc import Sequence

from chameleon_lora.metrics.fairness import LEAST_REQUESTS, fairness
from chameleon_lora.metrics.groups import GroupSummary, by_adapter, by_rank, by_residency
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.report.page import Section, Sheet
from chameleon_lora.report.points import Points, load_points, of_arm
from chameleon_lora.report.reading import Evidence
from chameleon_lora.report.table import MISSING, Table, ms, percent, plain

FIGURES = ("requests", "failed", "P50 TTFT, ms", "P99 TTFT, ms", "in time")


def adapters_section(evidence: Evidence) -> Section:
    """Fairness, ranks, residencies, and a table of adapters for each arm, at the highest load."""
    points = load_points(evidence)
    title = "Adapters"
    if points is None:
        return Section("adapters", title, ("There is no run at a fixed load here.",))
    records = _records(evidence, points)
    ranks = {name: rank for run in points.highest[1] for name, rank in run.ranks.items()}
    notes = [
        f"At {points.name(points.highest[0])}, all repeats together. “In time” is the share of "
        + (
            "requests within the objective, failed ones counted as late."
            if evidence.slo_s is not None
            else "requests within the objective; none was set."
        )
    ]
    slo_s = evidence.slo_s
    sheets = [_fairness_sheet(records)]
    by_ranks = {label: by_rank(found, ranks, slo_s) for label, found in records.items()}
    by_places = {label: by_residency(found, slo_s) for label, found in records.items()}
    if any(by_ranks.values()):
        sheets.append(_group_sheet("By rank", "rank", by_ranks))
    else:
        notes.append("No run says of which rank its adapters are.")
    if any(by_places.values()):
        sheets.append(_group_sheet("By where the adapter was", "adapter in", by_places))
    else:
        notes.append("No server told where an adapter was when a request for it came.")
    for label, found in records.items():
        groups = by_adapter(found, slo_s)
        sheets.append(_adapter_sheet(label, groups, ranks))
    return Section("adapters", title, tuple(notes), (), tuple(sheets))


def _records(evidence: Evidence, points: Points) -> dict[str, tuple[RequestRecord, ...]]:
    """The records of each arm that has runs at the highest load."""
    pooled = {
        label: tuple(record for run in of_arm(points.highest[1], label) for record in run.records)
        for label in evidence.arms
    }
    return {label: records for label, records in pooled.items() if records}


def _fairness_sheet(records: dict[str, tuple[RequestRecord, ...]]) -> Sheet:
    head = ("arm", "adapters", "Jain's index of mean TTFT", "worst P99 over median P99", "worst")
    rows = tuple(
        (
            label,
            str(fair.adapters),
            f"{fair.jain_ttft:.3f}",
            plain(fair.worst_over_median),
            fair.worst,
        )
        if (fair := fairness(found))
        else (label, MISSING, MISSING, MISSING, MISSING)
        for label, found in records.items()
    )
    title = f"Fairness, of adapters with {LEAST_REQUESTS} completed requests or more"
    return Sheet(title, Table(head, rows))


def _group_sheet(title: str, word: str, groups: dict[str, tuple[GroupSummary, ...]]) -> Sheet:
    rows = tuple(
        (label, group.key, *_figures(group)) for label, found in groups.items() for group in found
    )
    return Sheet(title, Table(("arm", word, *FIGURES), rows))


def _adapter_sheet(label: str, groups: Sequence[GroupSummary], ranks: dict[str, int]) -> Sheet:
    rows = tuple(
        (group.key, str(ranks.get(group.key, MISSING)), *_figures(group)) for group in groups
    )
    head = ("adapter", "rank", *FIGURES)
    return Sheet(f"{label}: {len(groups)} adapters", Table(head, rows), True, sorted_by=2)


def _figures(group: GroupSummary) -> tuple[str, ...]:
    return (
        str(group.requests),
        str(group.failed),
        ms(group.ttft.p50_s if group.ttft else None),
        ms(group.ttft.p99_s if group.ttft else None),
        percent(group.slo_share),
    )

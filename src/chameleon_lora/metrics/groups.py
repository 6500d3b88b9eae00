"""The requests of a run by adapter, by rank and by where their adapter was."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chameleon_lora.metrics.record import RESIDENCIES, RequestRecord, token_gaps_s, ttfts_s
from chameleon_lora.metrics.summary import Spread, share_in_time, spread

BASE_MODEL = "(base model)"
"""What requests without adapter are called where adapters are listed."""


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """The figures of some of a run's requests.

    Attributes:
        key: what they have in common: an adapter's name, a rank, a residency.
        ttft: of the completed ones; None if there are none.
        token_gap: between neighbouring tokens, all requests together; None if there are none.
        slo_share: requests in time over all of the group, failed ones counted as late; None if no
            limit was set.
    """

    key: str
    requests: int
    completed: int
    failed: int
    ttft: Spread | None
    token_gap: Spread | None
    slo_share: float | None


def by_adapter(
    records: Sequence[RequestRecord], slo_s: float | None = None
) -> tuple[GroupSummary, ...]:
    """One group an adapter, most requests first, then by name; the base model is one of them."""
    groups = _groups(records, lambda record: record.adapter or BASE_MODEL, slo_s)
    return tuple(sorted(groups, key=lambda group: (-group.requests, group.key)))


def by_rank(
    records: Sequence[RequestRecord], ranks: Mapping[str, int], slo_s: float | None = None
) -> tuple[GroupSummary, ...]:
    """One group a LoRA rank, lowest first; requests whose adapter's rank is unknown are left out."""
    groups = _groups(
        [record for record in records if record.adapter in ranks],
        lambda record: str(ranks[record.adapter or ""]),
        slo_s,
    )
    return tuple(sorted(groups, key=lambda group: int(group.key)))


def by_residency(
    records: Sequence[RequestRecord], slo_s: float | None = None
) -> tuple[GroupSummary, ...]:
    """One group a residency, fastest first; empty for servers that do not tell."""
    told = [record for record in records if record.residency is not None]
    groups = _groups(told, lambda record: record.residency or "", slo_s)
    return tuple(sorted(groups, key=lambda group: (_place(group.key), group.key)))


def _place(residency: str) -> int:
    return RESIDENCIES.index(residency) if residency in RESIDENCIES else len(RESIDENCIES)


def _groups(
    records: Sequence[RequestRecord],
    key_of: Callable[[RequestRecord], str],
    slo_s: float | None,
) -> list[GroupSummary]:
    members: defaultdict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        members[key_of(record)].append(record)
    return [_summary(key, group, slo_s) for key, group in members.items()]


def _summary(key: str, records: Sequence[RequestRecord], slo_s: float | None) -> GroupSummary:
    completed = sum(record.is_completed for record in records)
    return GroupSummary(
        key=key,
        requests=len(records),
        completed=completed,
        failed=len(records) - completed,
        ttft=spread(ttfts_s(records)),
        token_gap=spread(token_gaps_s(records)),
        slo_share=share_in_time(records, slo_s),
    )

"""Which adapters does a workload name, and of which LoRA rank are they?"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.trace import TraceRow

PAPER_RANKS = (8, 16, 32, 64, 128)
"""The ranks of the paper's section 5, in equal number."""


@dataclass(frozen=True, slots=True)
class NamedAdapter:
    """An adapter as requests name it.

    Attributes:
        rank: of its LoRA matrices, at least 1.
    """

    name: str
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"adapter {self.name!r} of rank {self.rank}: the least rank is 1")


def name_of(adapter: NamedAdapter | str) -> str:
    """The name that requests give it; where no rank is known, the name stands for the adapter."""
    return adapter if isinstance(adapter, str) else adapter.name


def ranks_of(adapters: Iterable[NamedAdapter | str]) -> dict[str, int]:
    """By name, of those whose rank is known."""
    return {each.name: each.rank for each in adapters if isinstance(each, NamedAdapter)}


def card(adapter: NamedAdapter | str) -> dict[str, object]:
    """What a run's config.json says of an adapter."""
    rank = None if isinstance(adapter, str) else adapter.rank
    return {"name": name_of(adapter), "rank": rank}


def named_adapters(count: int, ranks: Sequence[int] = PAPER_RANKS) -> tuple[NamedAdapter, ...]:
    """`count` adapters that take `ranks` in turn, so that each rank is as frequent as it can be.

    A rank that stands twice in `ranks` is given to twice as many.

    Raises:
        ConfigError: there are no adapters, no ranks, or a rank is below 1.
    """
    if count < 1 or not ranks:
        raise ConfigError(
            f"{count} adapters of the ranks {tuple(ranks)}: give at least one of each"
        )
    digits = len(str(count - 1))
    return tuple(
        NamedAdapter(f"adapter-{number:0{digits}d}-r{rank}", rank)
        for number, rank in ((number, ranks[number % len(ranks)]) for number in range(count))
    )


def trace_adapters(
    rows: Sequence[TraceRow], ranks: Sequence[int] = PAPER_RANKS
) -> tuple[NamedAdapter, ...]:
    """The adapters of a trace, most requests first (then by name); they take `ranks` in turn.

    Raises:
        ConfigError: the trace names no adapter, there are no ranks, or a rank is below 1.
    """
    names = names_in(rows)
    if not names or not ranks:
        raise ConfigError(
            f"a trace of {len(rows)} requests for {len(names)} adapters, of the ranks "
            f"{tuple(ranks)}, gives none; way out: named_adapters(count)"
        )
    return tuple(
        NamedAdapter(name, ranks[number % len(ranks)]) for number, name in enumerate(names)
    )


def names_in(rows: Sequence[TraceRow]) -> list[str]:
    """The adapters that a trace names, most requests first, then by name."""
    uses = Counter(row.adapter for row in rows if row.adapter is not None)
    return sorted(uses, key=lambda name: (-uses[name], name))

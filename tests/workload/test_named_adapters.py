"""The adapters of a workload and their ranks."""

from collections import Counter

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.named_adapters import NamedAdapter, named_adapters, trace_adapters
from chameleon_lora.workload.trace import TraceRow

ROWS = tuple(TraceRow(0.0, name, 1, 1) for name in ("b", None, "c", "b", "a", "c", "b"))


def test_ranks_are_taken_in_turn() -> None:
    """The paper's mix: 100 adapters, 20 of each rank, told apart by name."""
    adapters = named_adapters(100)
    assert {8: 20, 16: 20, 32: 20, 64: 20, 128: 20} == Counter(each.rank for each in adapters)
    assert 100 == len({each.name for each in adapters})
    assert NamedAdapter("adapter-06-r16", 16) == adapters[6]


def test_a_rank_may_be_more_frequent() -> None:
    """What stands twice comes twice."""
    assert [8, 8, 64, 8, 8] == [each.rank for each in named_adapters(5, (8, 8, 64))]


def test_adapters_of_a_trace_come_by_popularity() -> None:
    """Most requests first; those that name none do not count."""
    expected = (NamedAdapter("b", 8), NamedAdapter("c", 16), NamedAdapter("a", 8))
    assert expected == trace_adapters(ROWS, (8, 16))


@pytest.mark.parametrize(("count", "ranks"), [(0, (8,)), (3, ()), (2, (8, 0))])
def test_impossible_mixes_are_refused(count: int, ranks: tuple[int, ...]) -> None:
    """No adapters, no ranks, or a rank of 0."""
    with pytest.raises(ConfigError, match=r"at least one|least rank is 1"):
        named_adapters(count, ranks)


def test_a_trace_without_adapters_gives_none() -> None:
    """The message says how to make some."""
    with pytest.raises(ConfigError, match=r"named_adapters\(count\)"):
        trace_adapters(ROWS[1:2])

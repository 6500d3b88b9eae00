"""A run's requests by adapter, rank and residency."""

from dataclasses import replace

from chameleon_lora.metrics.groups import BASE_MODEL, by_adapter, by_rank, by_residency
from tests.metrics.records import record

RECORDS = (
    replace(record(0, 0.0, (1.0, 1.5)), adapter="a", residency="host"),
    replace(record(1, 0.0, (3.0,)), adapter="b", residency="slot"),
    replace(record(2, 0.0, (2.0,)), adapter="b", residency="host"),
    replace(record(3, 0.0, (), error="refused"), adapter="c"),
    replace(record(4, 0.0, (1.0,)), adapter=None),
)


def test_adapters_come_by_number_of_requests_then_by_name() -> None:
    """b has two; the base model is one of them, under a name of its own."""
    found = [(group.key, group.requests) for group in by_adapter(RECORDS)]
    assert [("b", 2), (BASE_MODEL, 1), ("a", 1), ("c", 1)] == found


def test_failed_requests_are_counted_and_lend_no_time() -> None:
    """c's only request failed: no time to first token, no gap, and a share of 0 in time."""
    group = by_adapter(RECORDS, slo_s=9.0)[-1]
    assert ("c", 1, 0, 1) == (group.key, group.requests, group.completed, group.failed)
    assert (None, None, 0.0) == (group.ttft, group.token_gap, group.slo_share)


def test_a_group_has_its_own_times() -> None:
    """b's first tokens came after 2 and 3 s, a's second one 0.5 s after its first."""
    b, _, a, _ = by_adapter(RECORDS)
    assert b.ttft is not None
    assert a.token_gap is not None
    assert (2, 2.5, 3.0) == (b.ttft.count, b.ttft.mean_s, b.ttft.max_s)
    assert (1, 0.5) == (a.token_gap.count, a.token_gap.mean_s)


def test_shares_in_time_are_over_all_of_the_group() -> None:
    """Of b's 2 and 3 s one is within 2 s; without a limit there is no share."""
    assert 0.5 == by_adapter(RECORDS, slo_s=2.0)[0].slo_share
    assert by_adapter(RECORDS)[0].slo_share is None


def test_ranks_come_in_order_of_size_and_unknown_ones_are_left_out() -> None:
    """16 before 128, as numbers; c's rank and the base model's are not known."""
    groups = by_rank(RECORDS, {"a": 128, "b": 16})
    assert [("16", 2), ("128", 1)] == [(group.key, group.requests) for group in groups]


def test_residencies_come_fastest_first() -> None:
    """A slot is faster than host memory; who was told of no place is left out."""
    groups = by_residency(RECORDS)
    assert [("slot", 1), ("host", 2)] == [(group.key, group.requests) for group in groups]


def test_a_residency_no_one_knows_comes_last() -> None:
    """Another server's word is kept."""
    records = [*RECORDS, replace(record(5, 0.0, (1.0,)), residency="attic")]
    assert "attic" == by_residency(records)[-1].key


def test_servers_that_tell_nothing_have_no_residencies() -> None:
    """Stock vLLM's."""
    assert () == by_residency([record(0, 0.0, (1.0,))])

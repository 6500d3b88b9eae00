"""One request's own figures."""

from dataclasses import replace

import pytest

from chameleon_lora.metrics.record import RequestRecord

RECORD = RequestRecord(
    index=0,
    adapter=None,
    arrival_s=1.0,
    sent_s=1.25,
    first_token_s=2.0,
    token_times_s=(2.0, 2.5, 3.5),
    end_s=3.75,
    prompt_tokens=7,
    output_tokens=3,
)


def test_ttft_counts_from_the_intended_arrival() -> None:
    """Due at 1, sent at 1.25, first token at 2: one second, not 0.75."""
    assert RECORD.ttft_s == 1.0


def test_lateness_is_the_clients_own_delay() -> None:
    """Due at 1, sent at 1.25."""
    assert RECORD.lateness_s == 0.25


def test_latency_ends_with_the_answer() -> None:
    """Due at 1, ended at 3.75."""
    assert RECORD.latency_s == 2.75


def test_token_gaps_lie_between_neighbours() -> None:
    """Tokens at 2, 2.5 and 3.5 are 0.5 and 1 apart."""
    assert RECORD.token_gaps_s == pytest.approx((0.5, 1.0))


def test_time_per_token_is_the_mean_after_the_first() -> None:
    """First token at 2, end at 3.75, two more tokens: 0.875 s each."""
    assert RECORD.per_token_s == pytest.approx(0.875)


def test_tokens_are_the_servers_where_chunks_hold_several() -> None:
    """The server counted five tokens in three chunks: four after the first."""
    assert replace(RECORD, output_tokens=5).per_token_s == pytest.approx(1.75 / 4)


def test_one_token_or_none_has_no_time_per_token() -> None:
    """There is nothing after the first."""
    assert replace(RECORD, output_tokens=1).per_token_s is None
    assert replace(RECORD, first_token_s=None, token_times_s=()).per_token_s is None

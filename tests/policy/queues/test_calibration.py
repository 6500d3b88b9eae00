"""When lanes are cut, and from what."""

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.queues.calibration import CLUSTERED, Calibration, LaneSettings
from chameleon_lora.policy.queues.clusters import ClusterSettings
from chameleon_lora.policy.queues.quota import LaneLoad, Quota, lane_quotas

TOTAL = Quota(10_000, 10)


def make(**settings: object) -> Calibration:
    """Lanes cut first after four requests, then every 100 s."""
    given: dict[str, object] = {"first_after": 4, "period_s": 100.0} | settings
    return Calibration(LaneSettings(**given), TOTAL)  # type: ignore[arg-type]


def feed(calibration: Calibration, count: int, now_s: float = 0.0) -> None:
    """Small and large requests in turn."""
    for number in range(count):
        calibration.arrived((0.1, 0.9)[number % 2], (100, 900)[number % 2], now_s)


def test_one_lane_with_everything_before_the_first_cut() -> None:
    """Nothing is known yet, so all share all."""
    calibration = make()
    assert (TOTAL,) == calibration.cut.quotas
    assert 0 == calibration.arrived(0.9, 900, 0.0)
    assert not calibration.is_due(0.0)


def test_nothing_is_due_before_the_first_request() -> None:
    """However late it is."""
    assert not make().is_due(1e9)


def test_first_cut_after_the_set_number_of_requests() -> None:
    """The fourth request makes the first cut due; small and large are told apart from then on."""
    calibration = make()
    feed(calibration, 3)
    assert not calibration.is_due(0.0)
    feed(calibration, 1)
    assert calibration.is_due(0.0)
    cut = calibration.recut(0.0)
    assert 2 == len(cut.quotas)
    assert 0.1 < cut.cutoffs[0] < 0.9
    assert 0 == calibration.arrived(0.2, 1, 0.0)
    assert 1 == calibration.arrived(0.8, 1, 0.0)


def test_repeated_at_each_doubling() -> None:
    """The next cuts come after 8 and 16 requests."""
    calibration = make()
    feed(calibration, 4)
    calibration.recut(1.0)
    feed(calibration, 3)
    assert not calibration.is_due(1.0)
    feed(calibration, 1)
    assert calibration.is_due(1.0)
    calibration.recut(2.0)
    feed(calibration, 7)
    assert not calibration.is_due(2.0)


def test_then_once_a_period() -> None:
    """After one period only time counts, from the first request on."""
    calibration = make()
    feed(calibration, 4, now_s=50.0)
    calibration.recut(50.0)
    assert not calibration.is_due(149.0)
    assert calibration.is_due(150.0)
    calibration.recut(150.0)
    feed(calibration, 1000, now_s=160.0)
    assert not calibration.is_due(249.0)
    assert calibration.is_due(250.0)


def test_one_lane_is_never_cut() -> None:
    """With max_lanes 1 there is nothing to find."""
    calibration = make(cluster=ClusterSettings(max_lanes=1))
    feed(calibration, 1000)
    assert not calibration.is_due(1e9)


def test_quotas_share_the_total_exactly() -> None:
    """Whatever the lanes, tokens and seats add up to the engine's."""
    calibration = make()
    feed(calibration, 64)
    quotas = calibration.recut(9.0).quotas
    assert (10_000, 10) == (sum(q.tokens for q in quotas), sum(q.seats for q in quotas))


def test_lane_whose_requests_run_longer_gets_more() -> None:
    """Two equal lanes: the one whose requests take twice the time has twice the quota."""
    calibration = make()
    for _ in range(8):
        calibration.arrived(0.1, 100, 0.0)
        calibration.arrived(0.9, 100, 0.0)
        calibration.finished(0.1, 1.0)
        calibration.finished(0.9, 2.0)
    small, large = calibration.recut(1.0).quotas
    assert small.tokens * 2 == pytest.approx(large.tokens, abs=2)


def test_without_quotas_each_lane_may_use_the_engine() -> None:
    """has_quotas False sets no bound to any lane."""
    calibration = make(has_quotas=False)
    feed(calibration, 4)
    cut = calibration.recut(0.0)
    assert 2 == len(cut.quotas)
    assert all(q.tokens > 1 << 40 for q in cut.quotas)


def test_many_arrivals_are_thinned_out_evenly() -> None:
    """A cut clusters at most 256 sizes, which still cover the whole time."""
    calibration = make()
    for number in range(3 * CLUSTERED):
        calibration.arrived(0.1 if number < 2 * CLUSTERED else 0.9, 10, float(number))
    cut = calibration.recut(1000.0)
    assert 1 == len(cut.cutoffs)
    assert 0.1 < cut.cutoffs[0] < 0.9


@pytest.mark.parametrize(
    ("name", "value"), [("period_s", 0.0), ("slo_s", -1.0), ("first_after", 1)]
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    """The message names the setting, its value and what is allowed."""
    with pytest.raises(ConfigError, match=f"lanes.{name} is {value}; use"):
        LaneSettings(**{name: value})  # type: ignore[arg-type]


def test_static_lanes_wait_for_enough_to_cut_them_from() -> None:
    """However long that takes; then they are cut once."""
    calibration = make(is_static=True)
    feed(calibration, 3)
    assert not calibration.is_due(1000.0)
    feed(calibration, 1, 1000.0)
    assert calibration.is_due(1000.0)
    assert 2 == len(calibration.recut(1000.0).quotas)
    feed(calibration, 100, 2000.0)
    assert not calibration.is_due(1e9)


def test_quotas_are_by_each_lanes_own_rate_of_arrivals() -> None:
    """30 small ones and 10 large ones in 20 s; each runs for as long as the objective."""
    calibration = make(slo_s=4.0)
    for number in range(40):
        is_large = number % 4 == 0
        calibration.arrived(0.9 if is_large else 0.1, 900 if is_large else 100, 0.5 * number)
    loads = [LaneLoad(100, 4.0, 30 / 20.0), LaneLoad(900, 4.0, 10 / 20.0)]
    assert lane_quotas(TOTAL, loads, 4.0) == calibration.recut(20.0).quotas

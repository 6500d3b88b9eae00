"""What a server said of itself at one moment."""

import dataclasses

import pytest

from chameleon_lora.metrics.sample import LaneSample, Sample


def test_a_server_may_tell_nothing() -> None:
    """What it does not tell is None, lanes are none."""
    sample = Sample(at_s=1.0, running=None, waiting=None, kv_usage=None)
    assert ((), None, None) == (sample.lanes, sample.cache_bytes, sample.lent_bytes)


def test_samples_are_values() -> None:
    """Equal parts make equal samples, which do not change."""
    lane = LaneSample(0, 1, 2, 3, 40, 50, "quota")
    sample = Sample(1.0, 3, 1, 0.5, (lane,), {"host": 10}, 20)
    assert sample == dataclasses.replace(sample)
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.at_s = 2.0  # type: ignore[misc]  # that it cannot be done is the test

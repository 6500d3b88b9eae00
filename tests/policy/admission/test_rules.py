"""Rules of admission that make no sense are refused."""

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.admission.rules import AdmissionSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [("squash_limit", -1), ("overtake_limit", 0), ("every_steps", 0), ("aging_tokens_per_s", -1.0)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    """The message names the setting, its value and what is allowed."""
    with pytest.raises(ConfigError, match=f"admission.{name} is {value}; use"):
        AdmissionSettings(**{name: value})  # type: ignore[arg-type]

"""Settings from nested mappings: what is taken, and what is refused in which words."""

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.settings import (
    Bypass,
    KeepRule,
    KeepWeights,
    PolicySettings,
    Preset,
    preset,
)
from chameleon_lora.settings import ServingSettings, Settings, parse_settings

SECTIONS = [f.name for f in fields(PolicySettings) if f.name != "seed"]
KEYS = st.sampled_from(
    ["preset", "serving", "seed", *SECTIONS, "cluster", "rule", "weights", "slo_s", "scan_s"]
) | st.text(max_size=3)
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**400, 10**401)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([rule.value for rule in Bypass])
)
NESTED = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
TABLES = {
    **{name: getattr(PolicySettings(), name) for name in SECTIONS},
    "serving": ServingSettings(),
}


def refusal(given_settings: dict[str, Any]) -> str:
    """The words in which these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        parse_settings(given_settings)
    return str(caught.value)


def test_nothing_given_means_the_defaults() -> None:
    """An empty mapping gives Chameleon's own policy and serves no folder."""
    assert Settings(PolicySettings(), ServingSettings()) == parse_settings({})


@pytest.mark.parametrize("name", list(Preset), ids=lambda name: name.value)
def test_a_preset_chooses_the_policy(name: Preset) -> None:
    """`preset` alone gives exactly the published policy of that name."""
    assert preset(name) == parse_settings({"preset": name.value}).policy


def test_changes_are_laid_over_the_preset() -> None:
    """A change keeps what the preset chose beside it, in the same table and in inner ones."""
    parsed = parse_settings(
        {"preset": "slora", "cache": {"weights": {"size": 1.0}}, "admission": {"every_steps": 3}}
    ).policy
    assert KeepRule.LRU is parsed.cache.keep
    assert KeepWeights(size=1.0) == parsed.cache.weights
    assert (Bypass.OFF, 3) == (parsed.admission.bypass, parsed.admission.every_steps)


def test_serving_is_its_own_table() -> None:
    """`serving` reaches the driver's settings, not the policy's."""
    parsed = parse_settings({"serving": {"adapters": "/a", "trusted_roots": ["/b"]}})
    assert ServingSettings(adapters="/a", trusted_roots=("/b",)) == parsed.serving
    assert PolicySettings() == parsed.policy


def test_a_choice_is_given_by_its_word() -> None:
    """Enums are given as the words of their values."""
    assert (
        Bypass.PAPER is parse_settings({"admission": {"bypass": "paper"}}).policy.admission.bypass
    )


def test_a_whole_number_does_for_a_float() -> None:
    """An int given for a float becomes that float."""
    slo_s = parse_settings({"lanes": {"slo_s": 3}}).policy.lanes.slo_s
    assert (3.0, float) == (slo_s, type(slo_s))


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"cash": {}}, ("'cash'", "admission", "preset", "serving")),
        ({"cache": {"kep": 1}}, ("'cache.kep'", "host_bytes", "keep", "window_s")),
        ({"lanes": {"cluster": {"k": 1}}}, ("'lanes.cluster.k'", "elbow_share", "max_lanes")),
        ({"preset": "lru"}, ("'preset'", "'lru'", *(name.value for name in Preset))),
        ({"preset": ["paper"]}, ("'preset'", "['paper']", "chameleon, paper")),
        ({"cache": {"keep": "fifo"}}, ("'cache.keep'", "'fifo'", "chameleon, fair_share, lru")),
        ({"cache": 5}, ("'cache'", "5", "a table")),
        ({"lanes": {"cluster": 5}}, ("'lanes.cluster'", "5", "a table")),
    ],
    ids=str,
)  # fmt: skip
def test_a_refusal_names_key_value_and_what_is_allowed(
    given_settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    """Unknown keys, unknown words and values for tables are told with what would do."""
    text = refusal(given_settings)
    assert [] == [word for word in words if word not in text]


@pytest.mark.parametrize(
    ("table", "key", "value", "kind"),
    [
        ("prefetch", "max_loading", True, "int"),
        ("prefetch", "max_loading", 2.0, "int"),
        ("prefetch", "queued", 1, "bool"),
        ("lanes", "slo_s", True, "float"),
        ("lanes", "slo_s", "5", "float"),
        ("serving", "adapters", 5, "str"),
    ],
)
def test_a_value_of_another_type_is_refused(table: str, key: str, value: Any, kind: str) -> None:
    """A bool is no number, a number no bool, a float no int; key, value and type are named."""
    text = f"setting '{table}.{key}' is {value!r}; it takes a value of type {kind}"
    assert text == refusal({table: {key: value}})


def test_a_setting_outside_tables_has_a_type_too() -> None:
    """`seed` stands in no table and takes whole numbers only."""
    assert "setting 'seed' is '7'; it takes a value of type int" == refusal({"seed": "7"})


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, 10**400, 10**5000],
    ids=["nan", "inf", "-inf", "10**400", "10**5000"],
)
def test_a_float_is_finite(value: float) -> None:
    """Neither nan nor infinity nor a whole number beyond all floats is taken for a float."""
    text = refusal({"lanes": {"period_s": value}})
    assert text.startswith("setting 'lanes.period_s' is ")
    assert text.endswith("it takes a finite number")


@pytest.mark.parametrize(
    ("given_settings", "words"),
    [
        ({"admission": {"overtake_limit": 0}}, ("admission.overtake_limit is 0", "1 or more")),
        ({"admission": {"aging_tokens_per_s": -1}}, ("aging_tokens_per_s is -1", "0 or more")),
        ({"lanes": {"slo_s": 0}}, ("lanes.slo_s is 0", "above 0")),
        ({"lanes": {"first_after": 1}}, ("lanes.first_after is 1", "2 or more")),
        ({"lanes": {"cluster": {"max_lanes": 0}}}, ("'lanes.cluster'", "max_lanes is 0", "at least 1")),
        ({"cache": {"host_bytes": -1}}, ("cache.host_bytes is -1", "leave it out for no bound")),
        ({"cache": {"host_bytes": 0}}, ("cache.host_bytes is 0", "leave it out for no bound")),
        ({"cache": {"weights": {"size": -1}}}, ("'cache.weights'", "-1", "at least 0")),
        ({"prefetch": {"max_loading": 0}}, ("prefetch.max_loading is 0", "1 or more")),
        ({"length": {"window": 0}}, ("'length'", "window is 0", "at least 1")),
        ({"size": {"input_weight": -1}}, ("'size'", "input_weight", "-1", "at least 0")),
        ({"serving": {"scan_s": 0.01}}, ("serving.scan_s is 0.01", "0.1 seconds or more")),
        ({"serving": {"trusted_roots": ["/a", "b"]}}, ("serving.trusted_roots holds 'b'", "absolute paths")),
        ({"serving": {"trusted_roots": "/a"}}, ("'serving.trusted_roots' is '/a'", "a list of values of type str")),
        ({"serving": {"max_body_bytes": 100}}, ("serving.max_body_bytes is 100", "1024 or more")),
        ({"serving": {"trusted_roots": [5]}}, ("'serving.trusted_roots' is [5]", "a list of values of type str")),
        ({"serving": {"slot_parts": 4}}, ("'serving.slot_parts' is no more", "serving.lora_backend", "Leave it out")),
    ],
    ids=str,
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_its_table(
    given_settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    """What the dataclasses refuse arrives with table, field, value and range."""
    text = refusal(given_settings)
    assert [] == [word for word in words if word not in text]


def outcome(given_settings: dict[str, Any]) -> Settings | str:
    """The settings, or the words in which they are refused."""
    try:
        return parse_settings(given_settings)
    except ConfigError as error:
        return str(error)


@given(st.dictionaries(KEYS, NESTED, max_size=4))
def test_nothing_but_a_config_error_is_raised(given_settings: dict[str, Any]) -> None:
    """Any nested mapping gives settings or is refused in words."""
    assert outcome(given_settings)


@given(st.sampled_from(list(TABLES)), st.data())
def test_any_value_for_any_known_key_is_taken_or_refused(table: str, data: st.DataObject) -> None:
    """Each key of each table meets values of all kinds; a refusal names the key."""
    key = data.draw(st.sampled_from([f.name for f in fields(TABLES[table])]))
    answer = outcome({table: {key: data.draw(NESTED)}})
    assert isinstance(answer, Settings) or (table in answer and key in answer)

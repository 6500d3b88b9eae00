"""adapter_config.json: every setting that cannot be served, in real files."""

import json
from pathlib import Path

import pytest

from chameleon_lora.adapters.config import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    PeftConfig,
    parse_config,
    read_config_bytes,
    without_expressions,
)
from chameleon_lora.errors import AdapterInvalidError

SOUND: dict[str, object] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "tiny-llama",
}


def read(folder: Path, raw: bytes) -> PeftConfig:
    """The configuration after `raw` was written to the folder."""
    (folder / CONFIG_NAME).write_bytes(raw)
    return parse_config(read_config_bytes(folder))


def test_a_sound_configuration_is_read_in_full(tmp_path: Path) -> None:
    """Each field is the file's, and nothing is a problem."""
    expected = PeftConfig(4, 8.0, "tiny-llama", ("q_proj", "v_proj"), {}, {}, (), ())
    assert expected == read(tmp_path, json.dumps(SOUND).encode())


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules"])
def test_a_required_setting_may_not_be_missing(tmp_path: Path, field: str) -> None:
    """vLLM needs r, lora_alpha and target_modules."""
    raw = json.dumps({key: value for key, value in SOUND.items() if key != field}).encode()
    (problem,) = read(tmp_path, raw).problems
    assert problem.startswith(f"{field} is ")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"r": NaN}', "NaN is no JSON number"),
        (b'{"r": -Infinity}', "-Infinity is no JSON number"),
        (b'{"lora_alpha": 1e999', "is not JSON"),
        (b'{"r": 8, "r": 16}', "a key is given twice"),
        (b'{"r": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "a JSON list, not an object"),
        (b"null", "a JSON NoneType, not an object"),
        (b" " * (MAX_CONFIG_BYTES + 1), f"above the limit of {MAX_CONFIG_BYTES} bytes"),
    ],
    ids=[
        "cut",
        "empty",
        "utf16",
        "nan",
        "inf",
        "1e999",
        "twice",
        "digits",
        "deep",
        "list",
        "null",
        "huge",
    ],
)
def test_a_configuration_that_is_no_json_object_is_a_problem(
    tmp_path: Path, raw: bytes, expected: str
) -> None:
    """Whatever bytes stand in adapter_config.json, the answer is an error with a way out."""
    with pytest.raises(AdapterInvalidError) as raised:
        read(tmp_path, raw)
    assert expected in str(raised.value)
    assert "way out: " in str(raised.value)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("peft_type", "LOHA", "peft_type is 'LOHA', only 'LORA'"),
        ("peft_type", ["LORA"], "peft_type is ['LORA']"),
        ("r", 0, "r is 0, it must be a whole number from 1 to 65536"),
        ("r", -4, "r is -4"),
        ("r", 65537, "r is 65537"),
        ("r", 10**4000, "r is 1000"),
        ("r", [4], "r is [4]"),
        ("r", "4", "r is '4'"),
        ("r", 4.5, "r is 4.5"),
        ("r", -4.0, "r is -4.0"),
        ("r", 1e300, "r is 1e+300"),
        ("r", True, "r is True"),
        ("lora_alpha", "8", "lora_alpha is '8', it must be a number"),
        ("lora_alpha", None, "lora_alpha is None"),
        ("lora_alpha", True, "lora_alpha is True"),
        ("lora_alpha", 10**400, "lora_alpha is 1000"),
        ("use_rslora", "false", "use_rslora is 'false', it must be true or false"),
        ("use_rslora", 2, "use_rslora is 2"),
        ("use_rslora", [0], "use_rslora is [0]"),
        ("target_modules", {"a": 1}, "target_modules is {'a': 1}"),
        ("target_modules", ["q_proj", 3], "vLLM 0.32 needs a name or a list of printable"),
        ("target_modules", ["\ud800"], "target_modules is ['\\ud800']"),
        ("target_modules", "q\x1b[2J", "target_modules is 'q\\x1b[2J'"),
        ("target_modules", [["q_proj"]], "target_modules is [['q_proj']]"),
        ("use_dora", True, "vLLM 0.32 refuses DoRA"),
        ("bias", "some", "bias is 'some', it must be one of none, all, lora_only"),
        ("bias", None, "bias is None"),
        ("lora_bias", True, "vLLM 0.32 refuses LoRA bias"),
        ("modules_to_save", ["lm_head"], "modules_to_save is ['lm_head']: vLLM 0.32 takes whole"),
        ("modules_to_save", ["score", "lm_head"], "a list of classifier or score"),
        ("modules_to_save", "score", "modules_to_save is 'score'"),
        ("init_lora_weights", "pissa", "init_lora_weights is 'pissa': vLLM 0.32 refuses"),
        ("alora_invocation_tokens", [1, 2], "refuses activated LoRA"),
        ("layer_replication", [[0, 2]], "refuses replicated layers"),
        ("use_bdlora", {"blocks": 2}, "refuses block-diagonal LoRA"),
        ("use_qalora", True, "refuses QALoRA"),
        ("rank_pattern", {"q_proj": 0}, "rank_pattern is {'q_proj': 0}"),
        ("rank_pattern", ["q_proj"], "rank_pattern is ['q_proj']"),
        ("rank_pattern", {f"m{i}": i + 1 for i in range(300)}, "at most 256 different"),
        ("rank_pattern", {"q_proj": True}, "rank_pattern is {'q_proj': True}"),
        ("rank_pattern", {"q_proj": 8.5}, "rank_pattern is {'q_proj': 8.5}"),
        ("rank_pattern", {"q_proj": 65537}, "rank_pattern is {'q_proj': 65537}"),
        ("alpha_pattern", {"q_proj": "x"}, "alpha_pattern is {'q_proj': 'x'}"),
        ("alpha_pattern", ["q_proj"], "alpha_pattern is ['q_proj']"),
    ],
)
def test_a_setting_that_cannot_be_served_is_a_problem(
    tmp_path: Path, field: str, value: object, expected: str
) -> None:
    """Each setting vLLM refuses, and each of a wrong type, is named with its value."""
    (problem,) = read(tmp_path, json.dumps({**SOUND, field: value}).encode()).problems
    assert expected in problem
    assert "way out: " in problem


@pytest.mark.parametrize("kind", [None, "lora", "LORA"])
def test_an_adapter_says_by_its_rank_that_it_is_one(tmp_path: Path, kind: str | None) -> None:
    """vLLM goes by r, lora_alpha and target_modules; with one of them missing, nobody knows."""
    fields: dict[str, object] = {**SOUND, "peft_type": kind}
    assert () == read(tmp_path, json.dumps(fields).encode()).problems
    if kind is None:
        del fields["peft_type"]
        assert () == read(tmp_path, json.dumps(fields).encode()).problems
        del fields["lora_alpha"]
        first, second = read(tmp_path, json.dumps(fields).encode()).problems
        assert first.startswith("peft_type is None, only 'LORA'")
        assert second.startswith("lora_alpha is None")


def test_numbers_written_with_a_point_may_be_whole(tmp_path: Path) -> None:
    """As exporters write them that go by way of floats; the engine is handed an int."""
    fields = {**SOUND, "r": 8.0, "lora_alpha": 16.0, "rank_pattern": {"q_proj": 4.0}}
    raw = json.dumps(fields).encode()
    config = read(tmp_path, raw)
    assert (8, {"q_proj": 4}, ()) == (config.r, config.rank_pattern, config.problems)
    del fields["rank_pattern"]
    assert b'"r": 8,' in without_expressions(json.dumps(fields).encode(), [])


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "EVA", "orthogonal", "lora_ga"])
def test_starts_that_leave_the_base_model_alone_are_served(tmp_path: Path, init: object) -> None:
    """init_lora_weights matters only where it changed the base model."""
    raw = json.dumps({**SOUND, "init_lora_weights": init}).encode()
    assert () == read(tmp_path, raw).problems


@pytest.mark.parametrize(
    ("targets", "expected"), [("all-linear", ("all-linear",)), (None, ()), ([], ())]
)
def test_target_modules_may_be_one_expression_or_none(
    tmp_path: Path, targets: object, expected: tuple[str, ...]
) -> None:
    """A string is one target; null and an empty list are none, as vLLM reads them."""
    config = read(tmp_path, json.dumps({**SOUND, "target_modules": targets}).encode())
    assert (expected, ()) == (config.target_modules, config.problems)


def test_a_number_beyond_all_floats_is_no_alpha(tmp_path: Path) -> None:
    """JSON's 1e999 is read as infinity, which scales weights to nothing that can be served."""
    raw = json.dumps(SOUND).encode().replace(b": 8,", b": 1e999,")
    (problem,) = read(tmp_path, raw).problems
    assert problem.startswith("lora_alpha is inf")


@pytest.mark.parametrize("name", [3, ["a"], "half a pair: \ud800", "a\nb", "\u202ekcab"])
def test_a_base_models_name_that_cannot_be_printed_is_none(tmp_path: Path, name: object) -> None:
    """It only informs, so an adapter is served without it."""
    raw = json.dumps({**SOUND, "base_model_name_or_path": name}).encode()
    config = read(tmp_path, raw)
    assert (None, ()) == (config.base_model, config.problems)

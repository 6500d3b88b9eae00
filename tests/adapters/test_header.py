"""Safetensors headers: the faults by name, and any bytes at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import (
    MAX_HEADER_BYTES,
    MAX_HEADER_MARKS,
    WEIGHTS_NAME,
    TensorEntry,
    parse_header,
    read_header_bytes,
)
from chameleon_lora.adapters.inspect import inspect_adapter
from chameleon_lora.adapters.untrusted import open_regular
from chameleon_lora.errors import AdapterInvalidError

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
SOUND: dict[str, Any] = {
    "x.q.lora_A.weight": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
    "x.q.lora_B.weight": {"dtype": "F16", "shape": [5, 2], "data_offsets": [12, 32]},
}
SOUND_BYTES = json.dumps(SOUND).encode()


def changed(**fields: object) -> bytes:
    """The sound header with fields of its second tensor changed."""
    second = {**SOUND["x.q.lora_B.weight"], **fields}
    return json.dumps({**SOUND, "x.q.lora_B.weight": second}).encode()


def test_a_sound_header_lists_its_tensors_in_file_order() -> None:
    """Name, dtype, shape and bytes are those of the JSON, sorted by their place in the file."""
    backwards = json.dumps(dict(reversed(SOUND.items()))).encode()
    assert (
        TensorEntry("x.q.lora_A.weight", "F16", (2, 3), 0, 12),
        TensorEntry("x.q.lora_B.weight", "F16", (5, 2), 12, 32),
    ) == parse_header(backwards, weights_bytes=32)


def test_metadata_and_padding_are_allowed() -> None:
    """__metadata__ of strings is no tensor, and blanks may follow the JSON."""
    raw = json.dumps({"__metadata__": {"format": "pt"}, **SOUND}).encode() + b"   "
    assert 2 == len(parse_header(raw, weights_bytes=32))
    spread = json.dumps({"__metadata__": {"a": "}" * 60_000}, **SOUND}, indent="\t").encode()
    assert 2 == len(parse_header(spread + b"\r\n", weights_bytes=32))
    assert () == parse_header(b"{ }", weights_bytes=0)


@pytest.mark.parametrize(
    ("raw", "weights_bytes", "expected"),
    [
        (b" " + SOUND_BYTES, 32, "does not start with '{'"),
        (SOUND_BYTES[:-1], 32, "is not JSON"),
        (b'{"a": {}, "a": {}}', 0, "a key is given twice"),
        (b'{"a": 3}', 0, "'a' is not described by an object"),
        (b'{"a": {"dtype": "F16"}}', 0, "has shape None"),
        (b'{"a\\n": {}}', 0, "512 printable characters"),
        (json.dumps({"a" * 600: {}}).encode(), 0, "512 printable characters"),
        (json.dumps({"a." * 40: {}}).encode(), 0, "in 32 parts"),
        (b'{"__metadata__": {"a": 1}}', 0, "__metadata__"),
        (b'{"__metadata__": []}', 0, "__metadata__"),
        (b'{"__metadata__": {"a": "' + b"x" * (64 << 10) + b'"}}', 0, "is not JSON"),
        (changed(dtype="x" * 1000), 32, "is not JSON"),
        (SOUND_BYTES + b"}", 32, "more behind its end"),
        (SOUND_BYTES[:-1] + b",}", 32, "no key at character"),
        (SOUND_BYTES[:-1] + b";", 32, "no '}' at character"),
        (b'{"a" {}}', 0, "no ':' at character 5"),
        (b'{"a": NaN}', 0, "NaN is no JSON number"),
        (b"{", 0, "no key at character 1"),
        (b'{"a": {"b": 1, "b": 1}}', 0, "a key is given twice"),
        (changed(dtype="F17"), 32, "unknown dtype 'F17'"),
        (changed(dtype=["F16"]), 32, "unknown dtype"),
        (changed(shape=[5, -2]), 32, "has shape [5, -2]"),
        (changed(shape=[5, 2.0]), 32, "has shape [5, 2.0]"),
        (changed(shape=[5, True]), 32, "has shape [5, True]"),
        (changed(shape=[1] * 9), 32, "allowed are 8 whole numbers"),
        (changed(shape=[1 << 63, 2]), 32, "has shape"),
        (changed(shape=[5, 3]), 32, "has 20 bytes, its shape needs 30"),
        (changed(data_offsets=[12]), 32, "has offsets [12]"),
        (changed(data_offsets=[32, 12]), 32, "has -20 bytes"),
        (changed(data_offsets=[13, 33]), 33, "starts at byte 13"),
        (changed(data_offsets=[11, 31]), 31, "the one before ends at 12"),
        (SOUND_BYTES, 31, "truncated: 31 of 32 bytes"),
        (SOUND_BYTES, 33, "1 bytes follow the last tensor"),
    ],
)
def test_a_malformed_header_is_invalid(raw: bytes, weights_bytes: int, expected: str) -> None:
    """Each fault is told with its tensor and its numbers."""
    with pytest.raises(AdapterInvalidError) as raised:
        parse_header(raw, weights_bytes)
    assert expected in str(raised.value)


@pytest.mark.parametrize("claimed", [MAX_HEADER_BYTES + 1, (1 << 64) - 1, 93])
def test_a_header_longer_than_its_limit_is_not_read(tmp_path: Path, claimed: int) -> None:
    """The claim is refused from the first eight bytes, against the cap and the file's size."""
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(claimed.to_bytes(8, "little") + b"{" * 92)
    with open_regular(path) as file, pytest.raises(AdapterInvalidError) as raised:
        read_header_bytes(file)
    assert f"claims {claimed} bytes, the limit for this file is 92" in str(raised.value)


def test_the_cap_holds_for_a_file_large_enough(tmp_path: Path) -> None:
    """A sparse file as long as its header claims is refused at the cap, nothing of it read."""
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    with path.open("ab") as grown:
        grown.truncate(2 * MAX_HEADER_BYTES)
    with open_regular(path) as file:
        with pytest.raises(AdapterInvalidError, match=f"limit for this file is {MAX_HEADER_BYTES}"):
            read_header_bytes(file)
        assert 8 == file.tell()


def test_a_header_of_too_many_parts_is_not_parsed() -> None:
    """Small lists cost many times their bytes in memory, so their number has a limit of its own."""
    raw = b'{"a":[' + b"[]," * (MAX_HEADER_MARKS // 2) + b"[]]}"
    with pytest.raises(AdapterInvalidError, match=f"the limit is {MAX_HEADER_MARKS}"):
        parse_header(raw, weights_bytes=0)


def inspect_bytes(folder: Path, content: bytes) -> tuple[str, ...]:
    """The problems of an adapter whose weights file holds `content`."""
    (folder / CONFIG_NAME).write_text(json.dumps(CONFIG))
    (folder / WEIGHTS_NAME).write_bytes(content)
    return inspect_adapter(folder).problems


def as_file(header: bytes, weights_bytes: int) -> bytes:
    """A file of that header and as many zero bytes."""
    return len(header).to_bytes(8, "little") + header + b"\0" * weights_bytes


def opens_in_safetensors(path: Path) -> bool:
    """Does the reference reader take the file?"""
    try:
        with safe_open(path, framework="np"):
            return True
    except SafetensorError:
        return False


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F16", "F32", "U8", "F4", "X"]) | JSON_VALUES,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(-1, 40), max_size=3) | JSON_VALUES,
    },
)


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_file_is_described_without_an_exception(tmp_path: Path, content: bytes) -> None:
    """Random bytes as the weights file give at least one problem, never an exception."""
    assert inspect_bytes(tmp_path, content)


@FUZZ
@given(header=st.dictionaries(st.text(max_size=30), ENTRIES | JSON_VALUES), size=st.integers(0, 64))
def test_any_json_header_is_described_without_an_exception(
    tmp_path: Path, header: dict[str, object], size: int
) -> None:
    """JSON of any shape as the header gives problems, never an exception."""
    assert inspect_bytes(tmp_path, as_file(json.dumps(header).encode(), size))


@FUZZ
@given(place=st.integers(0, 7 + len(SOUND_BYTES)), byte=st.integers(0, 255))
def test_what_we_accept_the_reference_reader_accepts(tmp_path: Path, place: int, byte: int) -> None:
    """One changed byte in a sound file: without a problem from us, safetensors opens it too."""
    content = bytearray(as_file(SOUND_BYTES, 32))
    content[place] = byte
    problems = inspect_bytes(tmp_path, bytes(content))
    assert problems or opens_in_safetensors(tmp_path / WEIGHTS_NAME)


@FUZZ
@given(raw=st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_configuration_is_described_without_an_exception(tmp_path: Path, raw: bytes) -> None:
    """Any bytes and any JSON as adapter_config.json give problems, never an exception."""
    (tmp_path / WEIGHTS_NAME).write_bytes(as_file(SOUND_BYTES, 32))
    (tmp_path / CONFIG_NAME).write_bytes(raw)
    assert inspect_adapter(tmp_path).problems


@FUZZ
@given(fields=st.dictionaries(st.sampled_from([*CONFIG, "rank_pattern", "bias"]), JSON_VALUES))
def test_any_setting_is_described_without_an_exception(
    tmp_path: Path, fields: dict[str, object]
) -> None:
    """Known fields with values of any type never raise, and the rank is never below 0."""
    (tmp_path / WEIGHTS_NAME).write_bytes(as_file(SOUND_BYTES, 32))
    (tmp_path / CONFIG_NAME).write_text(json.dumps({**CONFIG, **fields}))
    assert inspect_adapter(tmp_path).rank >= 0


def test_adapters_with_one_header_have_it_parsed_once() -> None:
    """Other weights' bytes are another question, and a fault is told each time."""
    first = parse_header(bytes(SOUND_BYTES), 32)
    assert first is parse_header(bytes(bytearray(SOUND_BYTES)), 32)
    for _ in range(2):
        with pytest.raises(AdapterInvalidError, match="truncated"):
            parse_header(SOUND_BYTES, 31)


def test_a_large_header_is_not_kept() -> None:
    """Whoever sends many of them takes no memory for good."""
    large = SOUND_BYTES + b" " * (128 << 10)
    first = parse_header(large, 32)
    assert first == parse_header(SOUND_BYTES, 32)
    assert first is not parse_header(large, 32)

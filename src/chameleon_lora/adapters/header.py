"""What a safetensors file holds, from its header alone: the weights are never read.

| bytes            | content                                                                  |
| [0, 8)           | header length N, little-endian                                           |
| [8, 8 + N)       | JSON: tensor name -> dtype, shape, data_offsets; maybe `__metadata__`     |
| [8 + N, the end) | the weights; the tensors' half-open offsets tile them without gap        |

Format: github.com/huggingface/safetensors, "Format".
"""

import functools
import math
import os
from dataclasses import dataclass
from typing import BinaryIO

from chameleon_lora.adapters.untrusted import object_fields, quoted, read_exactly
from chameleon_lora.errors import AdapterInvalidError

WEIGHTS_NAME = "adapter_model.safetensors"
MAX_HEADER_BYTES = 24 << 20  # all experts of today's largest models, two matrices each, take 21 MiB
MAX_HEADER_MARKS = 1_500_000  # about 180,000 tensors; each mark may cost 200 bytes of memory
MAX_METADATA_CHARS = 64 << 10
MAX_ENTRY_CHARS = 1 << 10
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 512
MAX_NAME_PARTS = 32

_MOST_KNOWN, _MOST_KNOWN_BYTES = 16, 128 << 10  # of headers; together 30 MiB at most
_METADATA = "__metadata__"
_FLOATS = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3", 1),
    "F8_E5M2": ("float8_e5m2", 1),
}
_OTHERS = {
    **dict.fromkeys(("I64", "U64", "C64"), 8),
    **dict.fromkeys(("I32", "U32"), 4),
    **dict.fromkeys(("I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
_ITEM_BYTES = {**{code: size for code, (_, size) in _FLOATS.items()}, **_OTHERS}
_DTYPE_NAMES = {code: name for code, (name, _) in _FLOATS.items()}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as the header lists it; its bytes are [begin, end) of the weights."""

    name: str
    dtype_code: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of this tensor in the file."""
        return self.end - self.begin

    @property
    def float_name(self) -> str | None:
        """ "bfloat16" and the like; None for a dtype that LoRA weights cannot have."""
        return _DTYPE_NAMES.get(self.dtype_code)


def read_header_bytes(file: BinaryIO) -> bytes:
    """The raw header, at most MAX_HEADER_BYTES; leaves the file at the weights.

    Raises:
        AdapterInvalidError: the file is shorter than its header, or the header above the cap.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    prefix = read_exactly(file, 8, WEIGHTS_NAME)
    if len(prefix) < 8:
        raise AdapterInvalidError(_broken(f"it has {file_bytes} bytes, the least is 8"))
    header_bytes = int.from_bytes(prefix, "little")
    limit = min(MAX_HEADER_BYTES, file_bytes - 8)
    if header_bytes > limit:
        raise AdapterInvalidError(
            _broken(f"its header claims {header_bytes} bytes, the limit for this file is {limit}")
        )
    raw = read_exactly(file, header_bytes, WEIGHTS_NAME)
    if len(raw) < header_bytes:
        raise AdapterInvalidError(
            _broken(f"only {len(raw)} of its header's {header_bytes} bytes can be read")
        )
    return raw


def parse_header(raw: bytes, weights_bytes: int) -> tuple[TensorEntry, ...]:
    """The tensors in the order of their bytes, which tile [0, weights_bytes).

    Adapters of one model, rank and layers have one header, so a small one is known from the last of them: parsing
    takes a millisecond from whoever else needs the interpreter.

    Raises:
        AdapterInvalidError: the header is malformed, or the file is truncated or too long.
    """
    parse = _parse_known if len(raw) <= _MOST_KNOWN_BYTES else _parse
    return parse(raw, weights_bytes)


def _parse(raw: bytes, weights_bytes: int) -> tuple[TensorEntry, ...]:
    if raw[:1] != b"{":
        raise AdapterInvalidError(_broken("its header does not start with '{'"))
    marks = sum(map(raw.count, (b",", b"[", b"{")))
    if marks > MAX_HEADER_MARKS:
        raise AdapterInvalidError(
            _broken(f"its header has {marks} commas and brackets, the limit is {MAX_HEADER_MARKS}")
        )
    fields: dict[str, object] = {}
    for name, value in object_fields(raw, f"the header of {WEIGHTS_NAME}", _most_chars):
        if name in fields:
            raise AdapterInvalidError(
                _broken(f"a key is given twice in its header: {quoted(name)}")
            )
        fields[name] = value
    _check_metadata(fields.pop(_METADATA, {}))
    entries = [_entry(name, value) for name, value in fields.items()]
    entries.sort(key=lambda entry: entry.begin << 64 | entry.end)  # one number sorts fast
    _check_tiling(entries, weights_bytes)
    return tuple(entries)


@functools.lru_cache(_MOST_KNOWN)
def _parse_known(raw: bytes, weights_bytes: int) -> tuple[TensorEntry, ...]:
    return _parse(raw, weights_bytes)


def _most_chars(name: str) -> int:
    return MAX_METADATA_CHARS if name == _METADATA else MAX_ENTRY_CHARS


def _entry(name: str, value: object) -> TensorEntry:
    if not _is_name(name):
        raise AdapterInvalidError(
            _broken(
                f"a tensor's name is {quoted(name)}; allowed are "
                f"{MAX_NAME_CHARS} printable characters in {MAX_NAME_PARTS} parts"
            )
        )
    if not isinstance(value, dict):
        raise AdapterInvalidError(_broken(f"tensor {quoted(name)} is not described by an object"))
    code, shape = value.get("dtype"), _sizes(value.get("shape"))
    offsets = _sizes(value.get("data_offsets"))
    if not isinstance(code, str) or code not in _ITEM_BYTES:
        raise AdapterInvalidError(
            _broken(f"tensor {quoted(name)} has the unknown dtype {quoted(code)}")
        )
    if shape is None or len(shape) > MAX_DIMENSIONS:
        raise AdapterInvalidError(
            _broken(
                f"tensor {quoted(name)} has shape {quoted(value.get('shape'))}; "
                f"allowed are {MAX_DIMENSIONS} whole numbers"
            )
        )
    if offsets is None or len(offsets) != 2:
        raise AdapterInvalidError(
            _broken(f"tensor {quoted(name)} has offsets {quoted(value.get('data_offsets'))}")
        )
    entry = TensorEntry(name, code, shape, begin=offsets[0], end=offsets[1])
    needed_bytes = math.prod(shape) * _ITEM_BYTES[code]
    if entry.nbytes != needed_bytes:
        raise AdapterInvalidError(
            _broken(
                f"tensor {quoted(name)} has {entry.nbytes} bytes, its shape needs {needed_bytes}"
            )
        )
    return entry


def _is_name(name: str) -> bool:
    is_short = len(name) <= MAX_NAME_CHARS and name.count(".") < MAX_NAME_PARTS
    return is_short and name.isprintable()


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    is_size = (type(size) is int and 0 <= size < 1 << 63 for size in value)
    return tuple(value) if all(is_size) else None


def _check_metadata(value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise AdapterInvalidError(_broken("its __metadata__ does not map names to strings"))


def _check_tiling(entries: list[TensorEntry], weights_bytes: int) -> None:
    expected = 0
    for entry in entries:
        if entry.begin != expected:
            raise AdapterInvalidError(
                _broken(
                    f"tensor {quoted(entry.name)} starts at byte {entry.begin} of the weights, "
                    f"the one before ends at {expected}"
                )
            )
        expected = entry.end
    if weights_bytes < expected:
        raise AdapterInvalidError(
            _broken(f"it is truncated: {weights_bytes} of {expected} bytes of weights are there")
        )
    if weights_bytes > expected:
        raise AdapterInvalidError(
            _broken(f"{weights_bytes - expected} bytes follow the last tensor")
        )


def _broken(reason: str) -> str:
    return f"{WEIGHTS_NAME} is broken: {reason}; way out: copy or save the file again"

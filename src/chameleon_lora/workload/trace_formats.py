"""The forms of traces: what a line, or a whole result of a client, says of each request.

- Azure: the "Azure LLM inference trace" of 2023 and of 2024 (Azure/AzurePublicDataset; TIMESTAMP,
  ContextTokens, GeneratedTokens), licence CC-BY 4.0; described in Patel et al., "Splitwise: Efficient
  Generative LLM Inference Using Phase Splitting", ISCA 2024, and Stojkovic et al., "DynamoLLM",
  HPCA 2025.
- Timed JSONL: the form of Mooncake's traces (kvcache-ai/Mooncake), which `vllm bench serve
  --dataset-name timed_trace` replays: `timestamp`, `input_length`, `output_length`, and `hash_ids`,
  which is not read. An `adapter` (text or a number) may stand beside them, as in traces drawn with
  alibaba/ServeGen whose clients stand for adapters.
- What `vllm bench serve --save-result --save-detailed` wrote.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from chameleon_lora.workload.reading import MalformedError, Reading, finite, parsed_object, tokens

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
TIMED = 'an object as {"timestamp": 27, "input_length": 374, "output_length": 44}'
VLLM_RESULT = "one result of `vllm bench serve --save-result --save-detailed`"
FORMS = f"the header {','.join(AZURE_COLUMNS)}, {TIMED}, or {VLLM_RESULT}"
_AZURE_ROW = "time,input tokens,output tokens, as 2023-11-16 18:15:46.6805900,374,44"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMED_FIELDS = ("timestamp", "input_length", "output_length")
_DETAIL, _SUMMARY = "input_lens", "total_input_tokens"


def is_azure_header(line: str) -> bool:
    """Whether `line` names the trace's columns, in its order."""
    return tuple(name.strip().strip('"') for name in line.split(",")) == AZURE_COLUMNS


def parse_azure(line: str) -> Reading:
    """The request of one line below the header, to the microsecond; a time without zone is UTC.

    Raises:
        MalformedError: the line does not hold a time and two numbers of tokens.
    """
    cells = line.split(",")
    if len(cells) != len(AZURE_COLUMNS):
        raise MalformedError(line, _AZURE_ROW)
    when, context, generated = cells
    return Reading(
        _microseconds(when),
        None,
        tokens(_whole(context), "ContextTokens"),
        tokens(_whole(generated), "GeneratedTokens"),
    )


def parse_timed(line: str, timestamp_s: float) -> Reading:
    """The request of one line; `timestamp_s` is the unit of its timestamp, in seconds.

    Raises:
        MalformedError: the line is no JSON object with a time and two numbers of tokens.
    """
    fields = parsed_object(line, TIMED)
    missing = [name for name in _TIMED_FIELDS if name not in fields]
    if missing:
        raise MalformedError(
            sorted(fields), f"{', '.join(_TIMED_FIELDS)} ({', '.join(missing)} missing)"
        )
    return Reading(
        finite(fields["timestamp"], "timestamp") * (timestamp_s * 1e6),
        _adapter(fields.get("adapter")),
        tokens(fields["input_length"], "input_length"),
        tokens(fields["output_length"], "output_length"),
    )


def is_vllm_result(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a result of vLLM's bench, detailed or not."""
    return _DETAIL in fields or _SUMMARY in fields


def vllm_result_readings(fields: Mapping[str, Any]) -> list[Reading]:
    """The requests that were answered, in order of their start; failed ones tell no length.

    A result holds no adapters. Without `start_times` request i arrives at i / request_rate, all at
    once where the rate is "inf": the gaps that were drawn are not saved.

    Raises:
        MalformedError: the result is not detailed, its lists differ in length, or one holds
            something else than numbers.
    """
    inputs, outputs = _column(fields, _DETAIL), _column(fields, "output_lens")
    errors = _column(fields, "errors") if "errors" in fields else [""] * len(inputs)
    times_s = _times_s(fields, len(inputs))
    lengths = {len(column) for column in (inputs, outputs, errors, times_s)}
    if len(lengths) > 1:
        raise MalformedError(sorted(lengths), "lists of one length: one entry a request")
    return sorted(
        (
            Reading(
                time_s * 1e6,
                None,
                tokens(inputs[index], f"input_lens[{index}]"),
                tokens(outputs[index], f"output_lens[{index}]"),
            )
            for index, time_s in enumerate(times_s)
            if not errors[index]
        ),
        key=lambda reading: reading.time_us,
    )


def _microseconds(text: str) -> int:
    """Since 1970. The 2023 trace has seven decimals; the last is dropped."""
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise MalformedError(
            text,
            "in TIMESTAMP a time as 2023-11-16 18:15:46.6805900 or "
            "2024-05-10 00:00:00.009930+00:00",
        ) from error
    since = (when if when.tzinfo else when.replace(tzinfo=UTC)) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def _whole(text: str) -> object:
    """A number, or the text itself, which is then refused by name."""
    try:
        return int(text)
    except ValueError:
        return text.strip()


def _adapter(value: object) -> str | None:
    """A number names an adapter as its digits do; null is the base model."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise MalformedError(value, "in adapter a name, a whole number, or null for the base model")
    return str(value)


def _column(fields: Mapping[str, Any], name: str) -> list[Any]:
    column = fields.get(name)
    if not isinstance(column, list):
        raise MalformedError(
            column, f"in {name} a list; way out: run vllm bench serve with --save-detailed"
        )
    return column


def _times_s(fields: Mapping[str, Any], count: int) -> list[float]:
    if "start_times" in fields:
        starts = _column(fields, "start_times")
        return [finite(start, f"start_times[{i}]") for i, start in enumerate(starts)]
    rate = fields.get("request_rate")
    rate_per_s = math.inf if rate == "inf" else finite(rate, "request_rate")
    if rate_per_s <= 0.0:
        raise MalformedError(rate, 'in request_rate a number above 0, or "inf"')
    return [index / rate_per_s for index in range(count)]

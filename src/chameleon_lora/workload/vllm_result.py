"""Which requests did `vllm bench serve --save-result --save-detailed` send?"""

import math
from collections.abc import Mapping
from typing import Any

from chameleon_lora.workload.reading import MalformedError, Reading, finite, tokens

EXPECTED = "one result of `vllm bench serve --save-result --save-detailed`"
_DETAIL = "input_lens"
_SUMMARY = "total_input_tokens"


def is_result(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a result of vLLM's bench, detailed or not."""
    return _DETAIL in fields or _SUMMARY in fields


def result_readings(fields: Mapping[str, Any]) -> list[Reading]:
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

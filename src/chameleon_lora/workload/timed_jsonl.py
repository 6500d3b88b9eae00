"""What does a line of a timed JSONL trace hold?

The form of Mooncake's traces (kvcache-ai/Mooncake), which `vllm bench serve --dataset-name
timed_trace` replays: `timestamp`, `input_length`, `output_length`, and `hash_ids`, which is not
read. An `adapter` (text or a number) may stand beside them, as in traces drawn with
alibaba/ServeGen whose clients stand for adapters.
"""

from chameleon_lora.workload.reading import (
    MalformedError,
    Reading,
    finite,
    parsed_object,
    tokens,
)

_FIELDS = ("timestamp", "input_length", "output_length")
EXPECTED = 'an object as {"timestamp": 27, "input_length": 374, "output_length": 44}'


def parse_timed(line: str, timestamp_s: float) -> Reading:
    """The request of one line; `timestamp_s` is the unit of its timestamp, in seconds.

    Raises:
        MalformedError: the line is no JSON object with a time and two numbers of tokens.
    """
    fields = parsed_object(line, EXPECTED)
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise MalformedError(sorted(fields), f"{', '.join(_FIELDS)} ({', '.join(missing)} missing)")
    return Reading(
        finite(fields["timestamp"], "timestamp") * (timestamp_s * 1e6),
        _adapter(fields.get("adapter")),
        tokens(fields["input_length"], "input_length"),
        tokens(fields["output_length"], "output_length"),
    )


def _adapter(value: object) -> str | None:
    """A number names an adapter as its digits do; null is the base model."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise MalformedError(value, "in adapter a name, a whole number, or null for the base model")
    return str(value)

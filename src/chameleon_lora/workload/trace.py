"""What was recorded: requests of a trace's file, whatever its form."""

import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.lengths import LengthPair
from chameleon_lora.workload.reading import MalformedError, Reading, in_line, parsed_object
from chameleon_lora.workload.trace_formats import (
    FORMS,
    is_azure_header,
    is_vllm_result,
    parse_azure,
    parse_timed,
    vllm_result_readings,
)

MILLISECOND_S = 0.001
MAX_TIMESTAMP_S = 3600.0
_GZIP_MAGIC = b"\x1f\x8b"

Lines = Iterator[tuple[int, str]]
"""Line numbers, from 1, with the text of the lines that are not blank."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One recorded request.

    Attributes:
        arrival_s: seconds since the trace's first request.
        adapter: None for the base model, or where the trace names none.
    """

    arrival_s: float
    adapter: str | None
    input_tokens: int
    output_tokens: int

    @property
    def lengths(self) -> LengthPair:
        """Input and output tokens."""
        return self.input_tokens, self.output_tokens


def read_trace(path: Path, *, timestamp_s: float = MILLISECOND_S) -> tuple[TraceRow, ...]:
    """The requests of a trace in order of arrival, the first at 0 s; gzip is unpacked.

    The form is told by the first line that is not blank: an Azure CSV by its header, a timed JSONL
    (Mooncake, vLLM's `timed_trace`, ServeGen with adapters) or a detailed result of vLLM's bench by
    their keys. A CSV or JSONL whose time goes back is refused; a result is put in order of start,
    as its client sends several requests at once.

    `timestamp_s` is the unit of a JSONL's `timestamp`, in seconds: Mooncake counts milliseconds.

    Raises:
        ConfigError: the file cannot be read, is of no such form, or a line holds no request; the
            message names the line, what is there and what was expected.
    """
    if not 0.0 < timestamp_s <= MAX_TIMESTAMP_S:
        raise ConfigError(
            f"a timestamp unit of {timestamp_s} s is outside 0..{MAX_TIMESTAMP_S:g}; "
            "way out: 0.001 for milliseconds, 1 for seconds"
        )
    try:
        with _lines(path) as lines:
            rows = tuple(_rows(path, lines, timestamp_s))
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"trace {str(path)!r} cannot be read: {reason}; "
            "way out: give a readable file, plain or gzipped"
        ) from error
    if not rows:
        raise ConfigError(f"trace {str(path)!r} holds 0 requests, the least is 1; it needs {FORMS}")
    return rows


def recorded_rate_per_s(rows: Sequence[TraceRow]) -> float | None:
    """Requests per second, one over the mean gap; None where no time passes between the rows."""
    span_s = rows[-1].arrival_s - rows[0].arrival_s
    return (len(rows) - 1) / span_s if span_s > 0.0 else None


@contextmanager
def _lines(path: Path) -> Iterator[Lines]:
    """The file's lines, decoded one by one so that a wrong byte is told with its line."""
    with path.open("rb") as raw:
        if raw.peek(2).startswith(_GZIP_MAGIC):
            with gzip.open(raw) as unpacked:
                yield _numbered(path, unpacked)
        else:
            yield _numbered(path, raw)


def _numbered(path: Path, lines: Iterable[bytes]) -> Lines:
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise in_line(path, number, MalformedError(line, "text in UTF-8")) from error
        if text:
            yield number, text


def _rows(path: Path, lines: Lines, timestamp_s: float) -> Iterator[TraceRow]:
    first = next(lines, None)
    if first is None:
        return iter(())
    number, text = first
    if is_azure_header(text):
        return _in_order(path, lines, parse_azure)
    if not text.startswith("{"):
        raise in_line(path, number, MalformedError(text, FORMS))
    try:
        fields = parsed_object(text, FORMS)
    except MalformedError:
        return _of_result(path, chain([first], lines))
    if is_vllm_result(fields):
        for below, more in lines:
            raise in_line(
                path, below, MalformedError(more, "nothing below a result of vLLM's bench")
            )
        return _of_result(path, iter([first]))
    if "timestamp" not in fields:
        raise in_line(path, number, MalformedError(sorted(fields), FORMS))
    return _in_order(path, chain([first], lines), lambda line: parse_timed(line, timestamp_s))


def _in_order(path: Path, lines: Lines, parse: Callable[[str], Reading]) -> Iterator[TraceRow]:
    first_us = last_us = None
    for number, text in lines:
        try:
            reading = parse(text)
            if first_us is None or last_us is None:
                first_us = last_us = reading.time_us
            if reading.time_us < last_us:
                raise MalformedError(
                    text,
                    f"a time not before the line above ({(last_us - reading.time_us) / 1e6:.6g} s "
                    "later); way out: sort the file by time",
                )
        except MalformedError as error:
            raise in_line(path, number, error) from error
        last_us = reading.time_us
        yield _row(reading, first_us)


def _of_result(path: Path, lines: Lines) -> Iterator[TraceRow]:
    """A result of vLLM's bench: one line as vLLM writes it, or laid out over several."""
    numbered = list(lines)
    try:
        fields = parsed_object("\n".join(text for _, text in numbered), FORMS)
        readings = vllm_result_readings(fields)
    except MalformedError as error:
        raise in_line(path, numbered[0][0], error) from error
    return (_row(reading, readings[0].time_us) for reading in readings)


def _row(reading: Reading, first_us: float) -> TraceRow:
    return TraceRow(
        (reading.time_us - first_us) / 1e6,
        reading.adapter,
        reading.input_tokens,
        reading.output_tokens,
    )

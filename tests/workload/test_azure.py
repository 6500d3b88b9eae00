"""The Azure traces of 2023 and 2024, and the table made from the first."""

import csv
import gzip
import lzma
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthPair
from chameleon_lora.workload.trace import TraceRow, read_trace, recorded_rate_per_s

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
FIRST = "2023-11-16 18:15:46.6805900,374,44\n"


def read(folder: Path, text: str) -> tuple[TraceRow, ...]:
    """What is read from a file of this text."""
    path = folder / "trace.csv"
    path.write_text(text, "utf8")
    return read_trace(path)


def test_times_of_2023_count_from_the_first_row(tmp_path: Path) -> None:
    """Seven decimals without a zone; the seventh is dropped."""
    rows = read(tmp_path, f"{HEADER}{FIRST}2023-11-16 18:15:50.9951699,396,109\n")
    assert (TraceRow(0.0, None, 374, 44), TraceRow(4.314579, None, 396, 109)) == rows


def test_times_of_2024_carry_a_zone(tmp_path: Path) -> None:
    """Midnight and 1.5 s after it, in two zones."""
    text = f"{HEADER}2024-05-10 00:00:00.009930+00:00,9,1\n2024-05-10 01:00:01.509930+01:00,8,2\n"
    assert (TraceRow(0.0, None, 9, 1), TraceRow(1.5, None, 8, 2)) == read(tmp_path, text)


def test_a_gzipped_trace_with_crlf_is_read(tmp_path: Path) -> None:
    """What is packed is told by content, not by name; line ends and blank lines do not matter."""
    path = tmp_path / "trace"
    path.write_bytes(gzip.compress(f"\ufeff{HEADER}{FIRST}\n".replace("\n", "\r\n").encode()))
    assert (TraceRow(0.0, None, 374, 44),) == read_trace(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2023-11-16 18:15:47,12", r"line 3: '2023-11-16 18:15:47,12'; expected time,input tokens"),
        ("yesterday,1,1", "line 3: 'yesterday'; expected in TIMESTAMP a time as 2023-11-16"),
        ("2023-11-16 18:15:47,many,1", "line 3: 'many'; expected in ContextTokens a whole number"),
        ("2023-11-16 18:15:47,1,-2", "line 3: -2; expected in GeneratedTokens a whole number"),
        ("2023-11-16 18:15:47,1,9999999999", "expected in GeneratedTokens .* from 0 to 1,000,000"),
        ("2023-11-16 18:15:45,1,1", r"time not before the line above \(1\.68059 s later\)"),
    ],
)
def test_a_malformed_row_is_told_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    """File, line, what is there and what was expected."""
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, f"{HEADER}{FIRST}{line}\n")
    assert "trace.csv', line 3" in str(caught.value)


def representative_pairs(lengths: Sequence[LengthPair], bins: int) -> tuple[LengthPair, ...]:
    """`bins` * `bins` equally likely pairs that stand for the joint distribution of `lengths`.

    The requests are cut into `bins` equal groups by input, each of these into `bins` equal groups
    by output; a pair is its group's mean, rounded. So the means of both lengths and the dependence
    of output on input are kept, while the outermost tails are drawn in to their group's mean.
    Needs at least bins * bins lengths.
    """
    pairs: list[LengthPair] = []
    for column in _equal_groups(sorted(lengths), bins):
        for cell in _equal_groups(sorted(column, key=lambda pair: (pair[1], pair[0])), bins):
            inputs, outputs = zip(*cell, strict=True)
            pairs.append((round(sum(inputs) / len(cell)), round(sum(outputs) / len(cell))))
    return tuple(pairs)


def _equal_groups(ordered: Sequence[LengthPair], groups: int) -> Iterator[Sequence[LengthPair]]:
    """Consecutive runs of `ordered` whose sizes differ by at most one."""
    cuts = [len(ordered) * index // groups for index in range(groups + 1)]
    for start, end in pairwise(cuts):
        yield ordered[start:end]


def test_groups_of_one_stand_for_themselves() -> None:
    """Four requests in 2 x 2 groups: halves by input, each ordered by output."""
    rows = [(40, 3), (2, 10), (30, 4), (1, 20)]
    assert ((2, 10), (1, 20), (40, 3), (30, 4)) == representative_pairs(rows, 2)


def test_a_pair_is_its_groups_mean() -> None:
    """One group of three requests gives the mean of both lengths."""
    assert ((3, 20),) == representative_pairs([(1, 30), (2, 10), (6, 20)], 1)


@pytest.fixture(scope="module")
def lengths(data_dir: Path) -> list[tuple[int, int]]:
    """Input and output tokens of the whole trace of 2023."""
    with lzma.open(data_dir / "azure2023_conv_lengths.csv.xz", "rt", encoding="utf8") as lines:
        found = [
            (int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(lines)
        ]
    assert 19_366 == len(found)
    return found


def test_the_table_is_what_the_trace_gives(lengths: list[tuple[int, int]]) -> None:
    """The committed 64 pairs are the trace's own, made again."""
    assert AZURE_CONVERSATION == representative_pairs(lengths, 8)


def test_the_table_keeps_the_means(lengths: list[tuple[int, int]]) -> None:
    """Means of input and output tokens agree with the trace's to half a token."""
    for column in (0, 1):
        of_trace = sum(row[column] for row in lengths) / len(lengths)
        of_table = sum(pair[column] for pair in AZURE_CONVERSATION) / len(AZURE_CONVERSATION)
        assert pytest.approx(of_trace, abs=0.5) == of_table


def test_the_recorded_rate_is_that_of_the_times(data_dir: Path) -> None:
    """The first 1,000 requests come in 216 s: 4.62 a second."""
    rate = recorded_rate_per_s(read_trace(data_dir / "azure2023_conv_first.csv.gz"))
    assert rate is not None
    assert pytest.approx(4.62, abs=0.01) == rate

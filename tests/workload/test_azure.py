"""The Azure trace and the table made from it."""

import gzip
from pathlib import Path

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.azure import read_azure_lengths, representative_pairs
from chameleon_lora.workload.lengths import AZURE_CONVERSATION

SHARED_TRACE = Path(__file__).parents[2].parent / "shared/data/traces/azure2023_conv.csv.gz"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_groups_of_one_stand_for_themselves() -> None:
    """Four requests in 2 x 2 groups: halves by input, each ordered by output."""
    rows = [(40, 3), (2, 10), (30, 4), (1, 20)]
    assert representative_pairs(rows, 2) == ((2, 10), (1, 20), (40, 3), (30, 4))


def test_a_pair_is_its_groups_mean() -> None:
    """One group of three requests gives the mean of both lengths."""
    assert representative_pairs([(1, 30), (2, 10), (6, 20)], 1) == ((3, 20),)


def test_a_gzipped_trace_is_read_in_order(tmp_path: Path) -> None:
    """Two rows give two pairs of input and output tokens."""
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}t1,374,44\nt2,396,109\n".encode()))
    assert read_azure_lengths(path) == ((374, 44), (396, 109))


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file without the trace's columns is an error that names its own."""
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", "utf8")
    with pytest.raises(ConfigError, match=r"has the columns \['a', 'b'\]"):
        read_azure_lengths(path)


@pytest.mark.skipif(not SHARED_TRACE.exists(), reason="the Azure trace is not on this machine")
def test_the_table_is_what_the_trace_gives() -> None:
    """The committed 64 pairs are the trace's own, made again."""
    assert representative_pairs(read_azure_lengths(SHARED_TRACE), 8) == AZURE_CONVERSATION


@pytest.mark.skipif(not SHARED_TRACE.exists(), reason="the Azure trace is not on this machine")
def test_the_table_keeps_the_means() -> None:
    """Means of input and output tokens agree with the trace's to half a token."""
    rows = read_azure_lengths(SHARED_TRACE)
    for column in (0, 1):
        of_trace = sum(row[column] for row in rows) / len(rows)
        of_table = sum(pair[column] for pair in AZURE_CONVERSATION) / len(AZURE_CONVERSATION)
        assert of_table == pytest.approx(of_trace, abs=0.5)

"""Reads the Azure LLM inference trace and reduces its lengths to a small table.

Source: Azure/AzurePublicDataset, "Azure LLM inference trace 2023", conversation part
(AzureLLMInferenceTrace_conv.csv), licence CC-BY 4.0; described in Patel et al., "Splitwise:
Efficient Generative LLM Inference Using Phase Splitting", ISCA 2024.
"""

import csv
import gzip
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from chameleon_lora.errors import ConfigError

LengthPair = tuple[int, int]
"""Input and output tokens of one request."""


def read_azure_lengths(path: Path) -> tuple[LengthPair, ...]:
    """The lengths of each request of the trace, in the file's order; `.gz` is unpacked.

    Raises:
        ConfigError: the file lacks the trace's columns.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf8", newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"ContextTokens", "GeneratedTokens"} <= set(rows.fieldnames or ()):
            raise ConfigError(
                f"{path} has the columns {rows.fieldnames}; the Azure trace of 2023 has "
                "TIMESTAMP, ContextTokens, GeneratedTokens"
            )
        return tuple((int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows)


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

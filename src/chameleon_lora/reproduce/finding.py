"""What one row of the paper's evaluation came to here."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from chameleon_lora.report.plot import Plot
from chameleon_lora.report.table import Table


class Verdict(Enum):
    """How our figure stands to the paper's claim."""

    HOLDS = "holds"  # as large as claimed, or larger
    PARTLY = "partly"  # in the claimed direction, but smaller
    FAILS = "fails"  # no such effect here, or the opposite


@dataclass(frozen=True, slots=True)
class Finding:
    """What a row came to.

    Attributes:
        ours: our figure in the paper's terms.
        note: why it differs, where it does; else empty.
    """

    ours: str
    verdict: Verdict
    note: str = ""
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each simulated run is, and how many seeds are pooled.

    Attributes:
        duration_s: of simulated traffic, the warm-up included.
        seeds: each gives another draw of the same workload.
    """

    duration_s: float
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One row of the paper's evaluation.

    Attributes:
        key: its name on the command line.
        claim: what is compared, in a few words.
        paper: the figure the paper gives.
        measure: runs what the row needs; the same effort gives the same finding.
    """

    key: str
    claim: str
    paper: str
    measure: Callable[[Effort], Finding]

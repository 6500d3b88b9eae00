"""Every row of the paper's evaluation, in its order, and two of our own; and how rows are run."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future

from chameleon_lora.errors import ConfigError
from chameleon_lora.reproduce import against_slora, beyond, caching, machines, scheduling
from chameleon_lora.reproduce.finding import Effort, Finding, PaperRow
from chameleon_lora.reproduce.report import RowResult

Measure = Callable[[str, Effort], Finding]
_logger = logging.getLogger(__name__)

ROWS: tuple[PaperRow, ...] = (
    PaperRow("p99-ttft", "P99 TTFT against S-LoRA at 6 / 8 / 9 RPS", "-14.7 / -24.6 / -80.7 %", against_slora.p99_ttft),
    PaperRow("p50-ttft", "P50 TTFT against S-LoRA at 6 / 8 / 9 RPS", "-13.9 / -20.9 / -48.1 %", against_slora.p50_ttft),
    PaperRow("throughput", "load at SLO (P99 TTFT of 5 s)", "12.9 vs 8.6 RPS: 1.5x (cache alone 1.2x, scheduler alone 1.05x)", against_slora.throughput),
    PaperRow("critical-path", "adapter loads that requests wait for", "75 % hits; misses at most 6 ms; S-LoRA up to 30 ms", caching.critical_path),
    PaperRow("queueing", "share of a request's time spent queued, by size", "below 8 % for all; FIFO 28.6 % for small", scheduling.queueing),
    PaperRow("tbt", "P99 time between tokens", "at or below S-LoRA's, under 150 ms", scheduling.between_tokens),
    PaperRow("eviction", "P99 TTFT at 8 RPS by LRU / FairShare / Chameleon", "-18 / -22 / -26 %", caching.eviction),
    PaperRow("prefetch", "P99 TTFT with predictive prefetch", "a further -8.8 %", caching.prefetch),
    PaperRow("adapters", "adapters for which the SLO is held at 9.5 RPS", "100 (ranks alike), 150 (power law); S-LoRA 10", caching.adapter_counts),
    PaperRow("traces", "WildChat and LMSYS lengths at 9.5 RPS", "SLO held, about 4x lower P99", machines.other_traces),
    PaperRow("lanes", "P99 TTFT of dynamic against static lanes, high load", "-10 %", scheduling.lanes),
    PaperRow("accuracy", "accuracy of foretold output lengths", "80 % like 100 %; 60 % hurts", scheduling.accuracy),
    PaperRow("models", "throughput of Llama 7B / 13B / 30B on A100-80G", "1.86 / 1.41 / 1.67x; P99 -60 %", machines.models),
    PaperRow("memory", "throughput with 24 / 48 / 80 GB", "1.4 / 1.6 / 1.9x", machines.memories),
    PaperRow("tp", "TP1 / 2 / 4", "gain grows; TP4 P99 -95.8 % at high load", machines.tensor_parallel),
    PaperRow("stock-vllm", "against a model of stock vLLM", "not in the paper", beyond.stock_vllm),
    PaperRow("own-policy", "our policy against the paper's", "not in the paper", beyond.own_policy),
)  # fmt: skip


def choose_rows(rows: Sequence[PaperRow], keys: Sequence[str]) -> tuple[PaperRow, ...]:
    """The rows named, in the order of `rows`; all of them if none is named.

    Raises:
        ConfigError: there is no row of a name.
    """
    known = [row.key for row in rows]
    for key in keys:
        if key not in known:
            raise ConfigError(f"there is no row {key!r}; rows: {', '.join(known)}")
    return tuple(row for row in rows if not keys or row.key in keys)


def measure_row(key: str, effort: Effort) -> Finding:
    """The finding of the paper's row of that name; worker processes are sent names, not functions."""
    (row,) = choose_rows(ROWS, [key])
    return row.measure(effort)


def run_rows(
    rows: Sequence[PaperRow], effort: Effort, executor: Executor, measure: Measure = measure_row
) -> Iterator[RowResult]:
    """Each row's result, in the order of `rows`, as soon as it and those before it are there.

    A row that ends with an error does not keep the others from running.
    """
    futures = [executor.submit(measure, row.key, effort) for row in rows]
    for row, future in zip(rows, futures, strict=True):
        yield _result(row, future)


def _result(row: PaperRow, future: Future[Finding]) -> RowResult:
    error = future.exception()
    if error is None:
        return RowResult(row, future.result())
    _logger.error("row %s ended with an error", row.key, exc_info=error)
    return RowResult(row, None, f"{type(error).__name__}: {error}")

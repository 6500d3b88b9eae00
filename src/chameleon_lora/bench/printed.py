"""A run's result as text: the block that `vllm bench serve` prints, then what it does not have."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from chameleon_lora.metrics.errors import ErrorCount

WIDTH = 50
SLOWEST = 5
_LINE, _MISSING = "{:<40} {:<10}", "-"
_TOTALS = (
    ("Benchmark duration (s):", "duration", ".2f"),
    ("Total input tokens:", "total_input_tokens", "d"),
    ("Total generated tokens:", "total_output_tokens", "d"),
    ("Request throughput (req/s):", "request_throughput", ".2f"),
    ("Request goodput (req/s):", "request_goodput", ".2f"),
    ("Output token throughput (tok/s):", "output_throughput", ".2f"),
    ("Peak output token throughput (tok/s):", "max_output_tokens_per_s", ".2f"),
    ("Peak concurrent requests:", "max_concurrent_requests", ".2f"),
    ("Total token throughput (tok/s):", "total_token_throughput", ".2f"),
)
_TIMES = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
)
_WAYS_OUT = (
    ("vocab", "--token-ids LOW:HIGH with HIGH at most the model's vocabulary"),
    ("context length", "--length-factor F, --max-input-tokens N or --max-output-tokens N"),
    ("max_model_len", "--length-factor F, --max-input-tokens N or --max-output-tokens N"),
    ("http 401", "--api-key KEY, or OPENAI_API_KEY in the environment"),
    ("http 404", "names the server lists under /v1/models, or another --endpoint"),
    ("ignore_eos", "--no-ignore-eos"),
    ("no whole answer", "a lower --request-rate, or shorter answers"),
)


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """Labels, columns and order as `vllm bench serve` prints them, from a result's keys."""
    lines = [
        f"{' Serving Benchmark Result ':=^{WIDTH}}",
        _line("Successful requests:", result["completed"]),
        _line("Failed requests:", result["failed"]),
        _line("Request rate configured (RPS):", f"{result['request_rate']:.2f}"),
    ]
    lines += [
        _line(label, f"{result[key]:{form}}")
        for label, key, form in _TOTALS
        if result[key] is not None
    ]
    for key, short, title in _TIMES:
        lines.append(_title(title))
        lines += [
            _line(f"{word} {short} (ms):", f"{result[f'{kind}_{key}_ms']:.2f}")
            for word, kind in (("Mean", "mean"), ("Median", "median"), ("P99", "p99"))
        ]
    return [*lines, "=" * WIDTH]


def beside_lines(result: Mapping[str, Any], errors: Sequence[ErrorCount]) -> list[str]:
    """What vLLM's block lacks, from a result's keys; `errors` says why requests failed."""
    slowest = sorted(
        result["per_adapter"].items(),
        key=lambda item: (-(item[1]["p99_ttft_ms"] or 0.0), item[0]),
    )
    return [
        *_objective_lines(result["slo"]),
        *_group_lines(f"Slowest {SLOWEST} by P99 TTFT", slowest[:SLOWEST]),
        *_group_lines("By LoRA rank", result["per_rank"].items()),
        *_group_lines("By where the adapter was", result["per_residency"].items()),
        *_fairness_lines(result["fairness"]),
        *_lateness_lines(result["lateness"]),
        *_error_lines(errors),
    ]


def sweep_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a rate: what came out of a sweep; times in ms."""
    columns = ("req/s", "done/s", "failed", "tok/s", "TTFT P50", "TTFT P99", "ITL P99")
    lines = [_title("Sweep"), _cells(*columns, "in SLO", "goodput")]
    for result in results:
        share, goodput = result["slo"]["share"], result["request_goodput"]
        lines.append(
            _cells(
                f"{result['request_rate']:g}",
                f"{result['request_throughput']:.2f}",
                str(result["failed"]),
                f"{result['output_throughput']:.1f}",
                f"{result['median_ttft_ms']:.1f}",
                f"{result['p99_ttft_ms']:.1f}",
                f"{result['p99_itl_ms']:.1f}",
                _MISSING if share is None else f"{share:.1%}",
                _MISSING if goodput is None else f"{goodput:.2f}",
            )
            + (" (fell behind)" if has_fallen_behind(result) else "")
        )
    return lines


def has_fallen_behind(result: Mapping[str, Any]) -> bool:
    """Was the load generator itself too slow for this run's figures to be trusted?"""
    return bool(result["lateness"] and result["lateness"]["has_fallen_behind"])


def printable(text: str) -> str:
    """`text` without anything that could steer a terminal: it came from a server."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _objective_lines(slo: Mapping[str, Any]) -> list[str]:
    if not slo["objectives_ms"]:
        return []
    limits = [f"{name} {limit:g}" for name, limit in slo["objectives_ms"].items()]
    share = _MISSING if slo["share"] is None else f"{100.0 * slo['share']:.2f}"
    return [
        _title("Service level objectives"),
        _line("Objectives (ms):", ", ".join(limits)),
        _line("Requests that met all (%):", share),
    ]


def _group_lines(title: str, groups: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    rows = list(groups)
    if not rows:
        return []
    width = max(24, *(len(printable(name)) for name, _ in rows))
    head = f"{'':<{width}}{_cells('requests', 'failed', 'TTFT P50', 'TTFT P99', 'ITL P99')}"
    return [
        _title(title),
        head,
        *(
            f"{printable(name):<{width}}"
            + _cells(
                str(group["requests"]),
                str(group["failed"]),
                *(_ms(group[key]) for key in ("median_ttft_ms", "p99_ttft_ms", "p99_itl_ms")),
            )
            for name, group in rows
        ),
    ]


def _fairness_lines(fair: Mapping[str, Any] | None) -> list[str]:
    if fair is None:
        return []
    return [
        _title("Fairness among adapters"),
        _line("Adapters compared:", fair["adapters"]),
        _line("Jain's index of mean TTFT:", f"{fair['jain_ttft']:.3f}"),
        _line("Worst P99 TTFT over the median one:", f"{fair['worst_over_median']:.2f}"),
        _line("Worst adapter:", printable(fair["worst"])),
    ]


def _lateness_lines(late: Mapping[str, Any] | None) -> list[str]:
    if late is None:
        return []
    lines = [
        _title("Lateness of this client"),
        _line("P99 (ms):", f"{late['p99_s'] * 1e3:.2f}"),
        _line("Max (ms):", f"{late['max_s'] * 1e3:.2f}"),
    ]
    if late["has_fallen_behind"]:
        lines.append(
            f"THE RUN FELL BEHIND: P99 is above {late['limit_s'] * 1e3:g} ms, so these times are "
            "the client's as much as the server's. Lower the rate, or give the client a free core."
        )
    return lines


def _error_lines(errors: Sequence[ErrorCount]) -> list[str]:
    if not errors:
        return []
    lines = [_title("Errors by cause")]
    for error in errors:
        lines.append(_line(f"{error.cause}:", error.count))
        lines.append(f"  such as: {printable(error.example)}")
        if error.adapters:
            shown = ", ".join(map(printable, error.adapters[:SLOWEST]))
            more = len(error.adapters) - SLOWEST
            lines.append(f"  adapters: {shown}" + (f" and {more} more" if more > 0 else ""))
        way_out = _way_out(error.example)
        if way_out is not None:
            lines.append(f"  way out: {way_out}")
    return lines


def _way_out(example: str) -> str | None:
    lowered = example.lower()
    return next((way for sign, way in _WAYS_OUT if sign in lowered), None)


def _line(label: str, value: object) -> str:
    return _LINE.format(label, value)


def _title(text: str) -> str:
    return f"{text:-^{WIDTH}}"


def _cells(*cells: str) -> str:
    return "".join(f"{cell:>10}" for cell in cells)


def _ms(value_ms: float | None) -> str:
    return _MISSING if value_ms is None else f"{value_ms:.1f}"

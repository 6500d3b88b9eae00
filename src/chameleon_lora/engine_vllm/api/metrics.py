"""Chameleon's families on vLLM's own metrics page.

vLLM builds the page in two ways: from the process's registry, or with several API servers from the
files of all of them, by a registry made anew for each page. So the families are not registered but
written after vLLM's, which stay byte for byte as they are. The engine is asked at each page.

One of vLLM's own is kept from growing for ever: its gauge of running and waiting adapters has a series for
each combination of names that a step saw, and loses none. With many adapters nearly every step adds one,
to the API server's memory and to its page. Only the newest counts.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from chameleon_lora.engine_vllm.api.last_trouble import LastTrouble
from chameleon_lora.engine_vllm.config import is_ours
from chameleon_lora.engine_vllm.messages import CPU, GPU, HistogramCounts
from chameleon_lora.policy.plan import Held

PATH = "/metrics"
MOST_SERIES = 64
SEEN = "chameleon_steps_seen"
_SEVERAL_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"  # then the series are in files that only grow
LIMIT_S = 1.0  # scrapers wait 10 s by default, and prefer an older number to none
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
_logger = logging.getLogger(f"vllm.{__name__}")


class MetricsPage:
    """ASGI middleware of one API server. Never makes a page fail that vLLM has answered."""

    def __init__(self, app: Any, ask: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._app = app
        self._ask = ask
        self._last: dict[str, Any] | None = None
        self._trouble = LastTrouble()

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        """The app's own answer; after a metrics page, Chameleon's families."""
        if not _is_page(scope):
            await self._app(scope, receive, send)
            return
        chunks: list[bytes] = []
        start: Message = {}

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            chunks.append(message.get("body", b""))
            if message.get("more_body"):
                return
            page = b"".join(chunks)
            if _is_text(start):
                page += await self._families(page)
                start["headers"] = _with_length(start["headers"], len(page))
            await send(start)
            await send({"type": "http.response.body", "body": page})

        await self._app(scope, receive, hold)

    async def _families(self, page: bytes) -> bytes:
        try:
            self._last = await asyncio.wait_for(self._ask(), LIMIT_S)
        except Exception as error:  # noqa: BLE001  # a page with older numbers is better than none
            _logger.debug("The engine gave no numbers for the metrics page: %r", error)
        try:
            if self._last is None:
                return b""
            return await asyncio.to_thread(render, self._last, page)  # as vLLM writes its own
        except Exception as error:
            if self._trouble.note(
                type(error)
            ):  # anybody may ask for the page, as often as they like
                _logger.exception("Chameleon's metrics are left out of the page")
            return b""


def render(snapshot: dict[str, Any], page: bytes = b"") -> bytes:
    """The families of a snapshot (`state.metrics_of`, and `refused`) in Prometheus's text form.

    Those that the page has already, of a vLLM that took up the same name, are left out.
    """
    wanted = [family for family in families(snapshot) if not _has(page, family.name)]
    return generate_latest(_Families(wanted))


def families(snapshot: dict[str, Any]) -> list[Metric]:
    """All of Chameleon's families for a snapshot, in the order of docs/observability.md."""
    return [
        *_adapters(snapshot),
        *_activity(snapshot["counts"]),
        *_borrowed(snapshot),
        *_lanes(snapshot["lanes"]),
        GaugeMetricFamily(
            "chameleon:adapters_refused",
            "Adapters that are not served; GET /chameleon/state says why.",
            value=snapshot["refused"],
        ),
    ]


class _Families:
    """A collector, as prometheus_client's writer asks for."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """All families, at each call the same."""
        return self._metrics


def _adapters(snapshot: dict[str, Any]) -> list[Metric]:
    """Names of families are those proposed to vLLM (its pull request 54830)."""
    adapters = snapshot["adapters"]
    loaded = GaugeMetricFamily(
        "vllm:lora_adapter_loaded",
        "1 for each LoRA adapter in memory: gpu is a slot or KV-cache blocks, cpu host memory only.",
        labels=["adapter_name", "level", "pinned", "rank"],
    )
    for adapter in adapters:
        pinned = "true" if adapter["is_pinned"] else "false"
        loaded.add_metric([adapter["name"], adapter["level"], pinned, str(adapter["rank"])], 1)
    levels = [adapter["level"] for adapter in adapters]
    return [
        loaded,
        GaugeMetricFamily(
            "vllm:num_gpu_loaded_lora_adapters",
            "LoRA adapters in a slot or in KV-cache blocks.",
            value=levels.count(GPU),
        ),
        GaugeMetricFamily(
            "vllm:num_cpu_loaded_lora_adapters",
            "LoRA adapters in host memory only.",
            value=levels.count(CPU),
        ),
        GaugeMetricFamily(
            "vllm:max_gpu_lora_adapters",
            "LoRA adapters of the highest rank that one batch can mix: max_loras, or max_num_seqs without slots.",
            value=snapshot["mixed"],
        ),
    ]


def _activity(counts: dict[str, Any]) -> list[Metric]:
    stalls = counts["activation_stall_seconds"]
    activations = {source: sum(stall["counts"]) for source, stall in stalls.items()}
    return [
        _histogram(
            "vllm:lora_adapter_load_seconds",
            "Time to read a LoRA adapter from disk to host memory.",
            {"": counts["load_seconds"]},
        ),
        _counter(
            "chameleon:adapter_activations",
            "Adapters put into a slot, by where they were when their request needed them.",
            activations,
            "source",
        ),
        _histogram(
            "chameleon:adapter_activation_stall_seconds",
            "Time a step, so each running request, waited for an adapter to be put into its slot.",
            stalls,
            "source",
        ),
        _histogram(
            "chameleon:adapter_wait_seconds",
            "Time a request waited for its adapter to reach host memory; 0 if it was there.",
            {"": counts["wait_seconds"]},
        ),
        _counter(
            "chameleon:adapter_promotions",
            "Adapters copied into KV-cache blocks.",
            {"": counts["promotions"]},
        ),
        _counter(
            "chameleon:adapter_promotion_seconds",
            "Time those copies took, outside of steps.",
            {"": counts["promotion_seconds"]},
        ),
        _counter(
            "chameleon:adapter_promotion_failures",
            "Copies into KV-cache blocks that could not be made.",
            {"": counts["promotion_failures"]},
        ),
        _counter(
            "chameleon:adapter_load_failures",
            "LoRA adapters that could not be read.",
            {"": counts["load_failures"]},
        ),
        _counter(
            "chameleon:adapter_checks",
            "Activations whose bytes were compared with the host copy.",
            {"": counts["checks"]},
        ),
    ]


def _borrowed(snapshot: dict[str, Any]) -> list[Metric]:
    return [
        GaugeMetricFamily(
            "chameleon:borrowed_blocks",
            "KV-cache blocks that adapters hold; vLLM counts them as free.",
            value=snapshot["borrowed_blocks"],
        ),
        GaugeMetricFamily(
            "chameleon:borrowed_bytes",
            "Their bytes on one rank.",
            value=snapshot["borrowed_bytes"],
        ),
        _counter(
            "chameleon:adapter_demotions",
            "Adapters that gave their KV-cache blocks back.",
            snapshot["demotions"],
            "reason",
        ),
    ]


def _lanes(lanes: list[dict[str, Any]]) -> list[Metric]:
    found: list[Metric] = []
    for key, text in (
        ("waiting", "Requests ready to run."),
        ("loading", "Requests whose adapter is not in host memory yet."),
        ("running", "Requests that run."),
        ("quota_tokens", "Tokens the lane may have in flight."),
        ("used_tokens", "Tokens of that quota that are lent out, also to other lanes."),
    ):
        family = GaugeMetricFamily(f"chameleon:lane_{key}", text, labels=["lane"])
        for lane in lanes:
            family.add_metric([str(lane["lane"])], lane[key])
        found.append(family)
    held = GaugeMetricFamily(
        "chameleon:lane_held",
        "1 for the reason why the lane's first request was not admitted in the last step.",
        labels=["lane", "reason"],
    )
    for lane in lanes:
        for reason in Held:
            held.add_metric([str(lane["lane"]), reason.value], lane["held"] == reason.value)
    return [*found, held]


def _counter(name: str, text: str, values: dict[str, float], label: str = "") -> Metric:
    """`values` by the label's value; without a label, the one value is under an empty string."""
    family = CounterMetricFamily(name, text, labels=[label] if label else [])
    for value, count in values.items():
        family.add_metric([value] if label else [], count)
    return family


def _histogram(
    name: str, text: str, values: dict[str, HistogramCounts], label: str = ""
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=[label] if label else [])
    for value, counted in values.items():
        total, buckets = 0, []
        for bound, count in zip([*counted["bounds"], "+Inf"], counted["counts"], strict=True):
            total += count
            buckets.append((str(bound), float(total)))
        family.add_metric([value] if label else [], buckets, counted["sum"])
    return family


def _has(page: bytes, name: str) -> bool:
    return any(f"# TYPE {form} ".encode() in page for form in (name, f"{name}_total"))


def _is_page(scope: Message) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    return bool(scope["path"].removeprefix(scope.get("root_path", "")) == PATH)


def _is_text(start: Message) -> bool:
    """Whether an answer is a page in the text form, uncompressed: one that can be continued."""
    headers = {name.lower(): value for name, value in start["headers"]}
    is_plain = headers.get(b"content-type", b"").startswith(b"text/plain")
    return start["status"] == HTTPStatus.OK and is_plain and b"content-encoding" not in headers


def _with_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    others = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*others, (b"content-length", str(length).encode())]


def bounding(stock: Callable[..., None]) -> Callable[..., None]:
    """PrometheusStatLogger.record that leaves at most MOST_SERIES of them, the newest among them."""

    def record(logger: Any, *args: Any, **kwargs: Any) -> None:
        if _has_series(logger):
            seen = getattr(logger, SEEN, 0)
            setattr(logger, SEEN, seen + 1)
            if seen % MOST_SERIES == 0:
                logger.gauge_lora_info.clear()
        stock(logger, *args, **kwargs)

    return record


def _has_series(logger: Any) -> bool:
    """Whether it is a Chameleon engine's, with a gauge that can forget."""
    can_forget = hasattr(getattr(logger, "gauge_lora_info", None), "clear")
    return is_ours(logger.vllm_config) and can_forget and _SEVERAL_PROCESSES not in os.environ

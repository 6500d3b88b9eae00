"""Chameleon's families after vLLM's page: what they say, and that the page never fails for them."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.metrics import MetricsPage, render
from chameleon_lora.engine_vllm.core.state import metrics_of
from tests.engine_vllm.asgi_client import AppAnswer, ask
from tests.engine_vllm.fake_requests import (
    ROOM,
    FakeRequest,
    announced,
    carry_out,
    make_driver,
    request_for,
)

prometheus_client = pytest.importorskip("prometheus_client")
TEXT = (b"content-type", b"text/plain; version=1.0.0; charset=utf-8")
STOCK = b"# HELP vllm:steps_total Steps.\n# TYPE vllm:steps_total counter\nvllm:steps_total 3.0\n"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(page: bytes) -> Samples:
    """Each series of a page and its value; a page that cannot be parsed fails the test."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def snapshot() -> dict[str, Any]:
    """An engine that runs one request with adapter a, where some of everything has happened."""
    driver = make_driver()
    driver.arrived(request_for("1", driver.announce(announced("a"))))
    for now_s in (1.0, 2.0):
        carry_out(driver, now_s)
    found = metrics_of(driver) | {"refused": 3}
    found["lanes"][0]["held"] = "slots"
    found["borrowed_blocks"], found["borrowed_bytes"] = 4, 4096
    found["demotions"]["demand"] = 2
    counts = found["counts"]
    counts["load_seconds"] = {"bounds": [0.1, 1.0], "counts": [1, 2, 3], "sum": 9.0}
    stalls = counts["activation_stall_seconds"]
    stalls["host"] = {"bounds": [0.1], "counts": [5, 0], "sum": 0.25}
    counts["promotions"] = 7
    return found


def labels(**pairs: str) -> frozenset[tuple[str, str]]:
    """A series' labels."""
    return frozenset(pairs.items())


@pytest.mark.parametrize(
    ("name", "pairs", "expected"),
    [
        (
            "vllm:lora_adapter_loaded",
            {"adapter_name": "a", "level": "gpu", "pinned": "false", "rank": "8"},
            1,
        ),
        ("vllm:num_gpu_loaded_lora_adapters", {}, 1),
        ("vllm:num_cpu_loaded_lora_adapters", {}, 0),
        ("vllm:max_gpu_lora_adapters", {}, 2),
        ("vllm:lora_adapter_load_seconds_bucket", {"le": "0.1"}, 1),
        ("vllm:lora_adapter_load_seconds_bucket", {"le": "1.0"}, 3),
        ("vllm:lora_adapter_load_seconds_bucket", {"le": "+Inf"}, 6),
        ("vllm:lora_adapter_load_seconds_count", {}, 6),
        ("vllm:lora_adapter_load_seconds_sum", {}, 9.0),
        ("chameleon:adapter_activations_total", {"source": "host"}, 5),
        ("chameleon:adapter_activation_stall_seconds_sum", {"source": "host"}, 0.25),
        ("chameleon:adapter_promotions_total", {}, 7),
        ("chameleon:adapter_demotions_total", {"reason": "demand"}, 2),
        ("chameleon:borrowed_blocks", {}, 4),
        ("chameleon:borrowed_bytes", {}, 4096),
        ("chameleon:lane_running", {"lane": "0"}, 1),
        ("chameleon:lane_waiting", {"lane": "0"}, 0),
        ("chameleon:lane_held", {"lane": "0", "reason": "slots"}, 1),
        ("chameleon:lane_held", {"lane": "0", "reason": "seats"}, 0),
        ("chameleon:adapters_refused", {}, 3),
    ],
    ids=str,
)
def test_a_number_of_the_engine_is_on_the_page(
    name: str, pairs: dict[str, str], expected: float
) -> None:
    """Under its name and labels, in a form that Prometheus's own parser reads."""
    assert expected == samples(render(snapshot()))[name, labels(**pairs)]


def test_an_idle_engine_has_every_family() -> None:
    """Before the first request too: dashboards find names, and unlabelled counters start at 0."""
    page = render(metrics_of(make_driver()) | {"refused": 0}).decode()
    for name in (
        "vllm:lora_adapter_loaded gauge",
        "vllm:lora_adapter_load_seconds histogram",
        "chameleon:adapter_activations_total counter",
        "chameleon:adapter_activation_stall_seconds histogram",
        "chameleon:adapter_wait_seconds histogram",
        "chameleon:adapter_promotion_failures_total counter",
        "chameleon:adapter_demotions_total counter",
        "chameleon:lane_quota_tokens gauge",
        "chameleon:lane_used_tokens gauge",
    ):
        assert f"# TYPE {name}\n" in page
    found = samples(page.encode())
    for name in ("adapter_promotions", "adapter_load_failures", "adapter_checks"):
        assert 0 == found[f"chameleon:{name}_total", labels()]


@pytest.mark.parametrize("name", ['quo"te', "back\\slash", "new\nline", "ümlaut", "a{b}"])
def test_any_adapters_name_survives(name: str) -> None:
    """Names come from clients; the parser reads back what was put in."""
    found = snapshot()
    found["adapters"][0]["name"] = name
    pairs = labels(adapter_name=name, level="gpu", pinned="false", rank="8")
    assert 1 == samples(render(found))["vllm:lora_adapter_loaded", pairs]


def test_a_lane_that_waits_shows_in_the_families() -> None:
    """A request held back for want of a seat is 1 at its reason."""
    driver = make_driver()
    driver.arrived(FakeRequest("1"))
    carry_out(driver, 1.0, ROOM.__class__(seats=0, kv_tokens=4096, batch_tokens=2048))
    found = samples(render(metrics_of(driver) | {"refused": 0}))
    assert 1 == found["chameleon:lane_waiting", labels(lane="0")]
    assert 1 == found["chameleon:lane_held", labels(lane="0", reason="seats")]


@dataclass
class FakePage:
    """vLLM's app: answers everything with one page, in two pieces."""

    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(
        default_factory=lambda: [TEXT, (b"Content-Length", str(len(STOCK)).encode())]
    )

    async def __call__(self, _scope: Any, _receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status, "headers": self.headers}
        await send(start)
        await send({"type": "http.response.body", "body": STOCK[:9], "more_body": True})
        await send({"type": "http.response.body", "body": STOCK[9:]})


async def answer() -> dict[str, Any]:
    """An engine that answers."""
    return snapshot()


def get(
    engine: Callable[[], Awaitable[dict[str, Any]]], path: str = "/metrics", **fields: Any
) -> AppAnswer:
    """The page of a fresh server over this engine."""
    return ask(MetricsPage(FakePage(**fields), engine), "GET", path)


def test_vllms_page_comes_first_and_whole() -> None:
    """Byte for byte, then Chameleon's; the length fits both."""
    found = get(answer)
    assert STOCK + render(snapshot()) == found.body
    assert str(len(found.body)) == found.headers["content-length"]
    assert 3 == samples(found.body)["vllm:steps_total", labels()]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/models", {}),
        ("/metrics/", {}),
        ("/metrics", {"status": 503}),
        ("/metrics", {"headers": [(b"content-type", b"application/openmetrics-text")]}),
        ("/metrics", {"headers": [TEXT, (b"content-encoding", b"gzip")]}),
    ],
    ids=["another route", "another app", "an error", "another form", "compressed"],
)
def test_what_cannot_be_continued_is_left_alone(path: str, fields: dict[str, Any]) -> None:
    """Other routes, errors and other forms of the page are vLLM's."""
    assert STOCK == get(answer, path, **fields).body


def test_a_family_that_vllm_has_is_not_written_twice() -> None:
    """A later vLLM may take up a proposed name; the page would be invalid with both."""
    page = b"# TYPE vllm:max_gpu_lora_adapters gauge\nvllm:max_gpu_lora_adapters 2.0\n"
    assert b"max_gpu_lora_adapters" not in render(snapshot(), page)
    again = b"# TYPE chameleon:adapter_promotions_total counter\n"
    assert b"adapter_promotions" not in render(snapshot(), again)
    assert b"vllm:lora_adapter_load_seconds_sum" in render(snapshot(), page)


async def fail() -> dict[str, Any]:
    """An engine that is gone."""
    raise ConnectionError("the engine is dead")


async def hang() -> dict[str, Any]:
    """An engine in a long step."""
    return await asyncio.Event().wait() and {}


async def nonsense() -> dict[str, Any]:
    """An engine of another version."""
    return {"lanes": 3}


@pytest.mark.parametrize("engine", [fail, hang, nonsense])
def test_the_page_outlives_its_engine(engine: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Without an answer in time vLLM's own part is served."""
    assert (200, STOCK) == (get(engine).status, get(engine).body)


def test_trouble_with_the_page_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often the page is asked for."""
    page = MetricsPage(FakePage(), nonsense)
    for _ in range(3):
        assert ask(page, "GET", "/metrics").body == STOCK
    (record,) = caplog.records
    assert "left out of the page" in record.getMessage()


def test_the_last_numbers_stay_when_the_engine_is_silent() -> None:
    """A scrape during a long step shows the numbers of the one before."""
    answers = iter([answer(), fail()])
    page = MetricsPage(FakePage(), answers.__next__)
    first = ask(page, "GET", "/metrics")
    assert first.body == ask(page, "GET", "/metrics").body
    assert STOCK != first.body


SCRIPT = """
from argparse import Namespace
from fastapi import FastAPI
from tests.engine_vllm.asgi_client import ask
from tests.engine_vllm.api.test_metrics import snapshot
from prometheus_client import Counter
Counter("vllm:steps", "Steps.").inc(3)
from chameleon_lora.engine_vllm import plugin
plugin.register()
plugin.register()

class Core:
    async def call_utility_async(self, name):
        return snapshot() if name == "chameleon_metrics" else {}

class Client:
    engine_core = Core()

def server(scheduler_cls):
    from vllm.entrypoints.serve import register_vllm_serve_api_routers
    app = FastAPI()
    app.state.args = Namespace(scheduler_cls=scheduler_cls)
    app.state.engine_client = Client()
    register_vllm_serve_api_routers(app)
    return app

for scheduler_cls in ("chameleon_lora.engine_vllm.scheduler", "another.scheduler", None):
    app = server(scheduler_cls)
    page = ask(app, "GET", "/metrics").text
    assert "vllm:steps_total 3.0" in page, page
    times = int(scheduler_cls == "chameleon_lora.engine_vllm.scheduler")
    assert page.count("# TYPE vllm:lora_adapter_loaded gauge") == times, page
    assert page.count("chameleon:adapter_promotions_total 7.0") == times, page
    state = ask(app, "GET", "/chameleon/state")
    assert state.status == (200 if times else 404), state
    assert ask(app, "POST", "/v1/pin_lora_adapter", b"{}").status == 404
print("done")
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_chameleons_servers_have_the_families_and_others_do_not(tmp_path: Path) -> None:
    """Also with several API servers, whose page vLLM reads from files, by a registry of its own.

    Without VLLM_ALLOW_RUNTIME_LORA_UPDATING nobody can pin.
    """
    pytest.importorskip("vllm")
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    environment.pop("VLLM_ALLOW_RUNTIME_LORA_UPDATING", None)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True, text=True, timeout=240, check=False, cwd=root, env=environment,
    )  # fmt: skip
    found = (done.returncode, done.stdout.strip().rpartition("\n")[2])
    assert (0, "done") == found, done.stderr[-2000:]

"""What ten thousand adapters cost a server that nobody asks for them: start, memory, idling, pages, streams.

    .venv/bin/python -m experiments.many_adapters --counts 100 1000 10000

For each number a folder of so many tiny adapters is made (they are copies of each other) and served with
the tiny model. Measured are the time until the server is healthy, the memory of each of its processes,
the CPU time of the API server and of the engine while nobody asks for anything, the first and the second
answer of each page, and the longest time without a token of a stream: while nothing else happens, while
`--appear` more folders come at once, and while somebody lists the models all the time.
`--set serving.scan_all_s=0` looks at all adapters each time, as before there were events.

`--no-server` leaves the server out: it measures the registry of an API server with stand-ins for vLLM.
"""

import argparse
import asyncio
import importlib
import json
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.report.table import Table, markdown_table
from chameleon_lora.servers.launching import BASE_MODEL, EngineShape, ServedModel
from chameleon_lora.servers.process import running_process
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from experiments.two_servers import CHAMELEON, server
from tests.engine_vllm.served_folder import ServedFolder

LAYERS, RANK = 2, 4
SHAPE = EngineShape(slots=2, seats=4, target_modules=("q_proj",))
PAGES = ("/v1/models", "/metrics", "/chameleon/state")
TICK_S = 0.001
Figures = dict[str, float]


def main() -> None:
    """A table of all numbers, and a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000])
    parser.add_argument("--appear", type=int, default=1000, help="folders that come at once")
    parser.add_argument("--seconds", type=float, default=30.0, help="of idling, and of each stream")
    parser.add_argument("--set", action="append", default=[], help="a setting of Chameleon's")
    parser.add_argument("--no-server", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/many_adapters.json"))
    given = parser.parse_args()
    model = ensure_tiny_model(default_cache_dir(), LAYERS)
    rows: dict[int, Figures] = {}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for count in given.counts:
        with tempfile.TemporaryDirectory(dir=given.out.parent) as scratch:
            folders = make_folders(Path(scratch), model, count, given.appear)
            measure = measure_registry if given.no_server else measure_server
            rows[count] = measure(*folders, model, given)
        print(f"{count} adapters: {rows[count]}", flush=True)
        given.out.write_text(json.dumps(rows, indent=2))
    names = list(next(iter(rows.values())))
    table = [(name, *(f"{row[name]:.3g}" for row in rows.values())) for name in names]
    print(markdown_table(Table(("", *map(str, rows)), tuple(table)), ()))


def make_folders(scratch: Path, model: Path, count: int, more: int) -> tuple[Path, Path]:
    """A folder of so many adapters, and one of those that are to come."""
    dims = ModelDims.from_model(model)
    one = make_adapter(scratch / "one", dims, RANK, seed=0, target_modules=SHAPE.target_modules)
    for folder, names in (("served", count), ("coming", more)):
        for number in range(names):
            shutil.copytree(one, scratch / folder / f"{folder}-{number:05}")
    return scratch / "served", scratch / "coming"


def appear(coming: Path, served: Path) -> None:
    """All at once."""
    for path in sorted(coming.iterdir()):
        path.rename(served / path.name)


def measure_registry(
    served: Path, coming: Path, _model: Path, given: argparse.Namespace
) -> Figures:
    """The API server's part alone: looks, and how long its event loop does not come round."""
    folder = ServedFolder(served)
    importlib.import_module("vllm.lora.request")  # at the first look otherwise

    async def run() -> Figures:
        found = dict(await timed("first look", folder.registry.start))
        found |= await timed("idle look", folder.registry._refresh_all)  # noqa: SLF001
        with silence() as longest:
            await asyncio.sleep(1.0)
        found["silence without, s"] = longest()
        appear(coming, served)
        with silence() as longest:
            found |= await timed(f"look at {given.appear} more", folder.registry._refresh_all)  # noqa: SLF001
        return {**found, "silence meanwhile, s": longest()}

    return asyncio.run(run())


async def timed(name: str, work: Callable[[], Any]) -> Figures:
    """Seconds that it takes, and of CPU."""
    begin_s, cpu_s = time.perf_counter(), time.process_time()  # noqa: TID251
    await work()
    return {
        f"{name}, s": time.perf_counter() - begin_s,  # noqa: TID251
        f"{name}, CPU s": time.process_time() - cpu_s,
    }


@contextmanager
def silence() -> Iterator[Callable[[], float]]:
    """The longest time that a task which has next to nothing to do had to wait for its turn."""
    gaps_s = [0.0]

    async def tick() -> None:
        last_s = time.perf_counter()  # noqa: TID251
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.perf_counter()  # noqa: TID251
            gaps_s[0], last_s = max(gaps_s[0], now_s - last_s), now_s

    task = asyncio.get_running_loop().create_task(tick())
    yield lambda: gaps_s[0]
    task.cancel()


def measure_server(served: Path, coming: Path, model: Path, given: argparse.Namespace) -> Figures:
    """A real one."""
    spec = server(CHAMELEON, ServedModel.of(model, served, SHAPE), given.out.parent, {}, given.set)
    begin_s = time.perf_counter()  # noqa: TID251
    with running_process(spec) as process:
        found: Figures = {"start, s": time.perf_counter() - begin_s}  # noqa: TID251
        parts = {"API": psutil.Process(process.pid)}
        parts |= {child.name(): child for child in parts["API"].children(recursive=True)}
        stream_gap_s(spec.base_url, 5.0)  # what is done once
        used_s = {name: cpu_s(part) for name, part in parts.items()}
        time.sleep(given.seconds)
        for name, part in parts.items():
            found[f"{name}, MiB"] = part.memory_info().rss / (1 << 20)
            found[f"{name} idle, % of a core"] = 100 * (cpu_s(part) - used_s[name]) / given.seconds
        for page in PAGES:
            for order in ("first", "second"):
                begin_s = time.perf_counter()  # noqa: TID251
                get(spec.base_url + page)
                found[f"{page}, {order}, ms"] = 1e3 * (time.perf_counter() - begin_s)  # noqa: TID251
        found["gap without, s"] = stream_gap_s(spec.base_url, given.seconds)
        threading.Timer(2.0, appear, (coming, served)).start()
        found["gap, folders come, s"] = stream_gap_s(spec.base_url, given.seconds)
        found["listed"] = len(json.loads(get(f"{spec.base_url}/v1/models"))["data"])
        with listing_all_the_time(spec.base_url):
            found["gap, models listed, s"] = stream_gap_s(spec.base_url, given.seconds / 3)
    return found


def cpu_s(process: psutil.Process) -> float:
    """That it has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def get(url: str) -> bytes:
    """The body of an answer."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


@contextmanager
def listing_all_the_time(base_url: str) -> Iterator[None]:
    """Somebody asks for the models, again and again."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            get(f"{base_url}/v1/models")

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield
    finally:
        ended.set()
        asker.join()


def stream_gap_s(base_url: str, seconds: float) -> float:
    """The longest time between two tokens of answers that are streamed one after another."""
    body = {
        "model": BASE_MODEL,
        "prompt": "a",
        "max_tokens": 400,
        "ignore_eos": True,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{base_url}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    longest_s, end_s = 0.0, time.perf_counter() + seconds  # noqa: TID251
    while time.perf_counter() < end_s:  # noqa: TID251
        with urllib.request.urlopen(request, timeout=60) as answer:
            last_s = None
            for line in answer:
                if line.startswith(b"data: {"):
                    now_s = time.perf_counter()  # noqa: TID251
                    longest_s = max(longest_s, 0.0 if last_s is None else now_s - last_s)
                    last_s = now_s
    return longest_s


if __name__ == "__main__":
    main()

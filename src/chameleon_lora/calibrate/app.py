"""Calibration: a live server is sent requests, and its steps' costs become a profile."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from chameleon_lora.adapters import AdapterFolder, AdapterInfo, inspect_adapter
from chameleon_lora.adapters.make import ModelDims, make_adapters
from chameleon_lora.bench.replay import Target
from chameleon_lora.calibrate.fit import MeasuredCopy, MeasuredStep, StepFit, fit_link, fit_steps
from chameleon_lora.calibrate.traffic import (
    ALONE,
    WaveShape,
    measure_token_s,
    outside_s,
    send_waves,
)
from chameleon_lora.engine_vllm.event_log import STEPS_VARIABLE
from chameleon_lora.engine_vllm.measure.step_log import (
    CopyRow,
    StepLog,
    add_stock_copies,
    read_step_log,
)
from chameleon_lora.errors import ConfigError
from chameleon_lora.servers.launching import (
    BASE_MODEL,
    EngineShape,
    ServedModel,
    chameleon_command,
    cpu_server,
    stock_command,
    this_machine,
)
from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from chameleon_lora.settings import LoraBackend
from chameleon_lora.sim.profile import Basis, Link, Memory, Profile

TINY, TINY_LAYERS = "tiny", 16  # deep enough that the engine, not its front end, is what is busy
MADE_ADAPTERS = 24
MIN_COPIES = 5
MIN_STEP_S = 1e-5
NO_COPY = Link(1e12)  # of an engine that makes none
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ENGINE_ITEM_BYTES = 4  # the engine computes in float32
TOKEN_IDS = (3, 500)
NEEDED = {
    "vllm": "vLLM is not installed here: see README, Serve your own; `make setup` installs it",
    "scipy": "scipy, which fits the costs, is not installed here: pip install 'chameleon-lora[calibrate]'",
}

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CalibrationTarget:
    """What is calibrated.

    Attributes:
        adapters_dir: an absolute path.
        adapters: that take part, none of a rank above the engine's.
        lora_backend: of Chameleon's engine.
    """

    model_dir: Path
    adapters_dir: Path
    adapters: tuple[AdapterInfo, ...]
    has_chameleon: bool
    shape: EngineShape
    lora_backend: LoraBackend = LoraBackend.AUTO


def check_request(model: str, out: Path) -> None:
    """Nothing is started, and no minute lost, for what cannot end well.

    Raises:
        ConfigError: vLLM, scipy or the model is missing, or `out` exists or has no folder.
    """
    for package, how in NEEDED.items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(how)
    if out.exists():
        raise ConfigError(
            f"{out} exists already and is not overwritten; name another file with --out"
        )
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"the folder of {out} does not exist; create it, or name another --out")
    if model != TINY and not (Path(model) / "config.json").is_file():
        raise ConfigError(
            f"{model!r} is no model's folder (it has no config.json); give a folder in Hugging Face "
            f"format, or {TINY}"
        )


def prepare(
    model: str,
    adapters_dir: Path | None,
    shape: EngineShape,
    scratch: Path,
    *,
    has_chameleon: bool,
    lora_backend: LoraBackend,
) -> CalibrationTarget:
    """The model and the adapters, there or made.

    Raises:
        ConfigError: no adapter fits.
    """
    made = ensure_tiny_model(default_cache_dir(), TINY_LAYERS) if model == TINY else None
    model_dir = (made or Path(model)).absolute()
    if adapters_dir is None:
        adapters_dir = scratch / "adapters"
        ranks = [max(1, shape.max_rank // 4), max(1, shape.max_rank // 2), shape.max_rank]
        make_adapters(
            adapters_dir,
            ModelDims.from_model(model_dir),
            ranks,
            MADE_ADAPTERS,
            seed=0,
            target_modules=shape.target_modules,
        )
    adapters_dir = adapters_dir.absolute()
    adapters = usable_adapters(adapters_dir, shape.max_rank)
    return CalibrationTarget(model_dir, adapters_dir, adapters, has_chameleon, shape, lora_backend)


def usable_adapters(adapters_dir: Path, max_rank: int) -> tuple[AdapterInfo, ...]:
    """The adapters in the folder that an engine with slots of this rank serves, by name.

    Raises:
        ConfigError: there is none.
    """
    infos = [inspect_adapter(adapters_dir / name) for name in AdapterFolder(adapters_dir).names()]
    usable = tuple(info for info in infos if not info.problems and info.rank <= max_rank)
    if not usable:
        raise ConfigError(
            f"{str(adapters_dir)!r} holds {len(infos)} adapters, and none that can be served has a "
            f"rank of {max_rank} or less; way out: raise --max-lora-rank, or leave --adapters out"
        )
    return usable


def measure(
    target: CalibrationTarget, seconds: float, scratch: Path, say: Say
) -> tuple[StepLog, float]:
    """What a live server's engine did with our requests, and the time of a request outside of it.

    Raises:
        BenchError: the server does not start, or a request fails.
    """
    steps, shape = scratch / "steps.jsonl", target.shape
    environment = {STEPS_VARIABLE: str(steps)}
    spec = cpu_server(server_command(target), scratch / "server.log", environment)
    names = [info.name for info in target.adapters]
    wave_shape = WaveShape(shape.seats, shape.context_tokens, shape.slots, names)
    say("starting the server")
    with running_server(spec) as url:
        server = Target(url, BASE_MODEL, TOKEN_IDS)
        step_s = measure_token_s(server)
        say(f"sending waves of requests for {seconds:.0f} s")
        waves = send_waves(server, wave_shape, step_s, seconds)
    log = read_step_log(steps)
    if not target.has_chameleon:
        nbytes = {str(info.path): engine_bytes(info) for info in target.adapters}
        add_stock_copies(log, nbytes.__getitem__)
    return log, outside_s(waves, log.first_s[ALONE:])


def server_command(target: CalibrationTarget) -> tuple[str, ...]:
    """Starts vLLM's own server with every adapter registered, or Chameleon's on their folder."""
    served = ServedModel(
        str(target.model_dir),
        target.adapters_dir,
        tuple(info.name for info in target.adapters),
        target.shape.flags,
    )
    words = ("--max-cpu-loras", str(max(target.shape.slots, len(target.adapters))))
    if not target.has_chameleon:
        return stock_command(served, words)
    backend = ("--set", f"serving.lora_backend={target.lora_backend.value}")
    return chameleon_command(served, (*words, *backend))


def fitted(
    name: str, target: CalibrationTarget, log: StepLog, request_s: float
) -> tuple[Profile, StepFit]:
    """The profile that explains what the engine did.

    Raises:
        BenchError: there is too little to fit to.
    """
    shape = target.shape
    fit = fit_steps(
        [
            MeasuredStep(row.work, max(MIN_STEP_S, row.seconds - copies_s))
            for row, copies_s in zip(log.steps, log.copies_s, strict=True)
        ]
    )
    rank_bytes = sum(map(engine_bytes, target.adapters)) // sum(i.rank for i in target.adapters)
    slots_bytes = 0 if log.in_host else shape.slots * shape.max_rank * rank_bytes
    host_link, device_copy, disk = _links(log)
    whose = "Chameleon's" if target.has_chameleon else "vLLM's"
    profile = Profile(
        name=name,
        model=f"{target.model_dir.name}, float32; adapters on {', '.join(shape.target_modules)}",
        machine=this_machine(),
        basis=Basis.MEASURED,
        source=f"chameleon calibrate, {whose} scheduler: {len(log.steps)} steps of a live server, "
        f"{len(log.copies)} copies",
        memory=Memory(
            pool_bytes=log.kv_blocks * log.block_bytes + slots_bytes,
            kv_bytes_per_token=max(1, log.block_bytes // log.block_tokens),
            adapter_bytes_per_rank=rank_bytes,
            block_tokens=log.block_tokens,
        ),
        step=fit.costs,
        host_link=host_link,
        device_copy=device_copy,
        disk=disk,
        request_s=request_s,
        in_host=log.in_host,
        error={"step": fit.step_error, "total": fit.total_error},
    )
    return profile, fit


def engine_bytes(info: AdapterInfo) -> int:
    """Bytes of an adapter in the engine's memory, whatever its file's numbers are."""
    return info.nbytes * ENGINE_ITEM_BYTES // ITEM_BYTES.get(info.dtype or "", ENGINE_ITEM_BYTES)


def summary(profile: Profile, fit: StepFit, log: StepLog) -> str:
    """Lines for a terminal: each cost in microseconds, the links, and how far off the fit is."""
    lines = [
        *(f"{profile.model}; {profile.machine}", profile.source, "", "step costs, microseconds"),
        *(
            f"  {cost.name[:-2]:<20}{1e6 * getattr(profile.step, cost.name):12.3f}"
            for cost in fields(profile.step)
        ),
    ]
    links = {"host_link": "host", "device_copy": "device", "disk": "disk"}
    if profile.in_host:
        del links["host_link"], links["device_copy"]
    lines.append("copies of adapters")
    for name, source in links.items():
        link: Link = getattr(profile, name)
        count = sum(copy.source == source for copy in log.copies)
        lines.append(
            f"  {name:<20}{1e3 * link.latency_s:9.2f} ms + {link.bytes_per_s / 1e6:10.0f} MB/s"
            f"  ({count} measured)"
        )
    lines += [
        f"a request outside the engine: {1e3 * profile.request_s:.2f} ms",
        f"error on {fit.held_out} steps kept out of the fit: {100 * fit.step_error:.1f} % a step, "
        f"{100 * fit.total_error:+.1f} % of their time together",
    ]
    return "\n".join(lines)


def _links(log: StepLog) -> tuple[Link, Link, Link]:
    """Host memory to device, on the device, and disk to host memory.

    Raises:
        BenchError: no adapter was copied.
    """
    if log.in_host:
        return NO_COPY, NO_COPY, _link(log.copies, "disk", least=1) or fit_link([])
    host = _link(log.copies, "host") or fit_link([])
    return host, _link(log.copies, "device") or host, _link(log.copies, "disk") or host


def _link(copies: Sequence[CopyRow], source: str, least: int = MIN_COPIES) -> Link | None:
    """The way from there; None if it was taken too seldom to tell."""
    found = [MeasuredCopy(c.nbytes, c.seconds) for c in copies if c.source == source and c.nbytes]
    return fit_link(found) if len(found) >= least else None

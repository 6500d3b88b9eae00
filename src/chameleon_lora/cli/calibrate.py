"""`chameleon calibrate`: a simulator's profile from runs of the engine on this machine."""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from chameleon_lora.adapters import AdapterFolder, AdapterInfo, inspect_adapter
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.bench.replay import Target
from chameleon_lora.calibrate.fit import MeasuredCopy, MeasuredStep, StepFit, fit_link, fit_steps
from chameleon_lora.calibrate.traffic import ALONE, Scope, outside_s, send_alone, send_waves
from chameleon_lora.compare.demo_adapters import TARGET_MODULES
from chameleon_lora.engine_vllm.event_log import OBSERVE_VARIABLE
from chameleon_lora.engine_vllm.hook_table import STEPS_VARIABLE
from chameleon_lora.engine_vllm.measure.step_log import (
    CopyRow,
    StepLog,
    StepRow,
    add_stock_copies,
    read_step_log,
)
from chameleon_lora.errors import AdapterError, ChameleonError, ConfigError
from chameleon_lora.servers.process import ServerSpec, free_port, running_server
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from chameleon_lora.sim.profile import Basis, Link, Memory, Profile, StepWork, profile_text

TINY, TINY_LAYERS = "tiny", 16  # deep enough that the engine, not its front end, is what is busy
MADE_ADAPTERS = 24
MIN_COPIES = 5
MIN_STEP_S = 1e-5
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
ENGINE_ITEM_BYTES = 4  # the probe's engine computes in float32
BASE_MODEL, TOKEN_IDS = "base", (3, 500)
WORK = tuple(field.name for field in fields(StepWork))
SERVER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",  # a core for the front end
    "VLLM_NO_USAGE_STATS": "1",
}


@dataclass(frozen=True, slots=True)
class Ground:
    """What is calibrated.

    Attributes:
        adapters: that take part, none of a rank above the engine's.
        engine: vLLM's arguments, by their names in Python.
    """

    model_dir: Path
    adapters_dir: Path
    adapters: tuple[AdapterInfo, ...]
    has_chameleon: bool
    engine: dict[str, Any]


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `calibrate` and its options."""
    parser = subparsers.add_parser(
        "calibrate",
        help="run the engine here and write what its steps cost, for the simulator",
        description=(
            "Runs vLLM on this machine's CPU in float32, times its steps and the copies of adapters, "
            "fits the simulator's costs to them, and writes a profile with its error. Some minutes."
        ),
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="its folder, or tiny: a random small one"
    )
    parser.add_argument(
        "--adapters", type=Path, metavar="DIR", help="a folder of adapters (default: random ones)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the profile to write, TOML"
    )
    parser.add_argument(
        "--scheduler", choices=("chameleon", "vllm"), default="chameleon",
        help="whose scheduler and LoRA manager the engine has (default: chameleon)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=_positive, default=90.0, metavar="S", help="of steps (default: 90)"
    )
    limits = {"num-seqs": 16, "num-batched-tokens": 256, "model-len": 512, "loras": 4}
    for name, default in {**limits, "lora-rank": 16}.items():
        parser.add_argument(
            f"--max-{name}", type=_whole, default=default, metavar="N",
            help=f"as for vLLM (default: {default})",
        )  # fmt: skip
    parser.add_argument(
        "--lora-target-modules", nargs="+", default=list(TARGET_MODULES), metavar="NAME",
        help=f"as for vLLM (default: {' '.join(TARGET_MODULES)})",
    )  # fmt: skip
    parser.set_defaults(run=calibrate_command)


def calibrate_command(args: argparse.Namespace) -> int:
    """Writes the profile and prints it; 0 done, 1 the engine failed, 2 asked for wrongly."""
    try:
        with tempfile.TemporaryDirectory() as scratch:
            ground = prepare(args, Path(scratch))
            log, request_s = probe(ground, args.seconds, Path(scratch))
        profile, fit = fitted(args.out.stem, ground, log, request_s)
        args.out.write_text(profile_text(profile), encoding="utf-8")
    except (ConfigError, AdapterError) as error:
        _say(f"chameleon calibrate: {error}")
        return 2
    except (ChameleonError, OSError) as error:
        _say(f"chameleon calibrate: {error}")
        return 1
    print(summary(profile, fit, log))
    print(f"written to {args.out}")
    return 0


def prepare(args: argparse.Namespace, scratch: Path) -> Ground:
    """The model and the adapters, there or made, and the engine's arguments.

    Raises:
        ConfigError: vLLM or the model is missing, `out` exists or has no folder, or no adapter fits.
    """
    _check(args.out, args.model)
    model = ensure_tiny_model(default_cache_dir(), TINY_LAYERS) if args.model == TINY else None
    model_dir = model or Path(args.model)
    modules: list[str] = args.lora_target_modules
    adapters_dir = args.adapters or _made_adapters(model_dir, scratch, args.max_lora_rank, modules)
    adapters = usable_adapters(adapters_dir, args.max_lora_rank)
    engine = {
        "max_num_seqs": args.max_num_seqs,
        "max_num_batched_tokens": args.max_num_batched_tokens,
        "max_model_len": args.max_model_len,
        "max_loras": args.max_loras,
        "max_cpu_loras": max(args.max_loras, len(adapters)),
        "max_lora_rank": args.max_lora_rank,
        "lora_target_modules": modules,
    }
    is_chameleon = args.scheduler == "chameleon"
    return Ground(model_dir.absolute(), adapters_dir.absolute(), adapters, is_chameleon, engine)


def usable_adapters(adapters_dir: Path, max_rank: int) -> tuple[AdapterInfo, ...]:
    """Those in the folder that an engine with slots of this rank serves, by name.

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


def probe(ground: Ground, seconds: float, scratch: Path) -> tuple[StepLog, float]:
    """What a live server's engine did with our requests, and the time of a request outside of it.

    Raises:
        BenchError: the server does not start, or a request fails.
    """
    port, steps, observed = free_port(), scratch / "steps.jsonl", scratch / "observed.jsonl"
    environment = {
        **SERVER_ENVIRONMENT,
        STEPS_VARIABLE: str(steps),
        OBSERVE_VARIABLE: str(observed),
    }
    spec = ServerSpec(server_command(ground, port), port, scratch / "server.log", environment)
    names = [info.name for info in ground.adapters]
    engine = ground.engine
    scope = Scope(engine["max_num_seqs"], engine["max_model_len"], engine["max_loras"], names)
    _say("starting the server")
    with running_server(spec) as url:
        target = Target(url, BASE_MODEL, TOKEN_IDS)
        step_s = send_alone(target)
        _say(f"sending waves of requests for {seconds:.0f} s")
        waves = send_waves(target, scope, step_s, seconds)
    log = read_step_log(steps)
    if not ground.has_chameleon:
        nbytes = {str(info.path): engine_bytes(info) for info in ground.adapters}
        add_stock_copies(log, observed, nbytes.__getitem__)
    return log, outside_s(waves, log.first_s[ALONE:])


def fitted(name: str, ground: Ground, log: StepLog, request_s: float) -> tuple[Profile, StepFit]:
    """The profile that explains what the engine did.

    Raises:
        BenchError: there is too little to fit to.
    """
    fit = fit_steps([_measured(*pair) for pair in zip(log.steps, log.copies_s, strict=True)])
    rank_bytes = sum(map(engine_bytes, ground.adapters)) // sum(i.rank for i in ground.adapters)
    slots_bytes = ground.engine["max_loras"] * ground.engine["max_lora_rank"] * rank_bytes
    host = _link(log.copies, "host") or fit_link([])
    whose = "Chameleon's" if ground.has_chameleon else "vLLM's"
    profile = Profile(
        name=name,
        model=f"{ground.model_dir.name}, float32; adapters on "
        f"{', '.join(ground.engine['lora_target_modules'])}",
        machine=machine(),
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
        host_link=host,
        device_copy=_link(log.copies, "device") or host,
        disk=_link(log.copies, "disk") or host,
        request_s=request_s,
        error={"step": fit.step_error, "total": fit.total_error},
    )
    return profile, fit


def server_command(ground: Ground, port: int) -> list[str]:
    """Starts vLLM's own server with every adapter registered, or Chameleon's on their folder."""
    model, folder = str(ground.model_dir), str(ground.adapters_dir)
    modules = [f"{info.name}={info.path}" for info in ground.adapters]
    stock = ["vllm.entrypoints.openai.api_server", "--model", model, "--enable-lora"]
    ours = ["chameleon_lora.cli.main", "serve", model, "--adapters", folder]
    flags: list[str] = []
    for name, value in ground.engine.items():
        words = value if isinstance(value, list) else [value]
        flags += [f"--{name.replace('_', '-')}", *map(str, words)]
    return [
        *(sys.executable, "-m", *(ours if ground.has_chameleon else stock)),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE_MODEL),
        *("--dtype", "float32", "--enforce-eager", "--uvicorn-log-level", "warning"),
        *flags,
        *(() if ground.has_chameleon else ("--lora-modules", *modules)),
    ]


def engine_bytes(info: AdapterInfo) -> int:
    """Of an adapter in the engine's memory, whatever its file's numbers are."""
    return info.nbytes * ENGINE_ITEM_BYTES // ITEM_BYTES.get(info.dtype or "", ENGINE_ITEM_BYTES)


def machine() -> str:
    """The CPU's name as Linux tells it, and its cores."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} cores"


def summary(profile: Profile, fit: StepFit, log: StepLog) -> str:
    """What was fitted, for people."""
    lines = [
        *(f"{profile.model}; {profile.machine}", profile.source, "", "step costs, microseconds"),
        *(
            f"  {cost.name[:-2]:<20}{1e6 * getattr(profile.step, cost.name):12.3f}"
            for cost in fields(profile.step)
        ),
    ]
    links = {"host_link": "host", "device_copy": "device", "disk": "disk"}
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


def _check(out: Path, model: str) -> None:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vLLM is not installed here: see README, Install; `make setup` installs it"
        )
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


def _made_adapters(model_dir: Path, scratch: Path, max_rank: int, modules: Sequence[str]) -> Path:
    """Random adapters of a quarter, half and all of the rank that a slot has."""
    dims, folder = ModelDims.from_model(model_dir), scratch / "adapters"
    ranks = [max(1, max_rank // 4), max(1, max_rank // 2), max_rank]
    for index in range(MADE_ADAPTERS):
        rank = ranks[index % len(ranks)]
        path = folder / f"adapter-{index:03d}-r{rank}"
        make_adapter(path, dims, rank, seed=index, target_modules=modules)
    return folder


def _measured(row: StepRow, copies_s: float) -> MeasuredStep:
    """A step as the fit takes it, without the copies inside it."""
    work = StepWork(**{name: getattr(row, name) for name in WORK})
    return MeasuredStep(work, max(MIN_STEP_S, row.seconds - copies_s))


def _link(copies: Sequence[CopyRow], source: str) -> Link | None:
    """The way from there; None if it was taken too seldom to tell."""
    found = [MeasuredCopy(c.nbytes, c.seconds) for c in copies if c.source == source and c.nbytes]
    return fit_link(found) if len(found) >= MIN_COPIES else None


def _positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

"""What runs do the arguments of `chameleon bench` ask for, given what the server has?"""

import argparse
import asyncio
import math
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from chameleon_lora.bench.completion import Endpoint, PromptForm
from chameleon_lora.bench.discovery import (
    ServerModels,
    UnreachableError,
    adapters_below,
    ask_server,
    with_ranks,
)
from chameleon_lora.bench.measuring import BenchRun
from chameleon_lora.bench.replay import Target, bearer
from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.cli.traffic import traffic_of
from chameleon_lora.errors import BenchError, ConfigError
from chameleon_lora.metrics.objectives import Objective, Objectives
from chameleon_lora.metrics.serving import Window
from chameleon_lora.workload.named_adapters import NamedAdapter, card, name_of, ranks_of
from chameleon_lora.workload.requests import TimedRequest
from chameleon_lora.workload.traffic import Traffic

RATE_PER_S = 1.0
Adapters = tuple[NamedAdapter | str, ...]
Notes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs of one command.

    Attributes:
        runs: at least one, a rate each.
        notes: what the user should know before they begin.
    """

    runs: tuple[BenchRun, ...]
    notes: Notes


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all runs of the command have in common."""

    target: Target
    traffic: Traffic
    adapters: Adapters
    objectives: Objectives


def planned(args: argparse.Namespace) -> Plan:
    """Asks the server what it has, and draws what is sent to it.

    Raises:
        ChameleonError: it is not there or no OpenAI server, or the options fit no run.
    """
    traffic, objectives = traffic_of(args), _objectives(args)
    key = args.api_key or os.environ.get("OPENAI_API_KEY")
    headers = (bearer(key),) if key else ()
    served, notes = _served(args, headers)
    adapters, of_adapters = _adapters(args, served)
    fitted, of_lengths = _fitted(traffic, served.context_tokens)
    target = Target(
        base_url=args.base_url,
        base_model=served.base_model,
        token_ids=args.token_ids,
        endpoint=Endpoint(args.endpoint),
        prompt_form=PromptForm(args.prompts),
        headers=headers,
        ignore_eos=not args.no_ignore_eos,
    )
    shared = _Shared(target, fitted, adapters, objectives)
    rates_per_s = args.request_rate or [traffic.recorded_rate_per_s or RATE_PER_S]
    if len(set(rates_per_s)) < len(rates_per_s):
        raise ConfigError(f"--request-rate names a rate twice: {rates_per_s}; give each once")
    runs = tuple(_run(args, shared, rate_per_s) for rate_per_s in rates_per_s)
    return Plan(runs, notes + of_adapters + of_lengths)


def _fitted(traffic: Traffic, context_tokens: int | None) -> tuple[Traffic, Notes]:
    """The traffic as the server's context holds it, and what to say of the change."""
    if context_tokens is None or traffic.longest_tokens <= context_tokens:
        return traffic, ()
    fitted = traffic.fitted(context_tokens)
    return fitted, (
        f"all lengths are multiplied by {fitted.lengths.factor:.4g}, so that the longest request "
        f"({traffic.longest_tokens} tokens) fits the server's {context_tokens}",
    )


def _served(
    args: argparse.Namespace, headers: Sequence[tuple[str, str]]
) -> tuple[ServerModels, Notes]:
    """What the server has, and what to say of it.

    A server that lists no models will do if the options name what to ask for.
    """
    needs_list = args.model is None or not (
        args.lora_modules or args.adapters or args.base_share == 1.0
    )
    try:
        served = asyncio.run(ask_server(args.base_url, dict(headers)))
    except UnreachableError:
        raise
    except BenchError as error:
        if needs_list:
            raise
        return ServerModels(args.model, None, ()), (f"{error}; going on with the names given",)
    return (served if args.model is None else replace(served, base_model=args.model)), ()


def _adapters(args: argparse.Namespace, served: ServerModels) -> tuple[Adapters, Notes]:
    """Whom to ask for, most popular first, and what to say of them."""
    adapters = served.adapters
    if args.lora_modules:
        adapters = with_ranks(args.lora_modules, served.adapters)
    elif args.adapters is not None:
        adapters = adapters_below(args.adapters)
    if not adapters and args.base_share < 1.0:
        raise ConfigError(
            f"{args.base_url} lists 0 adapters: serve some (vLLM's --lora-modules, or chameleon "
            "serve --adapters DIR), name them by --lora-modules NAME, or give --base-share 1 to "
            "measure the base model alone"
        )
    listed = {name_of(adapter) for adapter in served.adapters}
    unlisted = [name_of(adapter) for adapter in adapters if name_of(adapter) not in listed]
    if not unlisted or not listed:
        return adapters, ()
    return adapters, (
        f"the server does not list {len(unlisted)} of {len(adapters)} adapters, such as "
        f"{unlisted[0]!r}; they are asked for all the same",
    )


def command_line(words: Sequence[str]) -> str:
    """What a shell takes to run this again; a key is left out, and to be in OPENAI_API_KEY then."""
    kept: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        if word != "--api-key" and not word.startswith("--api-key=") and before != "--api-key":
            kept.append(word)
    return shlex.join(["chameleon", *kept])


def _objectives(args: argparse.Namespace) -> Objectives:
    """Limits in seconds, one for each objective that was given, in the order of `Objective`."""
    given = list(args.goodput)
    if args.slo_ttft is not None:
        given.append((Objective.TTFT, args.slo_ttft))
    names = [objective for objective, _ in given]
    for name in Objective:
        if names.count(name) > 1:
            raise ConfigError(
                f"{names.count(name)} limits on {name.value}: give one (--slo-ttft is one on ttft)"
            )
    return {name: dict(given)[name] for name in Objective if name in names}


def _run(args: argparse.Namespace, shared: _Shared, rate_per_s: float) -> BenchRun:
    """One rate's run; its folder is named later."""
    requests, duration_s = _requests(args, shared, rate_per_s)
    window = Window(args.warmup, duration_s, shared.objectives, ranks_of(shared.adapters))
    label = args.label or args.base_url.partition("://")[2]
    workload = shared.traffic.described()
    config = {
        "label": label,
        "purpose": Purpose.RUN.value,
        "repeat": 0,
        "load": None,
        "rate_per_s": rate_per_s,
        "seed": args.seed,
        "duration_s": duration_s,
        "warmup_s": args.warmup,
        "slo_ttft_s": shared.objectives.get(Objective.TTFT),
        "adapters": [card(adapter) for adapter in shared.adapters],
        "active_adapters": len(shared.adapters),
        "slots": None,
        "command": command_line(sys.argv[1:]),
        "workload": workload,
        "server": _described(shared.target),
    }
    about = {
        "label": label,
        "model_id": shared.target.base_model,
        "num_prompts": sum(window.holds(request.arrival_s) for request in requests),
        "request_rate": rate_per_s,
        "burstiness": workload["burstiness"] or 1.0,
        "max_concurrency": None,
    }
    return BenchRun(shared.target, requests, window, config, about, args.patience)


def _requests(
    args: argparse.Namespace, shared: _Shared, rate_per_s: float
) -> tuple[tuple[TimedRequest, ...], float]:
    """What is sent, and how long requests arrive; at least one of them after the warm-up.

    Raises:
        ConfigError: there is none.
    """
    warmup_s, duration_s, wanted = args.warmup, args.duration, args.num_prompts
    if wanted is None and warmup_s >= duration_s:
        raise ConfigError(
            f"a warm-up of {warmup_s:g} s leaves nothing of {duration_s:g} s to measure: make "
            "--duration longer or --warmup shorter"
        )
    if wanted is not None:
        duration_s = warmup_s + wanted / rate_per_s
    while True:
        requests = shared.traffic.requests(rate_per_s, duration_s, shared.adapters, args.seed)
        counted = [request for request in requests if request.arrival_s >= warmup_s]
        if wanted is None or len(counted) >= wanted:
            break
        duration_s += (wanted - len(counted)) / rate_per_s + 1.0
    if not counted:
        raise ConfigError(
            f"no request arrives in {warmup_s:g} to {duration_s:g} s at {rate_per_s:g} requests/s: "
            "make --duration longer or --request-rate higher"
        )
    if wanted is None:
        return requests, duration_s
    last = counted[wanted - 1]
    return requests[: last.index + 1], math.nextafter(last.arrival_s, math.inf)


def _described(target: Target) -> dict[str, Any]:
    """How the server was asked; never with its key."""
    return {
        "base_url": target.base_url,
        "model": target.base_model,
        "endpoint": target.endpoint.value,
        "prompts": target.prompt_form.value,
        "token_ids": list(target.token_ids),
        "ignore_eos": target.ignore_eos,
    }

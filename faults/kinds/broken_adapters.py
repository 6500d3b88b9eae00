"""Faults of an adapter's files."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from faults.adapter_fixtures import MAX_RANK
from faults.client import until
from faults.context import OTHER, SEEDS, TOKENS, VICTIM, FaultContext
from faults.fault import EITHER, FaultOutcome, InflictedFault, first_error
from faults.greedy_request import GreedyRequest

Ruin = Callable[[Path, Path], None]
ASKERS = 3
STALL_S = 1.5


def cut_short(folder: Path, _model: Path) -> None:
    """Leaves half of the weights, as a copy that was broken off does."""
    weights = folder / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def overwrite(folder: Path, _model: Path) -> None:
    """Other bytes where the header was."""
    with (folder / WEIGHTS_NAME).open("r+b") as file:
        file.write(b"\xa5" * 64)


def spoil(folder: Path, _model: Path) -> None:
    """Weights that are not numbers, as after a training run that diverged."""
    tensors = load_file(folder / WEIGHTS_NAME)
    first = min(tensors)
    tensors[first] = np.full_like(tensors[first], np.nan)
    save_file(tensors, folder / WEIGHTS_NAME)


def reshape(folder: Path, _model: Path) -> None:
    """One matrix with fewer columns than the others."""
    tensors = load_file(folder / WEIGHTS_NAME)
    first = min(tensors)
    tensors[first] = np.ascontiguousarray(tensors[first][:, :-1])
    save_file(tensors, folder / WEIGHTS_NAME)


def widen(folder: Path, model: Path) -> None:
    """A sound adapter of a model twice as wide."""
    dims = ModelDims.from_model(model)
    shutil.rmtree(folder)
    make_adapter(folder, dataclasses.replace(dims, hidden_size=2 * dims.hidden_size), 8, seed=1)


def raise_rank(folder: Path, model: Path) -> None:
    """A sound adapter of twice the rank that slots hold."""
    shutil.rmtree(folder)
    make_adapter(folder, ModelDims.from_model(model), 2 * MAX_RANK, seed=1)


def take_weights(folder: Path, _model: Path) -> None:
    """Leaves the configuration alone."""
    (folder / WEIGHTS_NAME).unlink()


def break_config(folder: Path, _model: Path) -> None:
    """Leaves half a configuration."""
    config = folder / CONFIG_NAME
    config.write_text(json.dumps(json.loads(config.read_text()))[:20])


async def broken_from_the_start(ruin: Ruin, context: FaultContext) -> FaultOutcome:
    """The server is given what it cannot serve."""
    name, path = context.placed()
    ruin(path, context.fixtures.model)
    status, text = await context.client.load(name, path)
    refusal = f"HTTP {status}: {text}" if status != HTTPStatus.OK else ""
    return await _asked_for(context, name, path, refusal)


async def broken_later(ruin: Ruin, context: FaultContext) -> FaultOutcome:
    """What it was given is broken by the time it is read."""
    name, path = await context.offered()
    ruin(path, context.fixtures.model)
    return await _asked_for(context, name, path)


async def while_loading(
    ruin: Callable[[FaultContext, Path], None], context: FaultContext
) -> FaultOutcome:
    """Its files change after the load has begun; the old or the new may answer, or an error."""
    name, path = await context.offered()
    with context.injector.stalling(str(path / WEIGHTS_NAME), STALL_S):
        asking = asyncio.create_task(context.client.ask_all(_questions(name)))
        await asyncio.sleep(STALL_S / 2)
        ruin(context, path)
        replies = await asking
    ends = tuple(context.end(reply, (VICTIM, OTHER)) for reply in replies)
    return FaultOutcome(ends, await _recovery_s(context, name, path), first_error(replies))


def delete(_context: FaultContext, path: Path) -> None:
    """The folder goes."""
    shutil.rmtree(path)


def replace(context: FaultContext, path: Path) -> None:
    """Other weights of the same rank take its place in one step."""
    context.fixtures.replace_weights(OTHER, path)


def write_half(context: FaultContext, path: Path) -> None:
    """Other weights are being written over it, and the writer has come half way."""
    data = (context.fixtures.path(OTHER) / WEIGHTS_NAME).read_bytes()
    (path / WEIGHTS_NAME).write_bytes(data[: len(data) // 2])


async def _asked_for(
    context: FaultContext, name: str, path: Path, refusal: str = ""
) -> FaultOutcome:
    """No whole answer is right."""
    replies = await context.client.ask_all(_questions(name))
    ends = tuple(context.end(reply, ()) for reply in replies)
    said = refusal or first_error(replies)
    return FaultOutcome(ends, await _recovery_s(context, name, path), said)


async def _recovery_s(context: FaultContext, name: str, path: Path) -> float | None:
    """From when the folder is sound again."""
    shutil.rmtree(path, ignore_errors=True)
    context.fixtures.place(VICTIM, path)
    try:
        return await until(partial(context.mended, name, path), limit_s=30.0)
    except TimeoutError:
        return None
    finally:
        await context.client.unload(name)
        if path.parent == context.adapters:
            shutil.rmtree(path, ignore_errors=True)


def _questions(name: str) -> list[GreedyRequest]:
    return [GreedyRequest(name, SEEDS[i % len(SEEDS)], TOKENS) for i in range(ASKERS)]


FROM_THE_START: dict[str, Ruin] = {
    "truncated": cut_short,
    "corrupt header": overwrite,
    "NaN weights": spoil,
    "wrong shape": reshape,
    "wrong base model": widen,
    "rank too large": raise_rank,
    "file missing": take_weights,
    "broken configuration": break_config,
}
LATER: dict[str, Ruin] = {
    "truncated before it is read": cut_short,
    "corrupt before it is read": overwrite,
    "deleted before it is read": lambda folder, _: shutil.rmtree(folder),
    "rank grown before it is read": raise_rank,
}
MEANWHILE: dict[str, Callable[[FaultContext, Path], None]] = {
    "deleted while loading": delete,
    "replaced while loading": replace,
    "half written while loading": write_half,
}
FAULTS = (
    *(
        InflictedFault(name, partial(broken_from_the_start, ruin))
        for name, ruin in FROM_THE_START.items()
    ),
    *(InflictedFault(name, partial(broken_later, ruin)) for name, ruin in LATER.items()),
    *(
        InflictedFault(name, partial(while_loading, ruin), EITHER)
        for name, ruin in MEANWHILE.items()
    ),
)

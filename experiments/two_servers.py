"""Stock vLLM and Chameleon on one tiny model, in turn: what the experiments on live servers share."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from chameleon_lora.engine_vllm.event_log import STEPS_VARIABLE
from chameleon_lora.servers.launching import (
    EngineShape,
    ServedModel,
    chameleon_command,
    cpu_server,
    stock_command,
)
from chameleon_lora.servers.process import ServerSpec
from chameleon_lora.servers.tiny_model import (
    RANKS,
    default_cache_dir,
    ensure_adapters,
    ensure_tiny_model,
)
from chameleon_lora.workload.lengths import LengthScale

STOCK, CHAMELEON = "stock", "chameleon"
LENGTHS = LengthScale(1 / 16, (4, 192), (4, 96))
TOKEN_IDS = (3, 512)
"""The tiny model's, from and to; those before are special."""
STEPS = "steps.jsonl"


def served_model(
    layers: int, adapters: int, shape: EngineShape, ranks: Sequence[int] = RANKS
) -> ServedModel:
    """The tiny model and its adapters, made at the first call, for servers of this shape."""
    cache = default_cache_dir()
    model = ensure_tiny_model(cache, layers)
    return ServedModel.of(model, ensure_adapters(model, cache, adapters, ranks), shape)


def in_turn(pairs: int) -> Iterator[tuple[int, str]]:
    """The number of the pair and the server, in the order S C, C S, S C, ..."""
    for pair in range(pairs):
        for arm in (STOCK, CHAMELEON) if pair % 2 == 0 else (CHAMELEON, STOCK):
            yield pair, arm


def server(
    arm: str,
    served: ServedModel,
    folder: Path,
    environment: Mapping[str, str],
    settings: Sequence[str] = (),
) -> ServerSpec:
    """How one of the two is started; `settings` are Chameleon's, its log goes to the folder."""
    words = [word for setting in settings for word in ("--set", setting)]
    command = stock_command(served) if arm == STOCK else chameleon_command(served, words)
    return cpu_server(command, folder / "server.log", environment)


def recording_steps(folder: Path) -> dict[str, str]:
    """The variable by which a server records its steps, to a new file in the folder."""
    steps = folder.absolute() / STEPS
    steps.unlink(missing_ok=True)
    return {STEPS_VARIABLE: str(steps)}


def drop_page_cache(folder: Path) -> None:
    """Afterwards the folder's files are read from disk again."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)

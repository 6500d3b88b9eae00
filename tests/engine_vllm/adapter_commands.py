"""Commands to a worker's adapters as the scheduler would give them, and their acks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from chameleon_lora.engine_vllm.messages import (
    Activated,
    LoadAdapter,
    Loaded,
    LoadFailed,
    Promoted,
    PromotionFailed,
)
from chameleon_lora.engine_vllm.worker.worker_adapters import WorkerAdapters

A = TypeVar("A", Loaded, LoadFailed, Activated, Promoted, PromotionFailed)


def load(adapter_id: int, folder: Path, fingerprint: str | None = None) -> LoadAdapter:
    """The command for a folder."""
    return LoadAdapter(adapter_id, f"adapter-{adapter_id}", str(folder), fingerprint=fingerprint)


def acks_of(adapters: WorkerAdapters, kind: type[A], count: int = 1) -> list[A]:
    """The next acks of a kind, once there are `count`; others are left out."""
    acks: list[A] = []
    while len(acks) < count:
        acks += [ack for ack in adapters.poll_acks() if isinstance(ack, kind)]
    return acks


def load_all(adapters: WorkerAdapters, folders: Mapping[int, Path]) -> dict[int, Loaded]:
    """Afterwards each is in host memory; answers the acks."""
    adapters.execute([load(number, folder) for number, folder in folders.items()])
    return {ack.adapter_id: ack for ack in acks_of(adapters, Loaded, len(folders))}

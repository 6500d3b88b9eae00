"""What all ranks of an engine have done: the scheduler acts on nothing less.

With tensor or pipeline parallelism each rank reads its own part of an adapter, from its own disk if
need be. vLLM hands one rank's output to the scheduler. So the ranks tell each other how far they
are, at the end of each step in which something is awaited, and all of them come to the same acks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from chameleon_lora.engine_vllm.messages import Loaded, LoadFailed, Promoted, PromotionFailed
from chameleon_lora.engine_vllm.worker.sealed_copy import CHANGED
from chameleon_lora.policy.plan import Fault

News = Loaded | LoadFailed | Promoted | PromotionFailed
Gather = Callable[[Sequence[News]], list[list[News]]]


def gather_of_one(news: Sequence[News]) -> list[list[News]]:
    """The news of all ranks of an engine that has one."""
    return [list(news)]


def gather_of_engine() -> Gather:
    """How a rank of the engine in this process learns the news of all, its own included, by rank.

    Every rank must call it as often, and waits for the others' calls: pipeline stages, too, so that
    they run one after the other meanwhile. Without news on any rank it costs one number's way around.
    """
    from vllm.distributed import parallel_state

    coordinators = [
        get()
        for name in ("get_tp_group", "get_pcp_group", "get_pp_group")
        if (get := getattr(parallel_state, name, None)) is not None
    ]
    groups = [found.cpu_group for found in coordinators if found.world_size > 1]

    def gather(news: Sequence[News]) -> list[list[News]]:
        told = [list(news)]
        for group in groups:
            told = [one for part in _gathered(told, group) for one in part]
        return told

    return gather


def _gathered(told: list[list[News]], group: Any) -> list[list[list[News]]]:
    count = torch.distributed.get_world_size(group)
    has_news = torch.tensor([any(told)], dtype=torch.int64)
    torch.distributed.all_reduce(has_news, group=group)
    parts: list[Any] = [[[] for _ in told]] * count
    if has_news.item():
        torch.distributed.all_gather_object(parts, told, group=group)
    return parts


class Agreement:
    """Loads and promotions that were begun, and what ranks said of them. One on each rank.

    Invariant: the same on every rank between two steps, for all get the same commands in the same
    order and settle at the same moments. An answer is awaited until it comes or is called off.
    """

    def __init__(self, gather: Gather = gather_of_one) -> None:
        self._gather = gather
        self._loads: dict[int, tuple[str, list[Loaded]]] = {}  # with the name
        self._promotions: dict[int, tuple[int, list[Promoted]]] = {}  # with the serial

    def await_load(self, adapter_id: int, name: str) -> None:
        """Every rank is about to read this adapter."""
        self._loads[adapter_id] = (name, [])

    def await_promotion(self, adapter_id: int, serial: int) -> None:
        """Every rank is about to copy this adapter into its KV blocks."""
        self._promotions[adapter_id] = (serial, [])

    def forget_load(self, adapter_id: int) -> None:
        """Nobody waits for this load any more."""
        self._loads.pop(adapter_id, None)

    def forget_promotion(self, adapter_id: int) -> None:
        """Nobody waits for this promotion any more."""
        self._promotions.pop(adapter_id, None)

    def forget_promotions(self) -> None:
        """Nobody waits for any promotion any more."""
        self._promotions.clear()

    def settle(self, news: Sequence[News]) -> list[News]:
        """What all ranks agree on since the last time, given what this one has to tell.

        A load or promotion is done when all ranks have done it, and failed as soon as one failed.
        """
        if not (self._loads or self._promotions):
            return []
        told = self._gather(news)
        return [ack for one in told for item in one for ack in self._settled(item, len(told))]

    def _settled(self, item: News, ranks: int) -> Iterator[News]:
        match item:
            case Loaded() if item.adapter_id in self._loads:
                name, said = self._loads[item.adapter_id]
                said.append(item)
                if len(said) == ranks:
                    del self._loads[item.adapter_id]
                    yield _loaded(name, said)
            case LoadFailed() if item.adapter_id in self._loads:
                del self._loads[item.adapter_id]
                yield item
            case Promoted() if self._is_awaited(item):
                _, promoted = self._promotions[item.adapter_id]
                promoted.append(item)
                if len(promoted) == ranks:
                    del self._promotions[item.adapter_id]
                    yield replace(item, seconds=max(one.seconds for one in promoted))
            case PromotionFailed() if self._is_awaited(item):
                del self._promotions[item.adapter_id]
                yield item
            case _:
                pass  # settled before, by another rank's failure

    def _is_awaited(self, item: Promoted | PromotionFailed) -> bool:
        awaited = self._promotions.get(item.adapter_id)
        return awaited is not None and awaited[0] == item.serial


def _loaded(name: str, said: Sequence[Loaded]) -> Loaded | LoadFailed:
    """One ack for the ranks' own, each of which read the files for itself."""
    first, *others = said
    if any(other.fingerprint != first.fingerprint for other in others):
        reason = f"Adapter {name!r} cannot be loaded: {CHANGED}"
        return LoadFailed(first.adapter_id, reason, Fault.FILES)
    return Loaded(
        first.adapter_id,
        max(one.nbytes for one in said),
        max(one.rank for one in said),
        max(one.seconds for one in said),
        all(one.is_packed for one in said),
        first.fingerprint,
    )

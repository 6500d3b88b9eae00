"""The adapters one API server offers: checked there, announced to the engine, listed to clients.

Checking reads headers in a thread of the API server, so neither the engine nor other requests wait.
"""

import asyncio
import itertools
import logging
import weakref
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from chameleon_lora.adapters import (
    AdapterFolder,
    AdapterInfo,
    AdapterLimits,
    is_name,
    require_servable,
)
from chameleon_lora.adapters.folder import MAX_NAME_BYTES
from chameleon_lora.adapters.inspect import largest_bytes
from chameleon_lora.engine_vllm.config import settings_of
from chameleon_lora.engine_vllm.messages import ANNOUNCE, WITHDRAW, Announcement
from chameleon_lora.engine_vllm.sources import resolved
from chameleon_lora.errors import AdapterError, AdapterInvalidError

REGISTRY = "chameleon_registry"
MOST_TOLD = 10
_SHADOWED = "the base model has that name; way out: rename the folder"
_logger = logging.getLogger(f"vllm.{__name__}")


def registry_of(owner: Any) -> "AdapterRegistry | None":
    """That of an OpenAIServingModels or of its engine's client; None if Chameleon's scheduler is not there."""
    registry: AdapterRegistry | None = getattr(owner, REGISTRY, None)
    return registry


class AdapterRegistry:
    """What one API server knows of adapters on disk. Owner: its OpenAIServingModels.

    Attributes:
        refused: name -> why an adapter that is on disk is not served, as a request for it is told.
        unfit: name -> why a folder there is no adapter that could be asked for.
    """

    def __init__(self, models: Any, folder: AdapterFolder | None, scan_s: float) -> None:
        self._models = models
        self._engine = models.engine_client.engine_core
        config = models.engine_client.vllm_config
        self._limits = AdapterLimits(
            config.lora_config.max_lora_rank,
            largest_bytes(),
            has_head(config.model_config),
            converts_bin=settings_of(config).serving.converts_bin,
        )
        self._folder = folder
        self._scan_s = scan_s
        self._stamps: dict[str, str] = {}
        self._lock = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._failed: dict[str, tuple[Any, str]] = {}  # with the LoRARequest that the engine failed
        self._trouble = ""
        self._left_out: dict[str, str] | None = None
        self.refused: dict[str, str] = {}
        self.unfit: dict[str, str] = {}

    def why_refused(self, name: str) -> str | None:
        """Why no request for this adapter is let in; None if one is."""
        failed = self._failed.get(name)
        if failed is not None and self._models.lora_requests.get(name) is failed[0]:
            return failed[1]
        if name in self._models.lora_requests or self._models.is_base_model(name):
            return None
        return self.refused.get(name) or self.unfit.get(name)

    def found_unfit(self, lora_request: Any, reason: str) -> None:
        """The engine found that what this request names can never be loaded, as long as it is served."""
        offered = self._models.lora_requests
        self._failed[lora_request.lora_name] = (lora_request, reason)
        self._failed = {name: it for name, it in self._failed.items() if offered.get(name) is it[0]}

    async def start(self) -> None:
        """Offer what the folder holds, then follow its changes until the server stops."""
        if self._folder is not None:
            await self._refresh_all()
            _logger.info("%s", self._offer())
            self._watching = asyncio.create_task(self._watch_forever())

    @property
    def not_served(self) -> dict[str, str]:
        """Name -> why, for all that is meant for an adapter and has no request let in."""
        failed = {name: why for name in self._failed if (why := self.why_refused(name))}
        return {**self.unfit, **self.refused, **failed}

    def _offer(self) -> str:
        """What the folder came to, for the log."""
        refused = self.not_served
        told = ", ".join(f"{name!r}" for name in itertools.islice(refused, MOST_TOLD))
        if len(refused) > MOST_TOLD:
            told += f" and {len(refused) - MOST_TOLD} more"
        count = len(self._models.lora_requests)
        folder = str(self._folder.root)  # type: ignore[union-attr]
        where = f" ({told}; reasons above and in GET /chameleon/state)" if refused else ""
        return f"Chameleon serves {count} adapters of {folder!r}; {len(refused)} refused{where}"

    async def check(self, path: str, name: str) -> AdapterInfo:
        """The adapter at a path (or a hub's name), if this engine can serve it, under that name.

        Raises:
            AdapterError: naming the adapter and what is wrong.
        """
        return await asyncio.to_thread(_check, path, name, self._limits)

    async def publish(
        self, name: str, path: str, info: AdapterInfo, *, is_3d: bool = False
    ) -> None:
        """Announce one adapter to the engine; it loads when the first request comes."""
        await self._announce([_announcement(name, path, info, is_3d)])

    async def withdraw(self, name: str) -> None:
        """Tell the engine that no new request will name this adapter."""
        await self._engine.call_utility_async(WITHDRAW, [name])

    async def refresh(self, name: str) -> None:
        """If this unknown name is a folder that came since the last look, publish it now.

        Afterwards `refused` also tells why a folder whose weights are missing is not served. Looks
        at no other folder: what clients ask for costs the same however many adapters there are.
        """
        if self._folder is None or self._models.is_base_model(name):
            return
        if name in self._models.lora_requests:
            return
        stamp = await asyncio.to_thread(self._folder.try_stamp, name)
        if stamp is not None:
            await self._refresh_one(name, stamp)
        if name in self._stamps:
            return
        self.refused.pop(name, None)  # half a folder, or none
        if await asyncio.to_thread(self._folder.try_path, name) is not None:
            found = await asyncio.to_thread(_check_folders, self._folder, [name], self._limits)
            if isinstance(found[name], AdapterError):
                self.refused[name] = str(found[name])

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(self._scan_s)
            try:
                await self._refresh_all()
            except Exception as error:  # the watch outlives one bad look
                if self._is_news(f"{type(error).__name__}: {error}"):
                    _logger.exception(
                        "Looking for adapters failed; trying again every %s s", self._scan_s
                    )

    def _is_news(self, trouble: str) -> bool:
        """Whether the last look had not this trouble; "" for none."""
        is_news = trouble != self._trouble
        self._trouble = trouble
        return is_news

    async def _refresh_one(self, name: str, stamp: str) -> None:
        """Bring the offer in line with one folder that is there."""
        async with self._lock:
            if self._stamps.get(name) != stamp:
                await self._publish_all([name])
                self._stamps[name] = stamp

    async def _refresh_all(self) -> None:
        """Bring the offer in line with the folder."""
        async with self._lock:
            try:
                seen, left_out = await asyncio.to_thread(_look, self._folder)  # type: ignore[arg-type]
            except AdapterError as error:
                if self._is_news(str(error)):
                    _logger.warning("%s; adapters offered before stay offered", error)
                return
            gone = [name for name in self._stamps if name not in seen]
            changed = [name for name, stamp in seen.items() if self._stamps.get(name) != stamp]
            self.refused = {name: why for name, why in self.refused.items() if name in seen}
            for name in gone:
                if name in self._models.lora_requests:
                    _logger.info("Adapter %r removed: its files have gone", name)
            await self._withdraw_all(gone)
            await self._publish_all([n for n in changed if not self._models.is_base_model(n)])
            self._explain(left_out | {n: _SHADOWED for n in seen if self._models.is_base_model(n)})
            self._stamps = seen  # last: a look that failed is made again
            if self._is_news(""):
                _logger.info("Looking for adapters works again")

    def _explain(self, left_out: dict[str, str]) -> None:
        """Tell why entries are no adapters, if the look before found them so too: one may be half-copied."""
        before = left_out if self._left_out is None else self._left_out
        unfit = {name: why for name, why in left_out.items() if before.get(name) == why}
        for name, why in unfit.items():
            if self.unfit.get(name) != why:
                _logger.warning("Adapter not served: adapter %r: %s", name, why)
        self._left_out, self.unfit = left_out, unfit

    async def _publish_all(self, names: list[str]) -> None:
        if not names:
            return
        root = self._folder.root  # type: ignore[union-attr]
        checked = await asyncio.to_thread(_check_folders, self._folder, names, self._limits)  # type: ignore[arg-type]
        good = {name: info for name, info in checked.items() if isinstance(info, AdapterInfo)}
        for name, found in checked.items():
            before = self.refused.pop(name, None)
            if isinstance(found, AdapterError):
                self.refused[name] = str(found)
                if before != str(found):
                    _logger.warning("Adapter not served: %s", found)
        broken = [name for name in names if name in self.refused]
        await self._withdraw_all([name for name in broken if name in self._models.lora_requests])
        await self._announce(
            [_announcement(name, str(root / name), info, False) for name, info in good.items()]
        )
        for name, info in good.items():
            done = "replaced" if name in self._models.lora_requests else "added"
            if self._watching is not None:  # at the start they are counted
                _logger.info("Adapter %r %s: rank %d, %d bytes", name, done, info.rank, info.nbytes)
            self._list(name, str(root / name))

    async def _withdraw_all(self, names: list[str]) -> None:
        for name in names:
            self._models.lora_requests.pop(name, None)
        if names:
            await self._engine.call_utility_async(WITHDRAW, names)

    async def _announce(self, sources: list[Announcement]) -> None:
        if sources:
            await self._engine.call_utility_async(ANNOUNCE, [asdict(s) for s in sources])

    def _list(self, name: str, path: str) -> None:
        from vllm.lora.request import LoRARequest

        former = self._models.lora_requests.get(name)  # another content is another LoRARequest
        number = former.lora_int_id if former else self._models.lora_id_counter.inc(1)
        self._models.lora_requests[name] = LoRARequest(name, number, path)


def has_head(model_config: Any) -> bool:
    """Whether the model is a classifier, whose head an adapter may replace; as vLLM decides it."""
    score_type = getattr(model_config, "score_type", None)  # vLLM 0.26 replaces no heads
    return bool(model_config.runner_type == "pooling" and score_type == "cross-encoder")


def require_name(name: str) -> None:
    """Nothing if an adapter may be loaded under that name; it goes to logs, pages and metrics.

    Raises:
        AdapterInvalidError: it is empty, too long or cannot be printed.
    """
    if not is_name(name):
        raise AdapterInvalidError(
            f"lora_name is {name[:60]!r}, of {len(name)} characters; way out: give a name of 1 to "
            f"{MAX_NAME_BYTES} bytes that can be printed"
        )


def _announcement(name: str, path: str, info: AdapterInfo, is_3d: bool) -> Announcement:
    return Announcement(name, path, info.fingerprint, info.nbytes, info.rank, is_3d)


def _check(path: str, name: str, limits: AdapterLimits) -> AdapterInfo:
    return require_servable(resolved(path, name), limits, name=name)


def _look(folder: AdapterFolder) -> tuple[dict[str, str], dict[str, str]]:
    """The adapters' stamps, and why other folders are left out."""
    seen = folder.scan()
    return seen, folder.left_out(seen)


def _check_folders(
    folder: AdapterFolder, names: Iterable[str], limits: AdapterLimits
) -> dict[str, AdapterInfo | AdapterError]:
    found: dict[str, AdapterInfo | AdapterError] = {}
    roots = folder.real_roots
    for name in names:
        try:
            found[name] = require_servable(folder.root / name, limits, roots)
        except AdapterError as error:
            found[name] = error
    return found


class NameLocks:
    """A lock for each name, which lives while somebody uses it. Its length is how many do."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def __getitem__(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    def __len__(self) -> int:
        return len(self._locks)

"""The adapters one API server offers: checked there, announced to the engine, listed to clients.

Checking reads headers in a thread of the API server, so neither the engine nor other requests wait.
The weights are read when an adapter is first asked for, and when its files have changed since: only so
is it known which content they are.
"""

import asyncio
import functools
import itertools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from chameleon_lora.adapters import (
    AdapterFolder,
    AdapterInfo,
    AdapterLimits,
    read_fingerprint,
    require_servable,
)
from chameleon_lora.adapters.watching import FolderWatch
from chameleon_lora.engine_vllm.api.patience import HANGS, PatientWork, look
from chameleon_lora.engine_vllm.messages import ANNOUNCE, WITHDRAW, Announcement
from chameleon_lora.engine_vllm.sources import largest_bytes, resolved
from chameleon_lora.errors import (
    AdapterError,
    AdapterUnreadableError,
)

T = TypeVar("T")
REGISTRY = "chameleon_registry"
MOST_TOLD = 10
MOST_READ_AT_ONCE = 8
PATIENCE_S = 5.0  # that a request waits until its adapter's content is known; a disk may hang
CHECKED, CHECKED_AT_START = 8, 200  # before others have their turn
LOAD_PATIENCE_S = 30.0  # for an adapter that a request says where to find
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

    def __init__(
        self, models: Any, folder: AdapterFolder | None, scan_s: float, scan_all_s: float = 60.0
    ) -> None:
        self._models = models
        self._engine = models.engine_client.engine_core
        config = models.engine_client.vllm_config
        self._limits = AdapterLimits(
            config.lora_config.max_lora_rank, largest_bytes(), has_head(config.model_config)
        )
        self._folder = folder
        self._followed = FolderWatch(folder, scan_all_s) if folder else None
        self._patient = PatientWork(self._followed.may_hang if self._followed else None)
        self._patient_load = PatientWork(patience_s=LOAD_PATIENCE_S)
        self._scan_s = scan_s
        self._stamps: dict[str, str | None] = {}  # None where the next look is to be a thorough one
        self._fingerprints: dict[str, str] = {}  # of what is offered, once somebody asked for it
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._readers = ThreadPoolExecutor(MOST_READ_AT_ONCE, "chameleon-content")
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

    def found_changed(self, lora_request: Any) -> None:
        """The engine found other files than it was told of: whatever their stamp, they are looked into."""
        if lora_request.lora_name in self._stamps:
            self._stamps[lora_request.lora_name] = None

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
        work = functools.partial(_check, path, limits=self._limits)
        return await self._patiently(work, name)

    async def publish(
        self, name: str, path: str, info: AdapterInfo, *, is_3d: bool = False
    ) -> None:
        """Announce one adapter to the engine; it loads when the first request comes.

        Raises:
            AdapterError: its files cannot be read.
        """
        fingerprint = await self._patiently(lambda _: read_fingerprint(info.path), name)
        found = _Found(info, fingerprint)
        await self._announce([_announcement(name, path, found, is_3d)])

    async def _patiently(self, work: Callable[[str], T], name: str) -> T:
        found = await self._patient_load.one(work, name)
        if found is None:
            raise AdapterUnreadableError(f"adapter {name!r}: {HANGS}")
        return found

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
            await self._look_into(name)
            return
        stamp = await self._patient.one(self._folder.try_stamp, name)
        if stamp is not None:
            await self._refresh_one(name, stamp)
        if name in self._stamps:
            return
        self.refused.pop(name, None)  # half a folder, or none
        if name in self._patient.hung:
            self.refused[name] = f"adapter {name!r}: {HANGS}"
        elif await self._patient.one(self._folder.try_path, name) is not None:
            found = await self._patient.one(self._check_folder, name)
            if isinstance(found, AdapterError):
                self.refused[name] = str(found)

    async def _look_into(self, name: str) -> None:
        """Afterwards the engine knows which bytes this adapter's files hold, unless reading takes long.

        Once for each adapter: reading all of them at the start would take too long.
        """
        if name in self._fingerprints or name not in self._stamps:
            return
        if name not in self._reading:
            self._reading[name] = asyncio.create_task(self._read(name))
        await asyncio.wait({self._reading[name]}, timeout=PATIENCE_S)

    async def _read(self, name: str) -> None:
        try:
            stamp, loop = self._stamps[name], asyncio.get_running_loop()
            work = functools.partial(self._check_folder, name, reads=True)
            found = await loop.run_in_executor(self._readers, work)
            is_current = self._stamps.get(name) == stamp and name in self._models.lora_requests
            if isinstance(found, _Found) and found.fingerprint is not None and is_current:
                self._fingerprints[name] = found.fingerprint
                await self._announce([self._announcement(name, found)])
        finally:
            del self._reading[name]

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
        if self._stamps.get(name) != stamp:
            await self._publish_all({name: stamp})

    async def _refresh_all(self) -> None:
        """Bring the offer in line with the folder."""
        try:
            seen, left_out = await look(self._followed, self._patient, self._stamps)  # type: ignore[arg-type]
        except AdapterError as error:
            if self._is_news(str(error)):
                _logger.warning("%s; adapters offered before stay offered", error)
            return
        news: dict[str, str] = {}
        if seen != self._stamps:
            await self._withdraw_gone(seen)
            news = {name: stamp for name, stamp in seen.items() if self._stamps.get(name) != stamp}
            await self._publish_all(news)
        self._explain(left_out | {n: _SHADOWED for n in news if self._models.is_base_model(n)})
        if self._is_news(""):
            _logger.info("Looking for adapters works again")

    async def _withdraw_gone(self, seen: dict[str, str]) -> None:
        async with self._lock:
            gone = [name for name in self._stamps if name not in seen]
            self.refused = {name: why for name, why in self.refused.items() if name in seen}
            for name in gone:
                if name in self._models.lora_requests:
                    _logger.info("Adapter %r removed: its files have gone", name)
            await self._withdraw_all(gone)
            for name in gone:
                del self._stamps[name]

    def _explain(self, left_out: dict[str, str]) -> None:
        """Tell why entries are no adapters, if the look before found them so too: one may be half-copied."""
        before = left_out if self._left_out is None else self._left_out
        unfit = {name: why for name, why in left_out.items() if before.get(name) == why}
        for name, why in unfit.items():
            if self.unfit.get(name) != why:
                _logger.warning("Adapter not served: adapter %r: %s", name, why)
        self._left_out, self.unfit = left_out, unfit

    async def _publish_all(self, stamps: dict[str, str]) -> None:
        """Offer what is sound of these, a few at a time, as it was when it had these stamps.

        What was read before is read again, after all others.
        """
        names = [name for name in stamps if not self._models.is_base_model(name)]
        to_read = {name for name in names if name in self._fingerprints}
        rest = [name for name in names if name not in to_read]
        at_once = CHECKED if self._watching else CHECKED_AT_START
        async for checked in self._patient.each(self._check_folder, rest, at_once):
            await self._take_up(checked, stamps)
        work = functools.partial(self._check_folder, reads=True)
        async for checked in self._patient_load.each(work, sorted(to_read), 1):
            await self._take_up(checked, stamps)

    async def _take_up(
        self, checked: dict[str, "_Found | AdapterError"], stamps: dict[str, str]
    ) -> None:
        async with self._lock:
            self._note_refused(checked)
            sound = {name: it for name, it in checked.items() if isinstance(it, _Found)}
            good = {name: it for name, it in sound.items() if not self._is_offered(name, it)}
            broken = checked.keys() - sound.keys()
            await self._withdraw_all([n for n in broken if n in self._models.lora_requests])
            await self._announce([self._announcement(name, found) for name, found in good.items()])
            for name, found in good.items():
                done = "replaced" if name in self._models.lora_requests else "added"
                told = (name, done, found.info.rank, found.info.nbytes)
                if self._watching is not None:  # at the start they are counted
                    _logger.info("Adapter %r %s: rank %d, %d bytes", *told)
                self._fingerprints.pop(
                    name, None
                )  # read meanwhile, who knows whether before the change
                if found.fingerprint is not None:
                    self._fingerprints[name] = found.fingerprint
                self._list(name)
            self._stamps |= {
                name: stamps[name] for name in checked
            }  # last: what failed is done again

    def _note_refused(self, checked: dict[str, "_Found | AdapterError"]) -> None:
        for name, found in checked.items():
            before = self.refused.pop(name, None)
            if isinstance(found, AdapterError):
                self.refused[name] = str(found)
                if before != str(found):
                    _logger.warning("Adapter not served: %s", found)

    def _check_folder(self, name: str, *, reads: bool = False) -> "_Found | AdapterError":
        """What is in a folder, its content if that is to be read; for a thread."""
        folder = self._folder
        assert folder is not None
        path, roots = folder.root / name, folder.real_roots
        try:
            info = require_servable(path, self._limits, roots)
            return _Found(info, read_fingerprint(path, roots) if reads else None)
        except AdapterError as error:
            return error

    def _is_offered(self, name: str, found: "_Found") -> bool:
        """Whether only the files' times or rights are others, or these very bytes were written again."""
        former = self._fingerprints.get(name)
        return former is not None and former == found.fingerprint

    async def _withdraw_all(self, names: list[str]) -> None:
        for name in names:
            self._models.lora_requests.pop(name, None)
            self._fingerprints.pop(name, None)
        if names:
            await self._engine.call_utility_async(WITHDRAW, names)

    async def _announce(self, sources: list[Announcement]) -> None:
        if sources:
            await self._engine.call_utility_async(ANNOUNCE, [asdict(s) for s in sources])

    def _announcement(self, name: str, found: "_Found") -> Announcement:
        return _announcement(name, str(self._folder.root / name), found, is_3d=False)  # type: ignore[union-attr]

    def _list(self, name: str) -> None:
        from vllm.lora.request import LoRARequest

        former = self._models.lora_requests.get(name)  # another content is another LoRARequest
        number = former.lora_int_id if former else self._models.lora_id_counter.inc(1)
        path = self._folder.root / name  # type: ignore[union-attr]
        self._models.lora_requests[name] = LoRARequest(name, number, str(path))


def has_head(model_config: Any) -> bool:
    """Whether the model is a classifier, whose head an adapter may replace; as vLLM decides it."""
    score_type = getattr(model_config, "score_type", None)  # vLLM 0.26 replaces no heads
    return bool(model_config.runner_type == "pooling" and score_type == "cross-encoder")


@dataclass(frozen=True, slots=True)
class _Found:
    """A sound adapter, and the fingerprint of its bytes if they were read."""

    info: AdapterInfo
    fingerprint: str | None


def _announcement(name: str, path: str, found: _Found, is_3d: bool) -> Announcement:
    info = found.info
    return Announcement(name, path, found.fingerprint, info.nbytes, info.rank, is_3d)


def _check(path: str, name: str, limits: AdapterLimits) -> AdapterInfo:
    return require_servable(resolved(path, name), limits, name=name)

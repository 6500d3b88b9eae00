"""The adapters one API server offers: checked there, announced to the engine, listed to clients.

Checking reads headers in a thread of the API server, so neither the engine nor other requests wait.
The weights are read when an adapter is first asked for, and when its files have changed since: only so
is it known which content they are.
"""

import asyncio
import functools
import itertools
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from chameleon_lora.adapters import AdapterFolder, AdapterInfo, read_fingerprint
from chameleon_lora.adapters.looks import Changes, KnownAdapters, Look
from chameleon_lora.adapters.watching import FolderWatch
from chameleon_lora.engine_vllm.api.checks import Checked, check_folder, check_path
from chameleon_lora.engine_vllm.api.last_trouble import LastTrouble
from chameleon_lora.engine_vllm.api.patience import HANGS, PatientWork, look
from chameleon_lora.engine_vllm.api.refusals import Refusals
from chameleon_lora.engine_vllm.api.shutdown import is_shutting_down
from chameleon_lora.engine_vllm.errors import LoadFailedError
from chameleon_lora.engine_vllm.messages import ANNOUNCE, TRY, WITHDRAW, Announcement
from chameleon_lora.engine_vllm.sources import servable_limits
from chameleon_lora.errors import AdapterError, AdapterTimeoutError, AdapterUnreadableError
from chameleon_lora.policy.plan import Fault

REGISTRY = "chameleon_registry"
MOST_TOLD = 10
MOST_READ_AT_ONCE = 8
PATIENCE_S = 5.0  # that a request waits until its adapter's content is known; a disk may hang
CHECKED, CHECKED_AT_START = 8, 200  # before others have their turn
LOAD_PATIENCE_S, MOST_LOAD_PATIENCE_S = 30.0, 480.0  # where all bytes are read
_SHADOWED = "the base model has that name; way out: rename the folder"
_logger = logging.getLogger(f"vllm.{__name__}")


def registry_of(owner: Any) -> "AdapterRegistry | None":
    """The registry of an OpenAIServingModels or its engine's client; None without Chameleon's scheduler."""
    registry: AdapterRegistry | None = getattr(owner, REGISTRY, None)
    return registry


class AdapterRegistry:
    """What one API server knows of adapters on disk. Owner: its OpenAIServingModels.

    Attributes:
        refusals: why adapters are not served.
        resolvers_trouble: the kind of error that vLLM's resolvers had last.
    """

    def __init__(
        self, models: Any, folder: AdapterFolder | None, scan_s: float, scan_all_s: float = 60.0
    ) -> None:
        self._models = models
        self._engine = models.engine_client.engine_core
        self._limits = servable_limits(models.engine_client.vllm_config)
        self._folder = folder
        self._followed = FolderWatch(folder, scan_all_s) if folder else None
        self._patient = PatientWork(self._followed.may_hang if self._followed else None)
        self._patient_load = PatientWork(None, LOAD_PATIENCE_S, MOST_LOAD_PATIENCE_S)
        self._scan_s = scan_s
        self._settled: Look | None = None  # there is nothing to be done about it any more
        self._known = KnownAdapters()
        self._fingerprints: dict[str, str] = {}  # of what is offered, once somebody asked for it
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._turns = asyncio.Semaphore(MOST_READ_AT_ONCE)
        self._lock = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self._trouble = LastTrouble()
        self.resolvers_trouble = LastTrouble()
        self._is_started = False
        self.refusals = Refusals(models)

    def found_changed(self, lora_request: Any) -> None:
        """The engine found other files than it was told of: whatever their stamp, they are looked into."""
        if lora_request.lora_name in self._known.stamps:
            self._known.stamps[lora_request.lora_name] = None
            self._settled = None

    async def start(self) -> None:
        """Offer what the folder holds, then follow its changes until the server stops."""
        self._is_started = True
        if self._folder is not None:
            await self._refresh_all()
            _logger.info("%s", self._offer())
            self._watching = asyncio.create_task(self._watch_forever())

    def _offer(self) -> str:
        """What the folder came to, for the log."""
        refused = self.refusals.all
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
        work = functools.partial(check_path, path, limits=self._limits)
        return await self._patient_load.one(work, name)

    async def publish(
        self, name: str, path: str, info: AdapterInfo, *, is_3d: bool, is_tried: bool
    ) -> None:
        """Announce one adapter to the engine; it loads when the first request comes.

        With `is_tried` it loads now, and is announced if that goes well; while the server starts, never.

        Raises:
            AdapterError: its files cannot be read.
            LoadFailedError: it cannot be loaded; what had the name before goes on.
        """
        fingerprint = await self._patient_load.one(lambda _: read_fingerprint(info.path), name)
        source = Checked(info, fingerprint).announcement(name, path, is_3d=is_3d)
        if not (is_tried and self._is_started):
            await self._announce([source])
        elif failure := await self._engine.call_utility_async(TRY, asdict(source)):
            reason, fault = failure
            raise LoadFailedError(reason, Fault(fault))

    async def withdraw(self, name: str) -> None:
        """Tell the engine that no new request will name this adapter."""
        self.refusals.withdrawn(name)
        await self._engine.call_utility_async(WITHDRAW, [name])

    async def refresh(self, name: str) -> None:
        """If this unknown name is a folder that came since the last look, publish it now.

        Afterwards `refusals` also tells why a folder whose weights are missing is not served. Looks
        at no other folder: what clients ask for costs the same however many adapters there are.

        Raises:
            AdapterUnreadableError: its files cannot be read now, by no fault of theirs.
        """
        if self._folder is None or self._models.is_base_model(name):
            return
        if name not in self._models.lora_requests:
            await self._look_for(self._folder, name)
        await self._look_into(name)

    async def _look_for(self, folder: AdapterFolder, name: str) -> None:
        """Publish what a folder of that name holds, or note why there is nothing to publish.

        Raises:
            AdapterUnreadableError: that cannot be told now, and is not kept: the next look may tell.
        """
        stamp = await self._patient.one(folder.try_stamp, name)
        if stamp is not None:
            await self._refresh_one(name, stamp)
        if self._known.stamps.get(name) is not None:
            return
        refused = self.refusals.refused
        if name in self._known.stamps and name in refused:
            raise AdapterUnreadableError(refused[name])
        if stamp is not None:  # it takes long to look, or it changed too often to be looked at
            raise AdapterTimeoutError(f"adapter {name!r}: {HANGS}")
        refused.pop(name, None)  # half a folder, or none
        if await self._patient.one(folder.try_path, name) is not None:
            found = await self._patient.one(self._check, name)
            if isinstance(found, AdapterUnreadableError):
                raise found
            if isinstance(found, AdapterError):
                refused[name] = str(found)

    async def _look_into(self, name: str) -> None:
        """Afterwards the engine knows which bytes this adapter's files hold, unless reading takes long.

        Once for each adapter: reading all of them at the start would take too long.
        """
        if name in self._fingerprints or not self._is_own(name):
            return
        if name not in self._reading:
            reading = self._reading[name] = asyncio.create_task(self._read(name))
            reading.add_done_callback(lambda it: it.cancelled() or it.exception())  # nobody waits
        reading = self._reading[name]
        await asyncio.wait({reading}, timeout=PATIENCE_S)
        if reading.done():
            reading.result()  # raises what the engine's client raised

    async def _read(self, name: str) -> None:
        try:
            stamp, work = self._known.stamps[name], functools.partial(self._check, reads=True)
            async with self._turns:
                found = await self._patient_load.one(work, name)
            is_current = self._known.stamps.get(name) == stamp and self._is_own(name)
            if isinstance(found, Checked) and found.fingerprint is not None and is_current:
                self._fingerprints[name] = found.fingerprint
                await self._announce([self._announcement(name, found)])
        except AdapterTimeoutError:
            return  # the engine is asked all the same, which says what is wrong if that lasts
        except Exception:
            self._fingerprints.pop(name, None)
            raise
        finally:
            del self._reading[name]

    def _is_own(self, name: str) -> bool:
        """Whether the folder's adapter is served by that name, and not one loaded by request."""
        served = self._models.lora_requests.get(name)
        is_there = served is not None and served.lora_path == str(self._folder.root / name)  # type: ignore[union-attr]
        is_3d = getattr(served, "is_3d_lora_weight", False)
        return is_there and name in self._known.stamps and not is_3d

    async def _watch_forever(self) -> None:
        client = self._models.engine_client
        while not is_shutting_down(client):
            await asyncio.sleep(self._scan_s)
            try:
                await self._refresh_all()
            except Exception as error:  # the watch outlives one bad look
                trouble = f"{type(error).__name__}: {error}"
                if not is_shutting_down(client) and self._trouble.note(trouble):
                    _logger.exception(
                        "Looking for adapters failed; trying again every %s s", self._scan_s
                    )

    async def _refresh_one(self, name: str, stamp: str) -> None:
        """Bring the offer in line with one folder that is there."""
        if self._known.is_news(name, stamp):
            await self._publish_all({name: stamp})
            self._known.looked_into({name} & self._known.stamps.keys())

    async def _refresh_all(self) -> None:
        """Bring the offer in line with the folder."""
        try:
            seen = await look(self._followed, self._patient, self._known.stamps)  # type: ignore[arg-type]
            if seen is self._settled:
                return
            changes = self._known.compare(seen)
        except AdapterError as error:
            if self._trouble.note(str(error)):
                _logger.warning("%s; adapters offered before stay offered", error)
            return
        for name in self.refusals.refused.keys() - seen.stamps.keys():
            del self.refusals.refused[name]
        await self._withdraw_gone(changes)
        is_base = self._models.is_base_model
        news = {name: seen.stamps[name] for name in changes.changed if not is_base(name)}
        unread = await self._publish_all(news)
        shadowed = {name: _SHADOWED for name in seen.stamps if is_base(name)}
        self.refusals.left_out(self._known.left_out_twice(seen.left_out | shadowed))
        untried = unread - self.refusals.refused.keys() - self.refusals.unread.keys()
        untried |= self._patient.hung | self._patient_load.hung
        done = replace(changes, changed=[n for n in changes.changed if n not in untried])
        self._known.accept(seen, done, unread)  # last: a look that failed is made again
        self._settled = seen if self._known.is_settled else None
        if self._trouble.note(None):
            _logger.info("Looking for adapters works again")

    async def _withdraw_gone(self, changes: Changes) -> None:
        for name in changes.gone:
            if name in self._models.lora_requests:
                _logger.info("Adapter %r removed: its files have gone", name)
        async with self._lock:
            await self._withdraw_all(changes.gone)
        if changes.awaited:
            _logger.warning(
                "The files of %d adapters are not there, the first is %r; if they are not at the next "
                "look, it is served no longer", len(changes.awaited), changes.awaited[0],
            )  # fmt: skip

    async def _publish_all(self, stamps: Mapping[str, str | None]) -> set[str]:
        """Offer what these hold now, a few at a time; answers those whose files could not be read.

        What was read before is read again, after all others.
        """
        unread = set(stamps)
        to_read = [name for name in stamps if name in self._fingerprints]
        at_once = CHECKED if self._watching else CHECKED_AT_START
        rest = [name for name in stamps if name not in self._fingerprints]
        patient = self._patient_load if self._limits.converts_bin else self._patient  # seconds
        async for checked in patient.each(self._check, rest, at_once):
            for name in checked:  # read meanwhile, maybe before the change
                self._fingerprints.pop(name, None)
            unread -= await self._take_up(checked, stamps)
        work = functools.partial(self._check, reads=True)
        async for checked in self._patient_load.each(work, to_read, 1):
            unread -= await self._take_up(checked, stamps)
        return unread

    async def _take_up(
        self, checked: dict[str, Checked | AdapterError], stamps: Mapping[str, str | None]
    ) -> set[str]:
        """Offer what is sound of these; answers those that could be read."""
        async with self._lock:
            known = self._known.stamps
            checked = {name: it for name, it in checked.items() if known.get(name) != stamps[name]}
            await self._offer_sound(checked)
            unread = {n for n, it in checked.items() if isinstance(it, AdapterUnreadableError)}
            for name in checked:
                self._known.stamps[name] = None if name in unread else stamps[name]
        return stamps.keys() & self._known.stamps.keys() - unread

    async def _offer_sound(self, checked: dict[str, Checked | AdapterError]) -> None:
        good = {
            name: found
            for name, found in checked.items()
            if isinstance(found, Checked) and not self._is_offered(name, found)
        }
        self.refusals.checked(checked)
        broken = [name for name in checked if name in self.refusals.refused]
        await self._withdraw_all([name for name in broken if name in self._models.lora_requests])
        await self._announce([self._announcement(name, found) for name, found in good.items()])
        for name, found in good.items():
            done = "replaced" if name in self._models.lora_requests else "added"
            told = (name, done, found.info.rank, found.info.nbytes)
            if self._watching is not None:  # at the start they are counted
                _logger.info("Adapter %r %s: rank %d, %d bytes", *told)
            if found.fingerprint is not None:
                self._fingerprints[name] = found.fingerprint
            self._list(name)

    def _check(self, name: str, *, reads: bool = False) -> Checked | AdapterError:
        return check_folder(self._folder, name, self._limits, reads=reads)  # type: ignore[arg-type]

    def _is_offered(self, name: str, found: Checked) -> bool:
        """Whether only the files' times or rights are others, or these very bytes were written again."""
        former = self._fingerprints.get(name) if self._is_own(name) else None
        return former is not None and former == found.fingerprint

    async def _withdraw_all(self, names: list[str]) -> None:
        for name in names:
            self._models.lora_requests.pop(name, None)
            self._fingerprints.pop(name, None)
            self.refusals.withdrawn(name)
        if names:
            await self._engine.call_utility_async(WITHDRAW, names)

    async def _announce(self, sources: list[Announcement]) -> None:
        if sources:
            await self._engine.call_utility_async(ANNOUNCE, [asdict(s) for s in sources])

    def _announcement(self, name: str, found: Checked) -> Announcement:
        return found.announcement(name, str(self._folder.root / name))  # type: ignore[union-attr]

    def _list(self, name: str) -> None:
        from vllm.lora.request import LoRARequest

        former = self._models.lora_requests.get(name)  # another content is another LoRARequest
        number = former.lora_int_id if former else self._models.lora_id_counter.inc(1)
        path = self._folder.root / name  # type: ignore[union-attr]
        self._models.lora_requests[name] = LoRARequest(name, number, str(path))

"""Work on files that may hang, as on a network disk whose server is away, without waiting for it for long.

Python cannot end a thread that hangs, and waits for those of its pools when it ends. So each part of the
work has a thread of its own, which is left to itself when it does not come on.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Iterable
from dataclasses import replace
from typing import Generic, TypeVar

from chameleon_lora.adapters.folder import shown
from chameleon_lora.adapters.looks import Look
from chameleon_lora.adapters.watching import FolderWatch
from chameleon_lora.errors import AdapterNotFoundError, AdapterTimeoutError

T = TypeVar("T")
PATIENCE_S, MOST_PATIENCE_S = 1.0, 16.0
MOST_HUNG = 16
LOOKED_AT = 1000  # entries of a folder, before others have their turn
ROOT = "/"  # no adapter has that name
HANGS = "its files do not answer; way out: see to the disk that they lie on"
CROWDED = (
    "it cannot be looked at now, for the files of too many others do not answer; way out: ask again in a "
    "moment, and see to the disks that those lie on (GET /chameleon/state names them)"
)


class _Part(Generic[T]):
    """Some names, and what is found out about them one after another in a thread."""

    def __init__(self, work: Callable[[str], T], names: list[str]) -> None:
        self._work, self.names = work, names
        self.found: dict[str, T] = {}
        self.error: BaseException | None = None
        self.left_at = ""  # what comes after this name is done by others

    def run(self, ended: Callable[[], None]) -> None:
        """Go through the names, as far as it goes."""
        try:
            for name in self.names:
                if self.left_at:
                    break
                self.found[name] = self._work(name)
        except BaseException as error:  # noqa: BLE001 - whoever waits raises it
            self.error = error
        ended()


class PatientWork:
    """Work by name, which may hang: at most `most_hung` times at once, half of that for names where it may well.

    A machine that is busy is no disk that hangs: what took longer than `patience_s` and came to its end after
    all makes it more patient, up to `most_s`. So in the end whatever is sound is found.

    Attributes:
        hung: the names on which it hangs now; nothing is begun for them until it has ended.
    """

    def __init__(
        self,
        may_hang: Callable[[str], bool] | None = None,
        patience_s: float = PATIENCE_S,
        most_s: float = MOST_PATIENCE_S,
        most_hung: int = MOST_HUNG,
    ) -> None:
        self._may_hang = may_hang
        self._most_hung = most_hung
        self._patience_s, self._most_s = patience_s, most_s
        self.hung: set[str] = set()

    async def each(
        self, work: Callable[[str], T], names: Iterable[str], at_once: int
    ) -> AsyncIterator[dict[str, T]]:
        """What it says of each name, so many at a time; others have their turn between two parts.

        Nothing of names on which it hangs, nor of those for which it hangs too often already.
        """
        todo = deque(names)
        while todo and len(self.hung) < self._most_hung:
            taken = [todo.popleft() for _ in range(min(at_once, len(todo)))]
            is_careful = len(self.hung) >= self._most_hung // 2
            part = _Part(work, [n for n in taken if not self._is_left_out(n, is_careful)])
            count = await self._wait(part)
            todo.extendleft(reversed(part.names[count + 1 :]))
            yield {name: part.found[name] for name in part.names[:count]}
            await asyncio.sleep(0)

    async def one(self, work: Callable[[str], T], name: str) -> T:
        """What it says of this name.

        Raises:
            AdapterTimeoutError: it hangs, or cannot be begun.
        """
        async for found in self.each(work, [name], 1):
            if name in found:
                return found[name]
        raise AdapterTimeoutError(f"adapter {name!r}: {HANGS if name in self.hung else CROWDED}")

    def _is_left_out(self, name: str, is_careful: bool) -> bool:
        may_hang = self._may_hang
        return name in self.hung or (is_careful and may_hang is not None and may_hang(name))

    async def _wait(self, part: _Part[T]) -> int:
        """How many names are done when it ends, or comes on no more. Raises what it raised."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        came_on_s = loop.time()

        def end() -> None:
            ended.set()
            if part.left_at:
                self.hung.discard(part.left_at)
                self._note_late(loop.time() - came_on_s)

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(end)

        threading.Thread(target=part.run, args=(tell,), name="chameleon-files", daemon=True).start()
        count = -1
        while not ended.is_set():
            if count == len(part.found) < len(part.names):
                part.left_at = part.names[count]
                self.hung.add(part.left_at)
                return count
            count, came_on_s = len(part.found), loop.time()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), self._patience_s)
        if part.error is not None:
            raise part.error
        return len(part.names)

    def _note_late(self, took_s: float) -> None:
        """One of which it was thought that it hangs has ended, after so long; a disk that did hang teaches nothing."""
        if took_s <= self._most_s:
            self._patience_s = max(self._patience_s, min(2 * took_s, self._most_s))


async def look(watch: FolderWatch, patient: PatientWork, known: Container[str]) -> Look:
    """What the folder holds, as far as the disk answers. An adapter that is known and hangs is as it was.

    Raises:
        AdapterNotFoundError: the folder cannot be listed, or hangs.
    """
    now_s = asyncio.get_running_loop().time()
    try:
        due = await patient.one(lambda _: watch.due(now_s), ROOT)
    except AdapterTimeoutError as error:
        why = str(error).removeprefix(f"adapter {ROOT!r}: ")
        raise AdapterNotFoundError(
            f"the adapter folder {str(watch.root)!r} hangs: {why}"
        ) from error
    async for _ in patient.each(watch.look_at, due, LOOKED_AT):
        pass
    found = watch.look()
    hung = {shown(name): HANGS for name in patient.hung if name not in known}
    return replace(found, left_out=found.left_out | hung) if hung else found

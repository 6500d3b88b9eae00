"""A file of keys, read at start and again whenever it has changed."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from chameleon_lora.adapters.content import stamp_of
from chameleon_lora.adapters.untrusted import open_regular
from chameleon_lora.engine_vllm.api.last_trouble import LastTrouble
from chameleon_lora.engine_vllm.api.patience import PatientWork
from chameleon_lora.errors import (
    AdapterInvalidError,
    AdapterTimeoutError,
    AdapterUnreadableError,
    ConfigError,
)

T = TypeVar("T")
LOOK_S = 2.0  # that a request waits for a look, at the most; a disk may hang
_logger = logging.getLogger(f"vllm.{__name__}")


class FollowedFile(Generic[T]):
    """What a file says. Owner: a server's `ApiKeys`. Looks at the file once in `scan_s`, when it is asked.

    A new file that is broken or missing changes nothing: what was read before stays, and the log says why.
    It is read at each look until that works, so that one failure keeps no key alive.

    Args:
        kind: how messages call such a file.
        parse: its text to what it says, or ConfigError.
        told: what was read, for the log.
        look_s: how long a request waits for a look.

    Attributes:
        value: what the last file that could be used says.

    Raises:
        ConfigError: the file cannot be used at the start.
    """

    def __init__(
        self,
        path: Path,
        scan_s: float,
        kind: str,
        parse: Callable[[str], T],
        told: Callable[[T], str],
        look_s: float = LOOK_S,
    ) -> None:
        self._path = path
        self._scan_s = scan_s
        self._kind, self._parse, self._told = kind, parse, told
        self._looked_s: float | None = None
        self._look_s = look_s
        self._patient = PatientWork(patience_s=look_s)
        self._trouble = LastTrouble()
        self._stamp, self.value = read_file(path, kind, parse)
        _logger.info("Read %s from %s", told(self.value), path)

    async def follow(self, now_s: float) -> None:
        """Afterwards `value` is that of the file, unless a look was had just now. Ends in any case."""
        if self._looked_s is not None and now_s - self._looked_s < self._scan_s:
            return
        self._looked_s = now_s
        try:
            found = await self._patient.one(self._look, str(self._path))
        except AdapterTimeoutError:
            self._tell(f"{self._kind} file {self._path} cannot be read in {self._look_s} s")
        except OSError as error:
            self._tell(f"{self._kind} file {self._path} cannot be read: {error.strerror}")
        except Exception as error:  # noqa: BLE001  # whatever a file can hold
            self._tell(str(error))
        else:
            self._take_up(found)

    def _look(self, _path: str) -> tuple[str, T]:
        """What the file is and says, read if it is another than before. For a thread; changes nothing."""
        is_known = stamp_of(self._path.stat()) == self._stamp
        known = self._stamp, self.value
        return known if is_known else read_file(self._path, self._kind, self._parse)

    def _take_up(self, found: tuple[str, T]) -> None:
        self._trouble.note(None)
        if found[0] != self._stamp:
            self._stamp, self.value = found
            _logger.info("Read %s from %s", self._told(self.value), self._path)

    def _tell(self, trouble: str) -> None:
        """Say it in the log, once until it is another."""
        if self._trouble.note(trouble):
            _logger.error("%s; what was read before stays", trouble)


def read_file(path: Path, kind: str, parse: Callable[[str], T]) -> tuple[str, T]:
    """What an opened file was before it was read, so that what is written meanwhile shows later; and what it says.

    Raises:
        ConfigError: it cannot be read, or holds what is not allowed.
    """
    what = f"{kind} file {path}"
    try:
        with open_regular(path) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            text = file.read().decode()
        return stamp, parse(text)
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}") from error
    except (AdapterInvalidError, AdapterUnreadableError) as error:
        raise ConfigError(f"{what} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} is not UTF-8: {error}") from error

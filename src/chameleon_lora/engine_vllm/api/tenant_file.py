"""The tenants' file, read at start and again whenever it has changed."""

import logging
import os
from pathlib import Path

from chameleon_lora.adapters.content import stamp_of
from chameleon_lora.adapters.untrusted import open_regular
from chameleon_lora.engine_vllm.api.last_trouble import LastTrouble
from chameleon_lora.engine_vllm.api.patience import PatientWork
from chameleon_lora.errors import AdapterInvalidError, AdapterUnreadableError, ConfigError
from chameleon_lora.tenants import KeyHash, TenantRegistry, parse_tenants

LOOK_S = 2.0  # that a request waits for a look, at the most; a disk may hang
_logger = logging.getLogger(f"vllm.{__name__}")


def read_tenants(path: Path) -> TenantRegistry:
    """The tenants a file names.

    Raises:
        ConfigError: it cannot be read, or holds what is not allowed.
    """
    return _read(path)[1]


class TenantFile:
    """The tenants of a server. Owner: its `AuthMiddleware`. Looks at the file once in `scan_s`, when it is asked.

    A new file that is broken or missing changes nothing: the former tenants stay, and the log says why.
    It is read at each look until that works, so that one failure keeps no key alive.

    Attributes:
        registry: those of the last file that could be used.

    Raises:
        ConfigError: the file cannot be used at the start.
    """

    def __init__(
        self, path: Path, scan_s: float, admin: KeyHash | None = None, look_s: float = LOOK_S
    ) -> None:
        self._path = path
        self._scan_s = scan_s
        self._admin = admin
        self._looked_s: float | None = None
        self._look_s = look_s
        self._patient = PatientWork(patience_s=look_s)
        self._trouble = LastTrouble()
        self._stamp, self.registry = self._read_usable()
        _logger.info("Read %d tenants from %s", len(self.registry.tenants), path)

    async def follow(self, now_s: float) -> None:
        """Afterwards `registry` is that of the file, unless a look was had just now. Ends in any case."""
        if self._looked_s is not None and now_s - self._looked_s < self._scan_s:
            return
        self._looked_s = now_s
        try:
            found = await self._patient.one(self._look, str(self._path))
        except OSError as error:
            self._tell(f"tenants file {self._path} cannot be read: {error.strerror}")
        except Exception as error:  # noqa: BLE001  # whatever a file can hold
            self._tell(str(error))
        else:
            self._take_up(found)

    def _look(self, _path: str) -> tuple[str, TenantRegistry]:
        """What the file is and holds, read if it is another than before. For a thread; changes nothing."""
        is_known = stamp_of(self._path.stat()) == self._stamp
        return (self._stamp, self.registry) if is_known else self._read_usable()

    def _take_up(self, found: tuple[str, TenantRegistry] | None) -> None:
        """Keep what was found; None if the disk hangs."""
        if found is None:
            self._tell(f"tenants file {self._path} cannot be read in {self._look_s} s")
            return
        self._trouble.note(None)
        if found[0] != self._stamp:
            self._stamp, self.registry = found
            _logger.info("Read %d tenants from %s", len(self.registry.tenants), self._path)

    def _read_usable(self) -> tuple[str, TenantRegistry]:
        stamp, registry = _read(self._path)
        owner = None if self._admin is None else registry.find(self._admin)
        if owner is not None:
            raise ConfigError(
                f"tenants file {self._path}: tenant {owner.name!r}: a key of it is also the admin's "
                "(serving.admin_key_hash); give each its own"
            )
        return stamp, registry

    def _tell(self, trouble: str) -> None:
        """Say it in the log, once until it is another."""
        if self._trouble.note(trouble):
            _logger.error("%s; the tenants read before stay", trouble)


def _read(path: Path) -> tuple[str, TenantRegistry]:
    """What an opened file was before it was read, so that what is written meanwhile shows later."""
    try:
        with open_regular(path) as file:
            stamp = stamp_of(os.fstat(file.fileno()))
            text = file.read().decode()
        return stamp, parse_tenants(text, str(path))
    except OSError as error:
        raise ConfigError(f"tenants file {path} cannot be read: {error.strerror}") from error
    except (AdapterInvalidError, AdapterUnreadableError) as error:
        raise ConfigError(f"tenants file {path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"tenants file {path} is not UTF-8: {error}") from error

"""The tenants' file, read at start and again whenever it has changed."""

import asyncio
import logging
from pathlib import Path

from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants import TenantRegistry, parse_tenants

_logger = logging.getLogger(f"vllm.{__name__}")
Stamp = tuple[int, int, int]


def read_tenants(path: Path) -> TenantRegistry:
    """The tenants a file names.

    Raises:
        ConfigError: it cannot be read, or holds what is not allowed.
    """
    try:
        return parse_tenants(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"tenants file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"tenants file {path} is not UTF-8: {error}") from error


class TenantFile:
    """The tenants of a server. Owner: its `AuthMiddleware`. Looks at the file once in `scan_s`, when it is asked.

    A new file that is broken or missing changes nothing: the former tenants stay, and the log says why.

    Raises:
        ConfigError: the file cannot be used at the start.
    """

    def __init__(self, path: Path, scan_s: float) -> None:
        self._path = path
        self._scan_s = scan_s
        self._stamp = _stamp(path)
        self._looked_s: float | None = None
        self.registry = read_tenants(path)
        _logger.info("Read %d tenants from %s", len(self.registry.tenants), path)

    async def follow(self, now_s: float) -> None:
        """Afterwards `registry` is that of the file, unless a look was had just now. Ends in any case."""
        if self._looked_s is not None and now_s - self._looked_s < self._scan_s:
            return
        self._looked_s = now_s
        stamp = await asyncio.to_thread(_stamp, self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self.registry = await asyncio.to_thread(read_tenants, self._path)
        except ConfigError as error:
            _logger.error("%s; the tenants read before stay", error)
        else:
            _logger.info("Read %d tenants from %s", len(self.registry.tenants), self._path)


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino

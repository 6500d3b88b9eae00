"""A private copy of one adapter's two files: what was checked is what is loaded.

vLLM opens an adapter's files by path, after our check, and maps the weights into memory. Files that
change in between would be loaded unchecked, and a file cut short while it is mapped ends the whole
process. So each load copies both files into memory, the weights so that nobody can write to them,
checks the copy, and shows vLLM a folder that leads to the copy and nothing else: no pickle, no pipe.
No disk is written to. Expressions of the configuration, which vLLM would run, are names there
(`patterns`).
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from chameleon_lora.adapters import AdapterLimits, require_servable
from chameleon_lora.adapters.config import CONFIG_NAME, read_config_bytes, without_expressions
from chameleon_lora.adapters.content import fingerprint_of, stamp_of
from chameleon_lora.adapters.header import (
    MAX_HEADER_BYTES,
    WEIGHTS_NAME,
    parse_header,
    read_header_bytes,
)
from chameleon_lora.adapters.pairs import pattern_names
from chameleon_lora.adapters.untrusted import open_regular
from chameleon_lora.errors import AdapterInvalidError

_STAGING, _IN_MEMORY = "chameleon-load-", "/dev/shm"
STAGED = re.compile(rf"\S*/{_STAGING}[^/\s]*/")  # where the copy is, in messages of vLLM
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_MOST_AT_ONCE_BYTES = 1 << 30
CHANGED = (
    "its files changed after it was announced; ask again in a moment, "
    "or load it anew with load_inplace"
)


@dataclass(frozen=True, slots=True)
class SealedCopy:
    """One adapter's files, copied and checked, the fingerprint of what was copied, and its modules' names."""

    folder: Path
    fingerprint: str
    modules: tuple[str, ...]


@contextmanager
def sealed_copy(
    folder: Path, fingerprint: str | None, limits: AdapterLimits
) -> Iterator[SealedCopy]:
    """While the block runs, a folder with the adapter as it is now; afterwards it is gone.

    Costs the bytes of the weights in memory, once, until nothing maps them any more.

    Args:
        folder: the adapter's, whatever it holds by now.
        fingerprint: of the files meant; None for whatever is there.
        limits: what the engine can hold.

    Raises:
        AdapterError: the files are not sound, above the limits, or not those that were announced.
    """
    with (
        _weights_of(folder, limits) as weights,
        os.fdopen(os.memfd_create(WEIGHTS_NAME, os.MFD_ALLOW_SEALING), "rb", buffering=0) as copy,
        os.fdopen(os.memfd_create(CONFIG_NAME), "wb", buffering=0) as config,
        _staging() as staging,
    ):
        os.posix_fadvise(weights.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        before = os.fstat(weights.fileno())
        _require_room(folder, before.st_size, limits)
        raw_config = read_config_bytes(folder)
        _copy(weights, copy, before.st_size)
        raw_header = read_header_bytes(copy)
        found = fingerprint_of(raw_config, copy)
        is_torn = stamp_of(before) != stamp_of(os.fstat(weights.fileno()))
        if is_torn if fingerprint is None else fingerprint != found:
            require_servable(folder, limits)  # what is there now may tell more
            raise AdapterInvalidError(CHANGED)
        private = Path(staging) / (folder.absolute().name or "adapter")
        private.mkdir()
        (private / CONFIG_NAME).symlink_to(f"/proc/self/fd/{config.fileno()}")
        (private / WEIGHTS_NAME).symlink_to(f"/proc/self/fd/{copy.fileno()}")
        config.write(raw_config)
        require_servable(private, limits)
        modules = pattern_names(parse_header(raw_header, before.st_size - 8 - len(raw_header)))
        (private / CONFIG_NAME).write_bytes(without_expressions(raw_config, modules))
        yield SealedCopy(private, found, tuple(modules))


def _staging() -> AbstractContextManager[str]:
    """A folder for two names: in memory, so that a full disk keeps no adapter from being loaded."""
    try:
        return tempfile.TemporaryDirectory(prefix=_STAGING, dir=_IN_MEMORY)
    except OSError:
        return tempfile.TemporaryDirectory(prefix=_STAGING)


def _weights_of(folder: Path, limits: AdapterLimits) -> AbstractContextManager[FileIO]:
    try:
        return open_regular(folder / WEIGHTS_NAME)
    except FileNotFoundError:
        require_servable(
            folder, limits
        )  # it tells what is missing, and why, or makes it of a pickle
        return open_regular(folder / WEIGHTS_NAME)


def _require_room(folder: Path, file_bytes: int, limits: AdapterLimits) -> None:
    """Nothing if a file of that size may be copied. The header is on top of the limit."""
    if limits.max_bytes is None or file_bytes <= limits.max_bytes:
        return
    require_servable(folder, limits)
    if file_bytes > limits.max_bytes + 8 + MAX_HEADER_BYTES:
        raise AdapterInvalidError(CHANGED)


def _copy(source: FileIO, target: FileIO, nbytes: int) -> None:
    """Afterwards the target holds these bytes, or as many as are left, and cannot change."""
    os.ftruncate(target.fileno(), nbytes)
    os.lseek(target.fileno(), 0, os.SEEK_SET)
    missing = nbytes
    while missing:
        count = os.sendfile(
            target.fileno(), source.fileno(), nbytes - missing, min(missing, _MOST_AT_ONCE_BYTES)
        )
        if count == 0:
            break
        missing -= count
    os.lseek(target.fileno(), 0, os.SEEK_SET)
    fcntl.fcntl(target.fileno(), fcntl.F_ADD_SEALS, _SEALS)

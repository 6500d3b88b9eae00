"""Whether an adapter's files may have changed, and what is in them: two questions, one answer each.

A stamp is cheap and errs on the safe side: whatever changes a file changes it, and so do things that
leave its bytes alone. A fingerprint is of the bytes alone, and costs reading them.
"""

import hashlib
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from chameleon_lora.adapters.config import read_config_bytes
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import no_weights
from chameleon_lora.adapters.untrusted import open_regular, unreadable
from chameleon_lora.errors import AdapterInvalidError, AdapterUnreadableError

_DIGITS = 32  # of a fingerprint: 128 bits


def stamp_of(*files: os.stat_result) -> str:
    """What changes when one of these files is written, replaced, moved or given other rights.

    Its owner may put size and time of change (mtime) back, as `cp -p`, rsync and tar do. The time of the
    last change to the file's own entry (ctime) is the kernel's, and can only go on.
    """
    return " ".join(
        f"{f.st_dev:x}-{f.st_ino:x}-{f.st_size:x}-{f.st_mtime_ns:x}-{f.st_ctime_ns:x}"
        for f in files
    )


def fingerprint_of(raw_config: bytes, weights: FileIO) -> str:
    """32 hex digits for a configuration and a file of weights with these bytes, and for no others.

    Reads the file from its start; about 0.15 s for 200 MB, without the interpreter's lock.

    Raises:
        OSError: it cannot be read.
    """
    weights.seek(0)
    begun = hashlib.sha256(len(raw_config).to_bytes(8, "little") + raw_config)
    return hashlib.file_digest(weights, begun.copy).hexdigest()[:_DIGITS]


def read_fingerprint(folder: Path, roots: Iterable[Path] = ()) -> str:
    """The fingerprint of an adapter's folder as it is now, read below `roots` if there are any.

    Raises:
        AdapterInvalidError: a file is missing or lies elsewhere.
        AdapterUnreadableError: a file cannot be read.
    """
    raw_config = read_config_bytes(folder, roots)
    try:
        with open_regular(folder / WEIGHTS_NAME, roots) as weights:
            return fingerprint_of(raw_config, weights)
    except FileNotFoundError as error:
        raise AdapterInvalidError(f"adapter {folder.name!r}: {no_weights(folder)}") from error
    except OSError as error:
        reason = unreadable(WEIGHTS_NAME, error)
        raise AdapterUnreadableError(f"adapter {folder.name!r}: {reason}") from error

"""What is in the files of adapters: headers always, weights where it is to be known which they are.

For threads, so that no request waits: a disk may be slow, or hang.
"""

from dataclasses import dataclass

from chameleon_lora.adapters import (
    AdapterFolder,
    AdapterInfo,
    AdapterLimits,
    read_fingerprint,
    require_servable,
)
from chameleon_lora.engine_vllm.messages import Announcement
from chameleon_lora.engine_vllm.sources import resolved
from chameleon_lora.errors import AdapterError


@dataclass(frozen=True, slots=True)
class Checked:
    """A sound adapter, and the fingerprint of its bytes if they were read."""

    info: AdapterInfo
    fingerprint: str | None

    def announcement(self, name: str, path: str, *, is_3d: bool = False) -> Announcement:
        """What an engine is told that is to serve it by that name."""
        info = self.info
        return Announcement(name, path, self.fingerprint, info.nbytes, info.rank, is_3d)


def check_path(path: str, name: str, limits: AdapterLimits) -> AdapterInfo:
    """The adapter at a path, or of a hub's name, under that name.

    Raises:
        AdapterError: naming it and what is wrong.
    """
    return require_servable(resolved(path, name), limits, name=name)


def check_folder(
    folder: AdapterFolder, name: str, limits: AdapterLimits, *, reads: bool = False
) -> Checked | AdapterError:
    """What became of the adapter of that name, or why it cannot be served; with `reads` its weights are read."""
    path, roots = folder.root / name, folder.real_roots
    try:
        info = require_servable(path, limits, roots)
        return Checked(info, read_fingerprint(path, roots) if reads else None)
    except AdapterError as error:
        return error

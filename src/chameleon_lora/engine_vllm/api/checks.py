"""What is in the files of adapters: headers always, weights where it is to be known which they are.

For threads, so that no request waits: a disk may be slow, or hang.
"""

from collections.abc import Collection, Iterable
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


def check_folders(
    folder: AdapterFolder, names: Iterable[str], to_read: Collection[str], limits: AdapterLimits
) -> dict[str, Checked | AdapterError]:
    """What became of each; the weights of those in `to_read` are read."""
    found: dict[str, Checked | AdapterError] = {}
    roots = folder.real_roots
    for name in names:
        path = folder.root / name
        try:
            info = require_servable(path, limits, roots)
            content = read_fingerprint(path, roots) if name in to_read else None
            found[name] = Checked(info, content)
        except AdapterError as error:
            found[name] = error
    return found

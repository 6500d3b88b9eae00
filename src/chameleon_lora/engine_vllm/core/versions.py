"""Which version of which adapter a request means: names from clients, ids of the engine's own.

vLLM's adapter ids are counted by each API server apart and stay the same when an adapter is loaded
anew, so two of them may collide and one may stand for two sets of weights. The engine therefore
gives each content of each name an id that it never uses again, and an inner name that no other
version has; prefix-cache blocks are keyed by the inner name, so no version reads another's blocks.
"""

from dataclasses import dataclass

from chameleon_lora.engine_vllm.messages import Announcement
from chameleon_lora.policy.request import AdapterId

FIRST_ID = 1000  # vLLM's own warm-up adapters take ids from 1


@dataclass(frozen=True, slots=True)
class Version:
    """One content of one adapter, for the engine's life."""

    id: AdapterId
    inner_name: str
    source: Announcement


class AdapterVersions:
    """The versions that new requests mean, by name. Owner: the driver."""

    def __init__(self) -> None:
        self._current: dict[str, Version] = {}
        self._count_of: dict[str, int] = {}
        self._inner_names: set[str] = set()
        self._next_id = FIRST_ID

    def current(self, name: str) -> Version | None:
        """The version a new request for this name gets, or None if the name is unknown."""
        return self._current.get(name)

    def announce(self, source: Announcement) -> tuple[Version, Version | None]:
        """The version for this content, and the one it replaces.

        The same content announced again (by another API server) is the same version.
        """
        former = self._current.get(source.name)
        if former is not None and former.source == source:
            return former, None
        version = Version(AdapterId(self._next_id), self._new_inner_name(source.name), source)
        self._next_id += 1
        self._current[source.name] = version
        return version, former

    def withdraw(self, name: str) -> Version | None:
        """Afterwards the name is unknown; answers the version it meant."""
        return self._current.pop(name, None)

    def names(self) -> list[str]:
        """Every name known, in the order of announcement."""
        return list(self._current)

    def _new_inner_name(self, name: str) -> str:
        """The name itself or `name@n`, whichever no version has had; another may be called a@2."""
        inner_name = name
        while inner_name in self._inner_names:
            count = self._count_of[name] = self._count_of.get(name, 1) + 1
            inner_name = f"{name}@{count}"
        self._inner_names.add(inner_name)
        return inner_name

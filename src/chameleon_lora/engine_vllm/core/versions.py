"""Which version of which adapter a request means: names from clients, ids of the engine's own.

vLLM's adapter ids are counted by each API server apart and stay the same when an adapter is loaded
anew, so two of them may collide and one may stand for two sets of weights. The engine therefore
gives each content of each name an id that it never uses again, and an inner name: by the fingerprint
of its bytes where that is known, by the id otherwise. Prefix-cache blocks are keyed by the inner
name, so no content reads another's blocks, and one that comes back finds its own.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace

from chameleon_lora.engine_vllm.messages import Announcement, LoadAdapter
from chameleon_lora.policy.request import AdapterId

FIRST_ID = 1000  # vLLM's own warm-up adapters take ids from 1


@dataclass(frozen=True, slots=True)
class Version:
    """One content of one adapter, as long as a name means it or it is used."""

    id: AdapterId
    inner_name: str
    source: Announcement


class AdapterVersions:
    """The versions that requests mean: new ones by name, those under way by id. Owner: the driver.

    Invariant: it remembers the current versions, and former ones not yet forgotten. No two of them
    have the same inner name, and none has that of another content, whenever that was.
    """

    def __init__(self) -> None:
        self._current: dict[str, Version] = {}
        self._by_id: dict[AdapterId, Version] = {}
        self._former: set[AdapterId] = set()
        # Of versions whose files were asked for: the fingerprint of what was read, None till then.
        self._contents: dict[AdapterId, str | None] = {}
        self._inner_names: set[str] = set()
        self._next_id = FIRST_ID

    def __getitem__(self, adapter_id: AdapterId) -> Version:
        return self._by_id[adapter_id]

    def __len__(self) -> int:
        return len(self._by_id)

    def current(self, name: str) -> Version | None:
        """The version a new request for this name gets, or None if the name is unknown."""
        return self._current.get(name)

    def announce(self, source: Announcement) -> tuple[Version, Version | None]:
        """The version for this content, and the one it replaces.

        The same content announced again (by another API server) is the same version, also if the
        former announcement did not say what was found in its files, or this one does not.
        """
        former = self._current.get(source.name)
        if former is not None and self._is_same(former, source):
            return former, None
        return self._list(source), former

    def renew(self, source: Announcement) -> tuple[Version, Version | None]:
        """As `announce`, where the files are to be read anew: what nobody looked into is another content."""
        if source.fingerprint is not None:
            return self.announce(source)
        former = self._current.get(source.name)
        if former is not None and former.id not in self._contents and former.source == source:
            return former, None
        return self._list(source), former

    def is_read(self, source: Announcement) -> bool:
        """Whether its name means this content already, and that has been read."""
        former = self._current.get(source.name)
        if former is None or self._contents.get(former.id) is None:
            return False
        return self._is_same(former, source)

    def unlisted(self, source: Announcement) -> Version:
        """A new version that no name means."""
        version = self._make(source)
        self._former.add(version.id)
        return version

    def list_unlisted(self, version: Version) -> Version | None:
        """From now on its name means this version; answers the one it meant before."""
        former = self._current.get(version.source.name)
        self._former.discard(version.id)
        self._put(version)
        return former

    def withdraw(self, name: str) -> Version | None:
        """Afterwards the name is unknown; answers the version it meant."""
        version = self._current.pop(name, None)
        if version is not None:
            self._former.add(version.id)
        return version

    def load(self, adapter_id: AdapterId) -> LoadAdapter:
        """The command to read it: a version is one content, so what was read once or nothing."""
        source = self._by_id[adapter_id].source
        content = source.fingerprint or self._contents.setdefault(adapter_id, None)
        return LoadAdapter(adapter_id, source.name, source.path, source.is_3d, content)

    def was_read(self, adapter_id: AdapterId, fingerprint: str | None) -> None:
        """A version's files were read; it is the content with this fingerprint."""
        self._contents[adapter_id] = fingerprint

    def forget(self, used: Container[AdapterId]) -> list[AdapterId]:
        """Former versions that are not used any more are forgotten; answers which."""
        gone = [adapter_id for adapter_id in self._former if adapter_id not in used]
        for adapter_id in gone:
            self._former.discard(adapter_id)
            self._contents.pop(adapter_id, None)
            self._inner_names.discard(self._by_id.pop(adapter_id).inner_name)
        return gone

    def _is_same(self, version: Version, source: Announcement) -> bool:
        """Whether it is announced again; of who did not look into the files, as far as he can tell."""
        known = version.source
        if source.fingerprint is None:
            return replace(known, fingerprint=None) == source
        content = known.fingerprint or self._contents.get(version.id)
        theirs = (source.fingerprint, source.path, source.is_3d)
        return theirs == (content, known.path, known.is_3d)

    def _list(self, source: Announcement) -> Version:
        return self._put(self._make(source))

    def _put(self, version: Version) -> Version:
        former = self._current.get(version.source.name)
        if former is not None:
            self._former.add(former.id)
        self._current[version.source.name] = version
        return version

    def _make(self, source: Announcement) -> Version:
        adapter_id = AdapterId(self._next_id)
        self._next_id += 1
        inner_name = self._new_inner_name(source, adapter_id)
        self._inner_names.add(inner_name)
        version = self._by_id[adapter_id] = Version(adapter_id, inner_name, source)
        return version

    def _new_inner_name(self, source: Announcement, adapter_id: AdapterId) -> str:
        """`name@fingerprint`, or `name@id` where nobody looked or a version in use has that name.

        No fingerprint looks like an id: it is longer.
        """
        kind = "3d-" if source.is_3d else ""
        inner_name = f"{source.name}@{kind}{source.fingerprint}"
        is_free = source.fingerprint is not None and inner_name not in self._inner_names
        return inner_name if is_free else f"{source.name}@{adapter_id}"


class ClientIds:
    """The ids by which clients know adapters: the last ones used, and those pinned. Owner: the driver.

    As vLLM lists them: of those that nobody pinned, as many as it has room for (`max_cpu_loras`).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: dict[int, str] = {}  # the longest unused first
        self._pinned: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def name(self, client_id: int) -> str | None:
        """The adapter that is meant, None if the id is unknown."""
        return self._names.get(client_id)

    def is_known(self, name: str) -> bool:
        """Whether an id means this adapter."""
        return name in self._names.values()

    def use(self, client_id: int, name: str) -> None:
        """From now on the id means this adapter."""
        former = self._names.pop(client_id, name)
        if former != name:
            self._pinned.discard(client_id)
        self._names[client_id] = name
        too_many = len(self._names) - self._most
        if too_many > 0:
            loose = [other for other in list(self._names)[:-1] if other not in self._pinned]
            for other in loose[:too_many]:
                del self._names[other]

    def pin(self, client_id: int) -> None:
        """A known id stays listed until it is forgotten."""
        self._pinned.add(client_id)

    def forget(self, client_id: int) -> str | None:
        """Answers what it meant, None if it is unknown."""
        self._pinned.discard(client_id)
        return self._names.pop(client_id, None)

    def forget_name(self, name: str) -> None:
        """No id means this adapter afterwards."""
        for client_id in [known for known, meant in self._names.items() if meant == name]:
            self.forget(client_id)

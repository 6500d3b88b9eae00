"""A version is what the bytes are: what becomes of an offer when times, rights and bytes change."""

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters import read_fingerprint
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from tests.adapters.rewriting import FILE_CHANGES, rewrite, wait_for_tick
from tests.engine_vllm.served_folder import ServedFolder, opened_by

pytestmark = pytest.mark.vllm


@pytest.fixture
def served(tmp_path: Path) -> ServedFolder:
    """A folder with the adapter a, which was asked for."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    served.add("a")
    served.refresh_all()
    served.refresh("a")
    return served


def announced_since(served: ServedFolder, do: Callable[[], object]) -> list[str | None]:
    """The fingerprints of `a` that the engine is told of meanwhile."""
    served.engine.calls.clear()
    do()
    return [source["fingerprint"] for _, sources in served.engine.calls for source in sources]


def test_a_content_is_read_when_it_is_first_asked_for(served: ServedFolder) -> None:
    """Not before, not again, and the engine is told which it is."""
    weights = str(served.root / "b" / WEIGHTS_NAME)
    served.add("b")
    assert 1 == opened_by(served.refresh_all).count(weights)  # its header
    expected = [read_fingerprint(served.root / "b")]
    assert expected == announced_since(served, lambda: served.refresh("b"))
    assert [] == opened_by(lambda: served.refresh("b"))
    assert set() == set(opened_by(served.refresh_all)) - {str(served.root)}


def test_an_adapter_that_was_loaded_by_request_is_not_the_folders(
    served: ServedFolder, tmp_path: Path
) -> None:
    """Under the name of a folder's adapter, from elsewhere: the folder's content is not told in its place."""
    from vllm.lora.request import LoRARequest

    served.add("b")
    served.refresh_all()
    served.models.lora_requests["b"] = LoRARequest("b", 9, str(tmp_path / "elsewhere"))
    assert [] == announced_since(served, lambda: served.refresh("b"))


def test_two_requests_at_once_read_once(served: ServedFolder) -> None:
    """The second waits for what the first began."""
    served.add("b")
    served.refresh_all()

    async def ask() -> None:
        await asyncio.gather(*(served.registry.refresh("b") for _ in range(5)))

    assert 1 == len(announced_since(served, lambda: asyncio.run(ask())))


@pytest.mark.parametrize("file", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("way", FILE_CHANGES)
def test_other_bytes_are_announced_whatever_their_times_say(
    served: ServedFolder, file: str, way: str
) -> None:
    """Of the same number, with the same time of change: another version, which nobody failed yet."""
    path = served.root / "a" / file
    offered = served.models.lora_requests["a"]
    wait_for_tick(path)
    rewrite(path, way, -3 if file == WEIGHTS_NAME else path.read_bytes().index(b"task_type"))
    told = announced_since(served, served.refresh_all)
    assert [read_fingerprint(served.root / "a")] == told
    assert offered is not served.models.lora_requests["a"]


@pytest.mark.parametrize("change", ["touch", "chmod", "link", "write again", "rename the root"])
def test_the_same_bytes_are_the_same_version(served: ServedFolder, change: str) -> None:
    """The engine is told nothing, and what it found out about the adapter still holds."""
    path, offered = served.root / "a" / WEIGHTS_NAME, served.models.lora_requests["a"]
    wait_for_tick(path)
    match change:
        case "touch":
            os.utime(path)
        case "chmod":
            path.chmod(0o600)
        case "link":
            path.with_name("second").hardlink_to(path)
        case "write again":
            path.write_bytes(path.read_bytes())
        case _:
            served.root.rename(served.root.with_name("away")).rename(served.root)
    assert [] == announced_since(served, served.refresh_all)
    assert offered is served.models.lora_requests["a"]


def test_a_change_before_the_first_request_is_found_by_that(served: ServedFolder) -> None:
    """Nothing was read of the former content, so nothing of it needs to be told apart."""
    served.add("b")
    served.refresh_all()
    path = served.root / "b" / WEIGHTS_NAME
    wait_for_tick(path)
    rewrite(path, "in place")
    assert [None] == announced_since(served, served.refresh_all)
    expected = [read_fingerprint(served.root / "b")]
    assert expected == announced_since(served, lambda: served.refresh("b"))


def test_what_was_read_while_it_changed_is_read_again(
    served: ServedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that finds other files than those of the last one trusts no content read meanwhile."""
    served.add("b")
    served.refresh_all()
    path = served.root / "b" / WEIGHTS_NAME
    is_read, let_go, digest = threading.Event(), threading.Event(), hashlib.file_digest

    def digest_late(*given: Any) -> Any:
        found = digest(*given)
        is_read.set()
        let_go.wait()
        return found

    async def change_meanwhile() -> None:
        reading = asyncio.create_task(served.registry.refresh("b"))
        await asyncio.to_thread(is_read.wait)
        wait_for_tick(path)
        rewrite(path, "in place")
        await served.registry._refresh_all()
        let_go.set()
        await reading

    monkeypatch.setattr(hashlib, "file_digest", digest_late)
    asyncio.run(change_meanwhile())
    served.refresh("b")
    assert read_fingerprint(served.root / "b") == served.registry._fingerprints["b"]


def test_a_content_that_comes_back_is_told_as_the_one_it_was(served: ServedFolder) -> None:
    """Removed and put back, it has the same fingerprint."""
    expected = read_fingerprint(served.root / "a")
    away = (served.root / "a").rename(served.root.with_name("a-away"))
    served.refresh_all()
    served.refresh_all()  # the only one: it might have been away with its disk
    assert {} == served.models.lora_requests
    away.rename(served.root / "a")
    served.refresh_all()
    assert [expected] == announced_since(served, lambda: served.refresh("a"))


def test_files_that_are_not_what_was_announced_are_read_again(served: ServedFolder) -> None:
    """The engine says so: as for a file that was written through a mapping, which leaves its times."""
    served.registry._fingerprints["a"] = "0" * 32
    assert [] == announced_since(served, served.refresh_all)
    served.registry.found_changed(served.models.lora_requests["a"])
    expected = [read_fingerprint(served.root / "a")]
    assert expected == announced_since(served, served.refresh_all)
    assert [] == announced_since(served, served.refresh_all)


@pytest.mark.parametrize("elsewhere", [None, "elsewhere"])
def test_the_same_bytes_written_again_are_offered_where_they_are_not_served(
    served: ServedFolder, elsewhere: str | None
) -> None:
    """Unloaded by request, or another loaded under their name: they come back, as if never asked for."""
    from vllm.lora.request import LoRARequest

    offered = served.models.lora_requests
    del offered["a"]
    if elsewhere is not None:
        offered["a"] = LoRARequest("a", 9, elsewhere)
    path = served.root / "a" / WEIGHTS_NAME
    wait_for_tick(path)
    os.utime(path)
    assert [read_fingerprint(path.parent)] == announced_since(served, served.refresh_all)
    assert str(path.parent) == offered["a"].lora_path

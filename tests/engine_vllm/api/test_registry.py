"""A folder of adapters, offered to an engine and its clients as it changes."""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.engine_vllm.api.registry import AdapterRegistry, require_name
from chameleon_lora.errors import (
    AdapterInvalidError,
    AdapterNotFoundError,
    AdapterTooLargeError,
)
from tests.engine_vllm.desk import BASE, MAX_RANK, NEVER_S, Desk, FakeModels

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def _has_vllm() -> None:
    """Listing an adapter takes vLLM's LoRARequest."""
    pytest.importorskip("vllm")


OPENED: list[str] = []
HOOKS: list[str] = []  # whether there is one: an audit hook lasts as long as the process


@pytest.fixture
def watch() -> list[str]:
    """The folders listed and the files opened from now on."""
    if not HOOKS:
        HOOKS.append("open, os.listdir, os.scandir")
        sys.addaudithook(_note)
    OPENED.clear()
    return OPENED


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event in HOOKS[0]:
        OPENED.append(str(args[0]))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder that holds the adapters a and b."""
    desk = Desk(tmp_path / "adapters")
    desk.add("a")
    desk.add("b", rank=4)
    return desk


def test_what_is_there_is_announced_and_listed(desk: Desk) -> None:
    """One call for all; each announcement says path, content, bytes and rank; clients see them."""
    desk.follow()
    [(method, sources)] = desk.engine.calls
    assert "chameleon_announce" == method
    assert [("a", 2), ("b", 4)] == [(source[0], source[4]) for source in sources]
    assert [str(desk.root / "a"), str(desk.root / "b")] == [source[1] for source in sources]
    assert all(len(source[2]) == 16 and source[3] > 0 for source in sources)
    listed = desk.models.lora_requests
    assert {"a": 1, "b": 2} == {name: request.lora_int_id for name, request in listed.items()}
    assert str(desk.root / "a") == listed["a"].lora_path


def test_a_folder_that_did_not_change_is_not_told_again(desk: Desk) -> None:
    """The second look says nothing to the engine."""
    desk.follow()
    desk.told()
    desk.follow()
    assert [] == desk.told()


def test_a_new_folder_is_offered(desk: Desk) -> None:
    """Only the new one is announced."""
    desk.follow()
    desk.told()
    desk.add("c")
    desk.follow()
    assert [("announce", ["c"])] == desk.told()
    assert "c" in desk.models.lora_requests


def test_a_changed_adapter_is_announced_anew(desk: Desk) -> None:
    """With another fingerprint; the name stays listed as it was."""
    desk.follow()
    before = desk.engine.calls[0][1][0]
    request = desk.models.lora_requests["a"]
    desk.engine.calls.clear()
    desk.add("a", seed=1)
    desk.follow()
    [(_, [after])] = desk.engine.calls
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    assert request is desk.models.lora_requests["a"]


def test_a_removed_adapter_is_withdrawn(desk: Desk) -> None:
    """The engine is told and clients no longer see it."""
    desk.follow()
    desk.told()
    shutil.rmtree(desk.root / "a")
    desk.follow()
    assert [("withdraw", ["a"])] == desk.told()
    assert ["b"] == list(desk.models.lora_requests)


def test_a_broken_adapter_is_refused_with_its_reason(desk: Desk) -> None:
    """It is neither announced nor listed; the others are."""
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    assert [("announce", ["b"])] == desk.told()
    assert ["b"] == list(desk.models.lora_requests)
    assert ["a"] == list(desk.shelf.refused)
    assert desk.shelf.refused["a"].startswith("adapter 'a': ")


def test_a_rank_above_the_engines_is_refused_with_both_numbers(desk: Desk) -> None:
    """The limit is the engine's max_lora_rank."""
    desk.add("wide", rank=MAX_RANK + 1)
    desk.follow()
    assert "its rank is 9, the limit is 8" in desk.shelf.refused["wide"]


def test_an_adapter_that_breaks_is_taken_down(desk: Desk) -> None:
    """What was served and cannot be read any more is withdrawn and refused."""
    desk.follow()
    desk.told()
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    assert [("withdraw", ["a"])] == desk.told()
    assert (["b"], ["a"]) == (list(desk.models.lora_requests), list(desk.shelf.refused))


def test_a_mended_adapter_is_offered_and_refused_no_more(desk: Desk) -> None:
    """Its reason goes when its files are sound."""
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    desk.told()
    desk.add("a")
    desk.follow()
    assert [("announce", ["a"])] == desk.told()
    assert {} == desk.shelf.refused


def test_a_refused_adapter_that_goes_is_forgotten(desk: Desk) -> None:
    """A name without a folder is unknown, not refused."""
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    shutil.rmtree(desk.root / "a")
    desk.follow()
    assert {} == desk.shelf.refused


def test_a_folder_that_cannot_be_listed_keeps_the_offer(desk: Desk) -> None:
    """A disk that is away for a while withdraws nothing; when it is back nothing is told anew."""
    desk.follow()
    desk.told()
    away = desk.root.rename(desk.root.with_name("away"))
    desk.follow()
    assert ([], ["a", "b"]) == (desk.told(), list(desk.models.lora_requests))
    away.rename(desk.root)
    desk.follow()
    assert [] == desk.told()


@pytest.mark.parametrize("is_sound", [True, False])
def test_the_base_models_name_is_not_taken(desk: Desk, is_sound: bool) -> None:
    """A folder of that name, sound or broken, is neither offered nor does it refuse the base model."""
    desk.add(BASE)
    if not is_sound:
        (desk.root / BASE / CONFIG_NAME).write_text("{")
    desk.follow()
    assert [("announce", ["a", "b"])] == desk.told()
    assert {} == desk.shelf.refused
    assert BASE not in desk.models.lora_requests


def test_what_the_engine_was_not_told_is_told_again(desk: Desk) -> None:
    """A look that failed half-way is made again from the start."""
    desk.engine.is_down = True
    with pytest.raises(ConnectionError):
        desk.follow()
    desk.engine.is_down = False
    desk.follow()
    assert [("announce", ["a", "b"])] == desk.told()


class TestLook:
    def test_a_name_that_came_since_is_offered_at_once(self, desk: Desk) -> None:
        """A request for a folder that is newer than the last look does not wait for the next."""
        desk.follow()
        desk.told()
        desk.add("c")
        desk.look("c")
        assert [("announce", ["c"])] == desk.told()

    @pytest.mark.parametrize("name", ["a", "none", "../adapters/a", ""])
    def test_other_names_cost_no_look(self, desk: Desk, name: str) -> None:
        """Known names, unknown ones and paths change nothing."""
        desk.follow()
        desk.told()
        desk.add("c")
        desk.look(name)
        assert [] == desk.told()

    def test_no_name_costs_a_walk_over_the_folder(self, desk: Desk, watch: list[str]) -> None:
        """New, half-written, broken and unknown: the folder is not listed, other adapters not seen."""
        desk.follow()
        (desk.root / "half").mkdir()
        (desk.root / "half" / CONFIG_NAME).write_text("{")
        desk.add("broken")
        (desk.root / "broken" / CONFIG_NAME).write_text("{")
        desk.add("new")
        watch.clear()
        for name in ["new", "half", "broken", "broken", "unknown", "../a", "x" * 10_000, "a\nb"]:
            desk.look(name)
        assert ["broken", "half"] == sorted(desk.shelf.refused)
        assert [] == [path for path in watch if path == str(desk.root)]
        assert [] == [path for path in watch if path.startswith((f"{desk.root}/a/", "/a"))]

    def test_what_is_known_to_be_broken_is_not_read_again(
        self, desk: Desk, watch: list[str]
    ) -> None:
        """Its files are looked at for a change, and not opened while there is none."""
        desk.add("broken")
        (desk.root / "broken" / CONFIG_NAME).write_text("{")
        desk.look("broken")
        watch.clear()
        desk.look("broken")
        assert ["broken"] == list(desk.shelf.refused)
        assert [] == watch
        desk.add("broken")
        desk.look("broken")
        assert {} == desk.shelf.refused

    def test_a_file_that_leads_out_of_the_folder_is_refused(self, desk: Desk) -> None:
        """The reason says so, and nothing is announced."""
        outside = (desk.root / "b").rename(desk.root.parent / "outside")
        desk.add("c")
        (desk.root / "c" / WEIGHTS_NAME).unlink()
        (desk.root / "c" / WEIGHTS_NAME).symlink_to(outside / WEIGHTS_NAME)
        desk.look("c")
        assert [] == desk.told()
        assert "leads out of the folder of adapters" in desk.shelf.refused["c"]

    def test_without_a_folder_there_is_nothing_to_look_at(self) -> None:
        """A shelf without a folder serves what is loaded by request only."""
        models = FakeModels()
        asyncio.run(AdapterRegistry(models, None, NEVER_S).look("a"))
        assert {} == models.lora_requests


class TestByRequest:
    def test_an_adapter_from_elsewhere_is_checked_and_offered(self, desk: Desk) -> None:
        """/v1/load_lora_adapter may name any folder; the engine learns what it holds."""

        async def load() -> None:
            info = await desk.shelf.check(str(desk.root / "b"))
            await desk.shelf.offer("mine", str(desk.root / "b"), info, is_3d=True)

        asyncio.run(load())
        [(_, [source])] = desk.engine.calls
        assert ("mine", str(desk.root / "b"), 4, True) == (source[0], source[1], *source[4:])

    def test_a_missing_folder_is_told_as_missing(self, desk: Desk) -> None:
        """The error names the adapter."""
        with pytest.raises(AdapterNotFoundError, match="'none'"):
            asyncio.run(desk.shelf.check(str(desk.root / "none")))

    @pytest.mark.parametrize(
        "path",
        ["no/such/hub", "a\0b", "a\nINFO all is well", "x" * 10_000, "../../nowhere", "~nobody"],
    )
    def test_a_path_to_nowhere_is_told_as_missing(self, desk: Desk, path: str) -> None:
        """One printable line, whatever the hub's client thinks of it; no other error."""
        with pytest.raises(AdapterNotFoundError) as raised:
            asyncio.run(desk.shelf.check(path))
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 1000

    @pytest.mark.parametrize("name", ["", "a\nINFO all is well", "a\x1b[2J", "x" * 256, "\ud800"])
    def test_a_name_that_cannot_be_written_is_refused(self, name: str) -> None:
        """It would go to logs, to /v1/models and to /metrics."""
        with pytest.raises(AdapterInvalidError, match="lora_name is "):
            require_name(name)

    @pytest.mark.parametrize("name", ["a", "org/a", "x" * 255, "é", "a b"])
    def test_other_names_may_be_loaded(self, name: str) -> None:
        """Also those with a slash, as on a hub."""
        require_name(name)

    def test_a_rank_above_the_engines_is_told_as_too_large(self, desk: Desk) -> None:
        """The error gives rank and limit."""
        desk.add("wide", rank=MAX_RANK + 1)
        with pytest.raises(AdapterTooLargeError, match="rank is 9, the limit is 8"):
            asyncio.run(desk.shelf.check(str(desk.root / "wide")))

    def test_removing_withdraws_the_name(self, desk: Desk) -> None:
        """The engine is told; the folder is not looked at."""
        asyncio.run(desk.shelf.remove("mine"))
        assert [("withdraw", ["mine"])] == desk.told()


def test_the_watch_goes_on_after_a_bad_look(tmp_path: Path) -> None:
    """Opened, the shelf follows the folder by itself, also after the engine failed to answer."""
    desk = Desk(tmp_path / "adapters", scan_s=0.01)
    desk.add("a")

    async def watch() -> None:
        await desk.shelf.open()
        desk.engine.is_down = True
        for name in "bc":
            desk.engine.was_asked.clear()
            desk.add(name)
            await desk.engine.was_asked.wait()
            desk.engine.is_down = False

    asyncio.run(asyncio.wait_for(watch(), 10))
    told = [name for _, names in desk.told() for name in names]
    assert ["a", "b", "c"] == sorted(set(told))

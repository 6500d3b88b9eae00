"""A folder of adapters, offered to an engine and its clients as it changes."""

import asyncio
import shutil
from pathlib import Path

import pytest

from chameleon_lora.adapters import AdapterFolder, require_name
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.engine_vllm.api.registry import AdapterRegistry
from chameleon_lora.errors import AdapterInvalidError, AdapterNotFoundError, AdapterTooLargeError
from tests.engine_vllm.served_folder import (
    BASE,
    MAX_RANK,
    NEVER_S,
    FakeModels,
    ServedFolder,
    bring_head,
    opened_by,
)

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def _has_vllm() -> None:
    """Listing an adapter takes vLLM's LoRARequest."""
    pytest.importorskip("vllm")


@pytest.fixture
def served(tmp_path: Path) -> ServedFolder:
    """A folder that holds the adapters a and b."""
    served = ServedFolder(tmp_path / "adapters")
    served.add("a")
    served.add("b", rank=4)
    return served


def test_what_is_there_is_announced_and_listed(served: ServedFolder) -> None:
    """One call for all; each announcement says path, content, bytes and rank; clients see them."""
    served.refresh_all()
    [(method, sources)] = served.engine.calls
    assert "chameleon_announce" == method
    assert [("a", 2), ("b", 4)] == [(source["name"], source["rank"]) for source in sources]
    assert [str(served.root / name) for name in "ab"] == [source["path"] for source in sources]
    assert all(source["fingerprint"] is None and source["nbytes"] > 0 for source in sources)
    listed = served.models.lora_requests
    assert {"a": 1, "b": 2} == {name: request.lora_int_id for name, request in listed.items()}
    assert str(served.root / "a") == listed["a"].lora_path


def test_a_folder_that_did_not_change_is_not_told_again(served: ServedFolder) -> None:
    """The second look says nothing to the engine."""
    served.refresh_all()
    served.told()
    served.refresh_all()
    assert [] == served.told()


def test_a_new_folder_is_offered(served: ServedFolder) -> None:
    """Only the new one is announced."""
    served.refresh_all()
    served.told()
    served.add("c")
    served.refresh_all()
    assert [("announce", ["c"])] == served.told()
    assert "c" in served.models.lora_requests


def test_a_changed_adapter_is_announced_anew(served: ServedFolder) -> None:
    """With another fingerprint; the name stays listed as it was."""
    served.refresh_all()
    served.refresh("a")
    del served.engine.calls[0]
    before = served.engine.calls[0][1][0]
    request = served.models.lora_requests["a"]
    served.engine.calls.clear()
    served.add("a", seed=1)
    served.refresh_all()
    [(_, [after])] = served.engine.calls
    assert before != after
    assert before | {"fingerprint": None} == after | {"fingerprint": None}
    assert request == served.models.lora_requests["a"]


def test_a_removed_adapter_is_withdrawn(served: ServedFolder) -> None:
    """The engine is told and clients no longer see it."""
    served.refresh_all()
    served.told()
    shutil.rmtree(served.root / "a")
    served.refresh_all()
    assert [("withdraw", ["a"])] == served.told()
    assert ["b"] == list(served.models.lora_requests)


def test_a_broken_adapter_is_refused_with_its_reason(served: ServedFolder) -> None:
    """It is neither announced nor listed; the others are."""
    (served.root / "a" / CONFIG_NAME).write_text("{")
    served.refresh_all()
    assert [("announce", ["b"])] == served.told()
    assert ["b"] == list(served.models.lora_requests)
    assert ["a"] == list(served.registry.refusals.refused)
    assert served.registry.refusals.refused["a"].startswith("adapter 'a': ")


def test_a_hubs_cache_is_served_where_it_is_trusted(served: ServedFolder, tmp_path: Path) -> None:
    """As Hugging Face lays it out: a link to a snapshot, whose files are links to blobs."""
    hub = tmp_path / "hub" / "models--org--ad"
    snapshot = hub / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (served.root / "a" / name).rename(hub / f"{name}.blob")
        (snapshot / name).symlink_to(f"../../{name}.blob")
        (served.root / "a" / name).symlink_to(snapshot / name)
    (served.root / "linked").symlink_to(snapshot)
    served.refresh_all()
    assert ["b"] == list(served.models.lora_requests)
    assert "leads out of the folder of adapters" in served.registry.refusals.refused["a"]
    trusting = AdapterFolder(served.root, [str(tmp_path / "hub")])
    served.registry = AdapterRegistry(served.models, trusting, NEVER_S)
    served.refresh_all()
    assert {"a", "b", "linked"} == set(served.models.lora_requests)
    assert {} == served.registry.refusals.refused


def test_a_classifiers_head_is_refused_by_an_engine_that_generates(served: ServedFolder) -> None:
    """And by one that embeds; one that classifies takes it."""
    bring_head(served.root / "a")
    model = served.models.engine_client.vllm_config.model_config
    for runner, score in (("generate", "cross-encoder"), ("pooling", "bi-encoder")):
        model.runner_type, model.score_type = runner, score
        served.registry = AdapterRegistry(served.models, AdapterFolder(served.root), NEVER_S)
        served.refresh_all()
        assert "is the head of a classifier" in served.registry.refusals.refused["a"]
    model.score_type = "cross-encoder"
    served.registry = AdapterRegistry(served.models, AdapterFolder(served.root), NEVER_S)
    served.refresh_all()
    assert {} == served.registry.refusals.refused


def test_a_rank_above_the_engines_is_refused_with_both_numbers(served: ServedFolder) -> None:
    """The limit is the engine's max_lora_rank."""
    served.add("wide", rank=MAX_RANK + 1)
    served.refresh_all()
    assert "its rank is 9, the limit is 8" in served.registry.refusals.refused["wide"]


def test_an_adapter_that_breaks_is_taken_down(served: ServedFolder) -> None:
    """What was served and cannot be read any more is withdrawn and refused."""
    served.refresh_all()
    served.told()
    (served.root / "a" / CONFIG_NAME).write_text("{")
    served.refresh_all()
    assert [("withdraw", ["a"])] == served.told()
    assert ["b"] == list(served.models.lora_requests)
    assert ["a"] == list(served.registry.refusals.refused)


def test_a_mended_adapter_is_offered_and_refused_no_more(served: ServedFolder) -> None:
    """Its reason goes when its files are sound."""
    (served.root / "a" / CONFIG_NAME).write_text("{")
    served.refresh_all()
    served.told()
    served.add("a")
    served.refresh_all()
    assert [("announce", ["a"])] == served.told()
    assert {} == served.registry.refusals.refused


def test_what_the_engine_found_unfit_is_refused_while_it_is_what_is_served(
    served: ServedFolder,
) -> None:
    """From then on with its reason, until its files are others; the others are served."""
    served.refresh_all()
    offered = served.models.lora_requests["a"]
    served.registry.refusals.found_unfit(offered, "nan")
    served.refresh("a")
    assert ("nan", None) == tuple(map(served.registry.refusals.why, "ab"))
    served.add("a", seed=1)
    served.refresh_all()
    assert served.registry.refusals.why("a") is None
    assert offered.lora_int_id == served.models.lora_requests["a"].lora_int_id
    served.registry.refusals.found_unfit(offered, "nan")  # a request that was under way meanwhile
    assert served.registry.refusals.why("a") is None


def test_names_of_unfit_adapters_that_are_gone_are_not_kept(served: ServedFolder) -> None:
    """Gone before or after it was found; each is forgotten by itself, however many there are."""
    served.add("c")
    served.refresh_all()
    for name in "bc":
        served.registry.refusals.found_unfit(served.models.lora_requests[name], "nan")
    shutil.rmtree(served.root / "b")
    served.refresh_all()
    asyncio.run(served.registry.withdraw(served.models.lora_requests.pop("c").lora_name))
    assert {} == served.registry.refusals._failed
    served.registry.refusals.found_unfit(served.models.lora_requests.pop("a"), "nan")
    assert {} == served.registry.refusals._failed


def test_a_refused_adapter_that_goes_is_forgotten(served: ServedFolder) -> None:
    """A name without a folder is unknown, not refused."""
    (served.root / "a" / CONFIG_NAME).write_text("{")
    served.refresh_all()
    shutil.rmtree(served.root / "a")
    served.refresh_all()
    assert {} == served.registry.refusals.refused


def test_a_folder_that_cannot_be_listed_keeps_the_offer(served: ServedFolder) -> None:
    """A disk that is away for a while withdraws nothing; when it is back nothing is told anew."""
    served.refresh_all()
    served.told()
    away = served.root.rename(served.root.with_name("away"))
    served.refresh_all()
    assert ([], ["a", "b"]) == (served.told(), list(served.models.lora_requests))
    away.rename(served.root)
    served.refresh_all()
    assert [] == served.told()


@pytest.mark.parametrize("is_sound", [True, False])
def test_the_base_models_name_is_not_taken(served: ServedFolder, is_sound: bool) -> None:
    """A folder of that name, sound or broken, is neither offered nor does it refuse the base model."""
    served.add(BASE)
    if not is_sound:
        (served.root / BASE / CONFIG_NAME).write_text("{")
    served.refresh_all()
    assert [("announce", ["a", "b"])] == served.told()
    assert {} == served.registry.refusals.refused
    assert BASE not in served.models.lora_requests


def test_what_the_engine_was_not_told_is_told_again(served: ServedFolder) -> None:
    """A look that failed half-way is made again from the start."""
    served.engine.is_down = True
    with pytest.raises(ConnectionError):
        served.refresh_all()
    served.engine.is_down = False
    served.refresh_all()
    assert [("announce", ["a", "b"])] == served.told()


class TestRefresh:
    def test_a_name_that_came_since_is_offered_at_once(self, served: ServedFolder) -> None:
        """A request for a new folder does not wait for the next look: it is offered, then its content told."""
        served.refresh_all()
        served.told()
        served.add("c")
        served.refresh("c")
        assert 2 * [("announce", ["c"])] == served.told()

    @pytest.mark.parametrize("name", ["a", "none", "../adapters/a", ""])
    def test_other_names_cost_no_look(self, served: ServedFolder, name: str) -> None:
        """Known names, unknown ones and paths change nothing."""
        served.refresh_all()
        served.refresh("a")
        served.told()
        served.add("c")
        served.refresh(name)
        assert [] == served.told()

    def test_no_name_costs_a_walk_over_the_folder(self, served: ServedFolder) -> None:
        """New, half-written, broken and unknown: the folder is not listed, other adapters not seen."""
        served.refresh_all()
        (served.root / "half").mkdir()
        (served.root / "half" / CONFIG_NAME).write_text("{")
        served.add("broken")
        (served.root / "broken" / CONFIG_NAME).write_text("{")
        served.add("new")
        names = ["new", "half", "broken", "broken", "unknown", "../a", "x" * 10_000, "a\nb"]

        def ask() -> None:
            for name in names:
                served.refresh(name)

        opened = opened_by(ask)
        assert ["broken", "half"] == sorted(served.registry.refusals.refused)
        assert [] == [path for path in opened if path == str(served.root)]
        assert [] == [path for path in opened if path.startswith((f"{served.root}/a/", "/a"))]

    def test_what_is_known_to_be_broken_is_not_read_again(self, served: ServedFolder) -> None:
        """Its files are looked at for a change, and not opened while there is none."""
        served.add("broken")
        (served.root / "broken" / CONFIG_NAME).write_text("{")
        served.refresh("broken")
        assert [] == opened_by(lambda: served.refresh("broken"))
        assert ["broken"] == list(served.registry.refusals.refused)
        served.add("broken")
        served.refresh("broken")
        assert {} == served.registry.refusals.refused

    def test_a_file_that_leads_out_of_the_folder_is_refused(self, served: ServedFolder) -> None:
        """The reason says so, and nothing is announced."""
        outside = (served.root / "b").rename(served.root.parent / "outside")
        served.add("c")
        (served.root / "c" / WEIGHTS_NAME).unlink()
        (served.root / "c" / WEIGHTS_NAME).symlink_to(outside / WEIGHTS_NAME)
        served.refresh("c")
        assert [] == served.told()
        assert "leads out of the folder of adapters" in served.registry.refusals.refused["c"]

    def test_without_a_folder_there_is_nothing_to_look_at(self) -> None:
        """A registry without a folder serves what is loaded by request only."""
        models = FakeModels()
        asyncio.run(AdapterRegistry(models, None, NEVER_S).refresh("a"))
        assert {} == models.lora_requests


class TestByRequest:
    def test_an_adapter_from_elsewhere_is_checked_and_offered(self, served: ServedFolder) -> None:
        """/v1/load_lora_adapter may name any folder; the engine learns what it holds."""

        async def load() -> None:
            info = await served.registry.check(str(served.root / "b"), "mine")
            await served.registry.publish(
                "mine", str(served.root / "b"), info, is_3d=True, is_tried=False
            )

        asyncio.run(load())
        [(_, [source])] = served.engine.calls
        told = [source[key] for key in ("name", "path", "rank", "is_3d")]
        assert ["mine", str(served.root / "b"), 4, True] == told

    def test_a_missing_folder_is_told_as_missing(self, served: ServedFolder) -> None:
        """The error has the name that was asked for, and the path."""
        with pytest.raises(AdapterNotFoundError, match=r"adapter 'mine': .*/none'"):
            asyncio.run(served.registry.check(str(served.root / "none"), "mine"))

    @pytest.mark.parametrize(
        "path",
        [
            "no/such/hub",
            "a\0b",
            "a\nINFO all is well",
            "x" * 10_000,
            "../../nowhere",
            "~nobody",
            "s3://b/x",
        ],
    )
    def test_a_path_to_nowhere_is_told_as_missing(self, served: ServedFolder, path: str) -> None:
        """One printable line, whatever the hub's client thinks of it; no other error."""
        with pytest.raises(AdapterNotFoundError) as raised:
            asyncio.run(served.registry.check(path, "mine"))
        assert str(raised.value).startswith("adapter 'mine': ")
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

    def test_a_rank_above_the_engines_is_told_as_too_large(self, served: ServedFolder) -> None:
        """The error gives the name that was asked for, rank and limit."""
        served.add("wide", rank=MAX_RANK + 1)
        with pytest.raises(AdapterTooLargeError, match="'mine': its rank is 9, the limit is 8"):
            asyncio.run(served.registry.check(str(served.root / "wide"), "mine"))

    @pytest.mark.parametrize("path", ["s3://b/x", "gs://b/x", "http://h/x", "hf://org/x"])
    def test_an_address_is_told_as_given_and_as_not_fetched(
        self, served: ServedFolder, path: str
    ) -> None:
        """Nothing is asked for it."""
        with pytest.raises(AdapterNotFoundError, match=f"{path}' is no folder, and nothing is f"):
            asyncio.run(served.registry.check(path, "mine"))

    def test_removing_withdraws_the_name(self, served: ServedFolder) -> None:
        """The engine is told; the folder is not looked at."""
        asyncio.run(served.registry.withdraw("mine"))
        assert [("withdraw", ["mine"])] == served.told()


def test_the_watch_goes_on_after_a_bad_look(tmp_path: Path) -> None:
    """Opened, the registry follows the folder by itself, also after the engine failed to answer."""
    served = ServedFolder(tmp_path / "adapters", scan_s=0.01)
    served.add("a")

    async def watch() -> None:
        await served.registry.start()
        served.engine.is_down = True
        for name in "bc":
            served.engine.was_asked.clear()
            served.add(name)
            await served.engine.was_asked.wait()
            served.engine.is_down = False

    asyncio.run(asyncio.wait_for(watch(), 10))
    told = [name for _, names in served.told() for name in names]
    assert ["a", "b", "c"] == sorted(set(told))

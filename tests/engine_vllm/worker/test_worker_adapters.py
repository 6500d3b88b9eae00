"""WorkerAdapters and the manager around it: commands in, weights in slots, acks out."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.messages import (
    ActivateAdapter,
    Activated,
    DropAdapter,
    Loaded,
    LoadFailed,
)
from chameleon_lora.errors import AdapterError
from chameleon_lora.policy.plan import Fault
from chameleon_lora.settings import ServingSettings

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from chameleon_lora.engine_vllm.worker.loader import Loader  # noqa: E402
from chameleon_lora.engine_vllm.worker.lora_manager import make_worker_adapters  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import stacked_tensors  # noqa: E402
from chameleon_lora.engine_vllm.worker.worker_adapters import WorkerAdapters  # noqa: E402
from tests.engine_vllm.adapter_commands import acks_of, load, load_all  # noqa: E402


@pytest.fixture
def manager(lora_engine: Any) -> Iterator[Any]:
    """The engine's manager with nothing loaded."""
    made = lora_engine.worker_manager
    made.remove_all_adapters()
    made.adapters.close()
    made.adapters = make_worker_adapters(made, ServingSettings())
    yield made
    made.remove_all_adapters()


@pytest.fixture
def adapters(manager: Any) -> WorkerAdapters:
    """The command side."""
    assert isinstance(manager.adapters, WorkerAdapters)
    return manager.adapters


def request(adapter_id: int, folder: Path) -> Any:
    """vLLM's name for an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter-{adapter_id}", adapter_id, str(folder))


def digest(manager: Any, slot: int) -> str:
    """Of everything a slot holds."""
    digest = hashlib.sha256()
    for module in manager._adapter_manager.modules.values():
        for factor in ("a", "b"):
            for tensor in stacked_tensors(module, factor):
                digest.update(tensor[slot].numpy().tobytes())
    return digest.hexdigest()


def layout(manager: Any) -> list[int | None]:
    """Who vLLM thinks is in which slot."""
    return list(manager._adapter_manager.lora_index_to_id)


def test_a_load_is_answered_with_its_size(adapters: WorkerAdapters, make_adapter: Any) -> None:
    """Loaded comes with the exact rank and the bytes of the image; nothing is active yet."""
    (ack,) = load_all(adapters, {7: make_adapter(1, rank=8)}).values()
    assert (7, 8) == (ack.adapter_id, ack.rank)
    assert 4 * 8 * 4 * (64 + 64) < ack.nbytes
    assert {7} == adapters.host_ids


def test_an_activation_takes_exactly_the_slot_it_names(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """The tenant goes, the others stay, and an adapter that moves leaves its old slot."""
    load_all(adapters, {i: make_adapter(i) for i in (1, 2, 3)})
    adapters.execute([ActivateAdapter(1, 2), ActivateAdapter(2, 0)])
    assert [2, None, 1] == layout(manager)
    adapters.execute([ActivateAdapter(3, 2), ActivateAdapter(2, 1)])
    assert [None, 2, 3] == layout(manager)
    done = [ack for ack in adapters.poll_acks() if isinstance(ack, Activated)]
    assert [(1, 2), (2, 0), (3, 2), (2, 1)] == [(ack.adapter_id, ack.slot) for ack in done]


def test_the_batch_mapping_is_made_anew_after_a_slot_change(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """vLLM remembers its last mapping; an activation makes it forget.

    In its issue 47724 it did not, and a request under way went on with another user's adapter.
    """
    load_all(adapters, {1: make_adapter(1)})
    adapters.execute([ActivateAdapter(1, 0)])
    manager._adapter_manager._last_mapping = "of the step before"
    adapters.execute([ActivateAdapter(1, 1)])
    assert manager._adapter_manager._last_mapping is None


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        ("rank", "LoRA rank 32 is greater than max_lora_rank 16"),
        ("config", r"adapter_config\.json is missing"),
        ("weights", "deserializing|header"),
        ("shape", r"o_proj.*A is \(8, 66\)"),
        ("short", r"o_proj.*A is \(8, 62\), but this model has room for \(8, 64\)"),
        ("missing", r"there is no folder 'nowhere'"),
        ("kind", r"halfmlp' \(and 1 more\) are of a kind .* has down_proj, .*, v_proj; way out: "),
        ("vocabulary", r"embedding LoRA size\(250\) must be .*way out: "),
    ],
)
def test_a_broken_adapter_is_an_answer(
    adapters: WorkerAdapters, make_adapter: Any, damage: str, cause: str
) -> None:
    """LoadFailed with one line that names the adapter and the cause; the next load works."""
    folder = make_adapter(
        1,
        rank=32 if damage == "rank" else 8,
        hidden_error={"shape": 2, "short": -2}.get(damage, 0),
        targets=("o_proj",),
        with_embedding=damage == "vocabulary",
    )
    if damage in ("kind", "vocabulary"):
        rewrite(folder, {"o_proj": "halfmlp"} if damage == "kind" else {}, columns=250)
    if damage == "config":
        (folder / "adapter_config.json").unlink()
    if damage == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"no weights at all")
    if damage == "missing":
        folder = folder / "nowhere"
    adapters.execute([load(1, folder), load(2, make_adapter(2))])
    (failed,) = acks_of(adapters, LoadFailed)
    assert failed.reason.startswith("Adapter 'adapter-1'")
    assert "\n" not in failed.reason
    assert str(folder.parent) not in failed.reason
    assert Fault.SERVER is not failed.fault
    with pytest.raises(AssertionError, match=cause):
        raise AssertionError(failed.reason)
    while 2 not in adapters.host_ids:
        adapters.poll_acks()


def rewrite(folder: Path, words: dict[str, str], chosen: str = "", columns: int = 256) -> Path:
    """The adapter, after words in names that hold `chosen` became others; of no more columns than these."""
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    made = {}
    for name, tensor in load_file(file).items():
        new = name
        for word, other in words.items() if chosen in name else ():
            new = new.replace(word, other)
        made[new] = tensor[:, :columns].contiguous()
    save_file(made, file)
    return folder


def renamed(folder: Path, chosen: str) -> Path:
    """The adapter, after modules whose name holds `chosen` got another wrapper's prefix."""
    return rewrite(folder, {"model.layers": "model.text.layers"}, chosen)


@pytest.mark.parametrize(("chosen", "more"), [(".v_proj", 1), ("layers.1", 6)])
def test_an_adapter_that_fits_in_part_is_refused(
    adapters: WorkerAdapters, make_adapter: Any, chosen: str, more: int
) -> None:
    """Its answers would be neither the base model's nor the adapter's; the first module is named."""
    adapters.execute([load(1, renamed(make_adapter(1), chosen)), load(2, make_adapter(2))])
    (failed,) = acks_of(adapters, LoadFailed)
    assert "its weights for 'model.text.layers." in failed.reason
    assert f"(and {more} more) find no layer of this model; way out: " in failed.reason


def test_an_adapter_that_fits_in_part_is_served_if_the_operator_says_so(
    manager: Any, make_adapter: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning; one that fits nowhere is refused even so."""
    manager.adapters.close()
    serving = ServingSettings(serves_partial=True)
    made = manager.adapters = make_worker_adapters(manager, serving)
    made.execute(
        [load(1, renamed(make_adapter(1), ".v_proj")), load(2, renamed(make_adapter(2), ""))]
    )
    (failed,) = acks_of(made, LoadFailed)
    assert "none of its weights is for a layer of this model" in failed.reason
    assert {1} == made.host_ids
    assert "Adapter 'adapter-1': 2 of its modules change nothing here" in caplog.text


def test_a_drop_frees_copy_and_slot(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """Neither host memory nor a slot names the adapter any more."""
    load_all(adapters, {1: make_adapter(1)})
    adapters.execute([ActivateAdapter(1, 0), DropAdapter(1)])
    assert frozenset() == adapters.host_ids
    assert [None] * 3 == layout(manager)


def test_a_drop_during_the_load_silences_it(adapters: WorkerAdapters, make_adapter: Any) -> None:
    """The dropped load is not answered; a load of the same id after it is, once."""
    folder = make_adapter(1)
    adapters.execute([load(1, folder), DropAdapter(1), load(1, folder), load(2, folder)])
    assert [1, 2] == [ack.adapter_id for ack in acks_of(adapters, Loaded, 2)]
    assert () == adapters.poll_acks()


def test_a_later_load_needs_the_files_no_more(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """The second load comes from the packed image and gives the slot the same bytes."""
    folder = make_adapter(1)
    (loaded,) = load_all(adapters, {1: folder}).values()
    adapters.execute([ActivateAdapter(1, 0)])
    first = digest(manager, 0)
    adapters.execute([DropAdapter(1)])
    finish_keeping(adapters)
    (folder / "adapter_model.safetensors").unlink()
    adapters.execute([load(1, folder, loaded.fingerprint)])
    acks_of(adapters, Loaded)
    adapters.execute([ActivateAdapter(1, 1)])
    assert first == digest(manager, 1)


@pytest.mark.parametrize("moment", ["kept before", "kept after"])
def test_a_rewritten_adapter_is_never_what_was_read_before(
    adapters: WorkerAdapters, make_adapter: Any, tmp_path: Path, moment: str
) -> None:
    """Neither its old image under the new content nor its new bytes under the old one."""
    folder = tmp_path / "adapter"
    shutil.copytree(make_adapter(1), folder)
    old = load_all(adapters, {1: folder})[1].fingerprint
    if moment == "kept before":
        finish_keeping(adapters)
    shutil.copytree(make_adapter(2), folder, dirs_exist_ok=True)
    finish_keeping(adapters)
    new = load_all(adapters, {1: folder})[1].fingerprint
    assert old != new
    assert adapters._reader is not None
    adapters._reader.close()  # no image is left
    adapters.execute([load(1, folder, old)])
    assert "changed after it was announced" in acks_of(adapters, LoadFailed)[0].reason


def finish_keeping(adapters: WorkerAdapters) -> None:
    """Waits until everything read so far has its packed image; the loader starts again by itself."""
    loader = adapters._loader
    assert isinstance(loader, Loader)
    loader.close()


def test_cleared_slots_are_filled_again_when_needed(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """After a profile run or a weight reload the batch finds its adapters in the old slots."""
    folders = {i: make_adapter(i) for i in (1, 2)}
    load_all(adapters, folders)
    adapters.execute([ActivateAdapter(1, 2), ActivateAdapter(2, 0)])
    before = digest(manager, 0)
    manager.remove_all_adapters()
    for module in manager._adapter_manager.modules.values():
        stacked_tensors(module, "a")[0].fill_(float("nan"))
    assert [None] * 3 == layout(manager)
    manager._apply_adapters({request(2, folders[2])})
    assert [2, None, None] == layout(manager)
    assert before == digest(manager, 0)
    manager._apply_adapters({request(1, folders[1]), request(2, folders[2])})
    assert [2, None, 1] == layout(manager)


def test_warm_up_dummies_do_not_harm_real_adapters(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """vLLM's dummies use the ids 1, 2, ... of real adapters; those come back afterwards."""
    folder = make_adapter(1)
    load_all(adapters, {1: folder})
    adapters.execute([ActivateAdapter(1, 1)])
    before = digest(manager, 1)
    dummies = {request(i, Path("/not/a/real/path")) for i in (1, 2, 3)}
    with manager.dummy_lora_cache():
        for dummy in dummies:
            manager.add_dummy_lora(dummy, rank=8)
        manager._apply_adapters(dummies)
        assert {1, 2, 3} == set(layout(manager)) == manager.list_adapters()
    manager.remove_all_adapters()
    assert {1} == manager.list_adapters()
    manager._apply_adapters({request(1, folder)})
    assert before == digest(manager, 1)


def test_an_adapter_without_a_slot_does_not_run(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """Neither one that was only loaded nor one whose slot went to another: no request is guessed for."""
    folders = {i: make_adapter(i) for i in (1, 2)}
    load_all(adapters, folders)
    adapters.execute([ActivateAdapter(1, 1)])
    with pytest.raises(AdapterError, match="Adapter 2 is to run, but the scheduler gave it no"):
        manager._apply_adapters({request(i, folder) for i, folder in folders.items()})
    adapters.execute([ActivateAdapter(2, 1)])
    with pytest.raises(AdapterError, match="Adapter 1 is to run, but the scheduler gave it no"):
        manager._apply_adapters({request(1, folders[1])})


def test_more_adapters_than_slots_is_an_error(manager: Any, make_adapter: Any) -> None:
    """The message gives both numbers and the way out."""
    folder = make_adapter(1)
    with pytest.raises(AdapterError, match="names 4 adapters but there is room for 3; raise"):
        manager._apply_adapters({request(i, folder) for i in range(1, 5)})


def test_adding_removing_and_pinning_are_the_schedulers_business(
    manager: Any, adapters: WorkerAdapters, make_adapter: Any
) -> None:
    """Who asks a worker past its engine is told so, not that it was done; nothing changes."""
    load_all(adapters, {1: make_adapter(1)})
    adapters.execute([ActivateAdapter(1, 0)])
    added = request(2, make_adapter(2))
    for ask, what in (
        (manager.add_adapter, added),
        (manager.remove_adapter, 1),
        (manager.pin_adapter, 1),
    ):
        with pytest.raises(AdapterError, match="way out: ask the engine"):
            ask(what)
    assert (frozenset({1}), [1, None, None]) == (adapters.host_ids, layout(manager))


def test_answers_differ_by_adapter_and_base_stays_base(
    lora_engine: Any, manager: Any, make_adapter: Any
) -> None:
    """With every slot in use, a base-model request in the batch answers as it does alone."""
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": [5, 9, 17, 3]}
    greedy = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, detokenize=False)

    def answers(requests: list[Any]) -> list[list[int]]:
        outputs = lora_engine.llm.generate(
            [prompt] * len(requests), greedy, lora_request=requests, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    folders = {i: make_adapter(i) for i in (1, 2, 3)}
    load_all(manager.adapters, folders)
    manager.adapters.execute([ActivateAdapter(i, i - 1) for i in folders])
    named = [request(i, folder) for i, folder in folders.items()]
    alone = [answers([one])[0] for one in (*named, None)]
    assert alone == answers([*named, None])
    assert 4 == len({tuple(answer) for answer in alone})

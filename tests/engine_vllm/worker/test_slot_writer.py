"""Packing and SlotWriter: whatever was in a slot, afterwards it is what vLLM would have left."""

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.errors import AdapterUnfitError

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from chameleon_lora.engine_vllm.worker.packed_adapter import (  # noqa: E402
    PackedAdapter,
    StockCopy,
    pack,
    stacked_tensors,
)
from chameleon_lora.engine_vllm.worker.slot_writer import SlotWriter  # noqa: E402

OURS, REFERENCE = 1, 0
TARGETS = (
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    ("q_proj", "v_proj"),
    ("k_proj", "down_proj"),
    ("up_proj",),
)
_ids = itertools.count(5000)


@pytest.fixture
def manager(lora_engine: Any) -> Iterator[Any]:
    """The worker's manager with empty slots that are full of NaN."""
    lora_engine.worker_manager.remove_all_adapters()
    for module in lora_engine.slots.modules.values():
        for factor in ("a", "b"):
            for tensor in stacked_tensors(module, factor):
                tensor.fill_(float("nan"))
    yield lora_engine.worker_manager
    for slot in range(lora_engine.slots.lora_slots):
        for module in lora_engine.slots.modules.values():
            module.reset_lora(slot)
    lora_engine.worker_manager.remove_all_adapters()


def loaded(manager: Any, folder: Path) -> Any:
    """The LoRAModel as vLLM's own load makes it, not yet merged."""
    from vllm.lora.request import LoRARequest

    return manager._load_adapter(LoRARequest(folder.name, next(_ids), str(folder)))


def merged(manager: Any, folder: Path) -> Any:
    """The LoRAModel, merged."""
    model = loaded(manager, folder)
    manager._adapter_manager._create_merged_loras_inplace(model)
    return model


def activate_by_vllm(manager: Any, folder: Path) -> None:
    """Puts the adapter into slot REFERENCE by vLLM's own code."""
    model = loaded(manager, folder)
    manager._adapter_manager.remove_all_adapters()
    manager._adapter_manager.add_adapter(model)
    manager._adapter_manager.activate_adapter(model.id)
    assert model.id == manager._adapter_manager.lora_index_to_id[REFERENCE]


def differing_layers(manager: Any) -> list[str]:
    """The layers whose slot OURS is not, byte for byte, slot REFERENCE."""
    return [
        f"{name}.{factor}{index}"
        for name, module in manager._adapter_manager.modules.items()
        for factor in ("a", "b")
        for index, tensor in enumerate(stacked_tensors(module, factor))
        if tensor[OURS].numpy().tobytes() != tensor[REFERENCE].numpy().tobytes()
    ]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("rank", [1, 8, 16])
def test_a_slot_holds_what_vllm_would_have_put_there(
    manager: Any, make_adapter: Any, rank: int, targets: tuple[str, ...]
) -> None:
    """For any rank and targets the bytes are equal, though the slot was full of NaN."""
    folder = make_adapter(rank, rank=rank, targets=targets)
    activate_by_vllm(manager, folder)
    image = pack(manager._adapter_manager, merged(manager, folder))
    assert isinstance(image, PackedAdapter)
    SlotWriter(manager._adapter_manager).write(image, OURS)
    assert [] == differing_layers(manager)


def test_nothing_of_a_former_tenant_is_left(manager: Any, make_adapter: Any) -> None:
    """Each pair of geometries following one another leaves the bytes of the later one alone."""
    folders = [
        make_adapter(seed, rank=rank, targets=targets)
        for seed, (rank, targets) in enumerate(itertools.product((16, 4), TARGETS))
    ]
    images = [pack(manager._adapter_manager, merged(manager, folder)) for folder in folders]
    writer = SlotWriter(manager._adapter_manager)
    for before, after in itertools.permutations(range(len(folders)), 2):
        writer.write(images[before], OURS)
        writer.write(images[after], OURS)
        activate_by_vllm(manager, folders[after])
        assert [] == differing_layers(manager), (before, after)


def test_others_writing_into_a_slot_is_healed_after_forget(manager: Any, make_adapter: Any) -> None:
    """After forget(), bytes that this writer did not write are cleared too."""
    folder = make_adapter(3, rank=4, targets=("q_proj",))
    image = pack(manager._adapter_manager, merged(manager, folder))
    writer = SlotWriter(manager._adapter_manager)
    writer.write(image, OURS)
    for module in manager._adapter_manager.modules.values():
        stacked_tensors(module, "b")[0][OURS].fill_(7.0)
    writer.forget()
    writer.write(image, OURS)
    activate_by_vllm(manager, folder)
    assert [] == differing_layers(manager)


def test_an_output_head_is_packed_as_well(manager: Any, make_adapter: Any) -> None:
    """An adapter of lm_head, whose layer keeps one tensor instead of a tuple, gives equal bytes."""
    if "lm_head" not in manager._adapter_manager.modules:
        pytest.skip("this vLLM does not wrap the Llama's lm_head")
    folder = make_adapter(9, rank=8, targets=("q_proj",), with_head=True)
    activate_by_vllm(manager, folder)
    image = pack(manager._adapter_manager, merged(manager, folder))
    assert isinstance(image, PackedAdapter)
    SlotWriter(manager._adapter_manager).write(image, OURS)
    assert [] == differing_layers(manager)


def test_a_stock_copy_goes_into_the_slot_it_is_meant_for(manager: Any, make_adapter: Any) -> None:
    """vLLM's own activation writes the chosen slot and leaves no trace in vLLM's books."""
    folder = make_adapter(4, rank=8)
    activate_by_vllm(manager, folder)
    slots = manager._adapter_manager
    registered, layout = set(slots.list_adapters()), list(slots.lora_index_to_id)
    model = merged(manager, folder)
    writer = SlotWriter(slots)
    writer.write(StockCopy(model.id, model.rank, 1, model), OURS)
    assert [] == differing_layers(manager)
    assert (registered, layout) == (set(slots.list_adapters()), list(slots.lora_index_to_id))
    small = make_adapter(5, rank=1, targets=("up_proj",))
    writer.write(pack(slots, merged(manager, small)), OURS)
    activate_by_vllm(manager, small)
    assert [] == differing_layers(manager)


def test_an_image_has_the_adapters_exact_rank(manager: Any, make_adapter: Any) -> None:
    """A rank-4 image is a quarter of a rank-16 one, up to the padding between its pieces."""
    sizes = {
        rank: pack(manager._adapter_manager, merged(manager, make_adapter(rank, rank=rank))).nbytes
        for rank in (4, 16)
    }
    assert sizes[16] == pytest.approx(4 * sizes[4], rel=0.05)


def test_an_adapter_of_another_model_is_refused(manager: Any, make_adapter: Any) -> None:
    """A matrix of the wrong width is an error that names the layer and both shapes."""
    folder = make_adapter(6, rank=8, targets=("o_proj",), hidden_error=2)
    with pytest.raises(AdapterUnfitError, match=r"o_proj.*A is \(8, 66\).*room for \(8, 64\)"):
        pack(manager._adapter_manager, merged(manager, folder))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(
    manager: Any, make_adapter: Any, bad: float
) -> None:
    """One of them in one matrix is enough: each answer would be noise."""
    model = merged(manager, make_adapter(7, rank=4))
    weights = model.loras["model.layers.1.mlp.down_proj"]
    weights.lora_b[3, 2] = bad
    with pytest.raises(AdapterUnfitError, match="nan or infinity"):
        pack(manager._adapter_manager, model)


def with_unknown_layers(manager: Any) -> Any:
    """The slots' manager as `pack` reads it, of layers whose slots are not known to be A and B alone."""
    slots = copy.copy(manager._adapter_manager)
    slots.modules = {name: copy.copy(module) for name, module in slots.modules.items()}
    for module in slots.modules.values():
        module.__class__ = type("UnknownWithLoRA", (type(module),), {})
    return slots


def test_what_vllm_will_copy_inside_a_step_is_tried_before(manager: Any, make_adapter: Any) -> None:
    """An adapter with layers of unknown kind whose copy would fail there is refused, and names the layer.

    Sound ones are not, and no slot is written.
    """
    slots = with_unknown_layers(manager)
    before = slots.modules["model.layers.0.self_attn.o_proj"].lora_a_stacked[0].clone()
    assert isinstance(pack(slots, merged(manager, make_adapter(9, rank=8))), StockCopy)
    wide = merged(manager, make_adapter(6, rank=8, targets=("o_proj",), hidden_error=2))
    with pytest.raises(AdapterUnfitError, match=r"layer .*o_proj: .*66.*way out"):
        pack(slots, wide)
    after = slots.modules["model.layers.0.self_attn.o_proj"].lora_a_stacked[0]
    assert torch.equal(before.isnan(), after.isnan())


def test_numbers_are_looked_at_in_layers_of_unknown_kind_too(
    manager: Any, make_adapter: Any
) -> None:
    """One that is none is refused."""
    model = merged(manager, make_adapter(7, rank=4))
    model.loras["model.layers.1.mlp.down_proj"].lora_a[0, 1] = float("nan")
    with pytest.raises(AdapterUnfitError, match="nan or infinity"):
        pack(with_unknown_layers(manager), model)


def test_keys_of_another_wrapper_are_named(manager: Any, make_adapter: Any) -> None:
    """Beside a name that this model has, and with the way out."""
    model = merged(manager, make_adapter(7, rank=4, targets=("o_proj",)))
    model.loras = {f"language_{name}": weights for name, weights in model.loras.items()}
    with pytest.raises(
        AdapterUnfitError,
        match=r"for 'language_model\.layers.*has 'model\.layers.*o_proj'; way out",
    ):
        pack(manager._adapter_manager, model)


def test_an_images_rank_is_its_widest_matrix(manager: Any, make_adapter: Any) -> None:
    """It is measured, not read from the adapter's configuration."""
    model = merged(manager, make_adapter(8, rank=4, with_head=True, with_embedding=True))
    model.rank = 1
    image = pack(manager._adapter_manager, model)
    assert isinstance(image, PackedAdapter)
    assert 4 == image.rank


def test_an_image_is_zero_between_its_pieces(manager: Any, make_adapter: Any) -> None:
    """Memory of any content would read as nan from a KV block."""
    image = pack(manager._adapter_manager, merged(manager, make_adapter(8, rank=3)))
    assert isinstance(image, PackedAdapter)
    is_gap = torch.ones(image.nbytes, dtype=torch.bool)
    for piece in image.pieces:
        is_gap[piece.offset_bytes : piece.offset_bytes + piece.nbytes] = False
    assert bool(is_gap.any())
    assert not bool(image.flat[is_gap].any())

"""What real layers add for each adapter of a batch, and what their slots hold."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from chameleon_lora.engine_vllm.worker.packed_adapter import stacked_tensors
from tests.engine_vllm.conftest import ALL_TARGETS, HIDDEN, VOCABULARY, MakeAdapter

TOLERANCE = 1e-6  # of the largest number a layer answers: sums that begin elsewhere round otherwise
Deltas = dict[str, Any]


def adapters_of(
    make_adapter: MakeAdapter,
    ranks: Mapping[int, int],
    targets: Mapping[int, tuple[str, ...]],
    with_ends: Sequence[int],
) -> dict[int, Path]:
    """An adapter for each number, of that rank: of all targets unless told otherwise, some of both ends too."""
    return {
        number: make_adapter(
            number,
            rank=rank,
            targets=targets.get(number, ALL_TARGETS),
            with_head=number in with_ends,
            with_embedding=number in with_ends,
        )
        for number, rank in ranks.items()
    }


def all_stacked(manager: Any) -> list[Any]:
    """The tensors of all layers' slots."""
    return [
        stacked
        for module in manager._adapter_manager.modules.values()
        for factor in ("a", "b")
        for stacked in stacked_tensors(module, factor)
    ]


def deltas(manager: Any, batch: Sequence[int]) -> Deltas:
    """What each layer adds to its output, by row of a batch; 0 is a row of the base model."""
    from vllm.lora.layers import LoRAMapping

    slots = manager._adapter_manager
    slots.set_adapter_mapping(LoRAMapping(tuple(batch), tuple(batch), is_prefill=True))
    return {name: delta_of(module, len(batch)) for name, module in slots.modules.items()}


def delta_of(module: Any, rows: int) -> Any:
    """One layer's, for the same input in each row."""
    generator = torch.Generator().manual_seed(5)
    kind, punica = type(module).__name__, module.punica_wrapper
    a, b = module.lora_a_stacked, module.lora_b_stacked
    if kind == "VocabParallelEmbeddingWithLoRA":
        tokens = torch.full((rows,), 77)
        return module(tokens) - module.base_layer(tokens)
    if kind == "LogitsProcessorWithLoRA":
        x = torch.randn(1, HIDDEN, generator=generator).expand(rows, -1).contiguous()
        y = torch.zeros(rows, VOCABULARY)
        punica.add_lora_logits(y, x, a, b, 1.0)
        return y
    x = torch.randn(1, a[0].shape[-1], generator=generator).expand(rows, -1).contiguous()
    y = torch.zeros(rows, sum(module.output_slices))
    punica.add_lora_linear(y, x, a, b, 1.0, module.output_slices)
    return y


def assert_as_alone(manager: Any, alone: Mapping[int, Deltas], batch: Sequence[int]) -> None:
    """Every row of every layer is as if its adapter had the slot, and 0 for the base model."""
    assert_alike(deltas(manager, batch), alone, batch)


def assert_alike(answers: Deltas, alone: Mapping[int, Deltas], batch: Sequence[int]) -> None:
    """The same of answers that are there already."""
    for name, found in answers.items():
        for row, number in enumerate(batch):
            if number == 0:
                assert not found[row].any(), name
                continue
            expected = alone[number][name]
            error = float((found[row] - expected).abs().max())
            assert error <= TOLERANCE * float(expected.abs().max()), (name, number, error)


def slot_bytes(manager: Any, slot: int) -> bytes:
    """Everything in a slot."""
    return b"".join(stacked[slot].numpy().tobytes() for stacked in all_stacked(manager))

"""LoRA arithmetic on CPU from slots: base rows stay base."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm]

from chameleon_lora.engine_vllm.worker.cpu_punica import adopt, wrapper_class  # noqa: E402

RANK, INPUTS, OUTPUTS, VOCABULARY, SLOTS = 8, 6, 5, 11, 2
OPERATIONS = ("linear", "embedding", "logits")
NAN = float("nan")


class Layer:
    """One layer's slots, full of large random numbers, as vLLM lays them out."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.a = 10 * torch.randn(SLOTS, 1, RANK, INPUTS, generator=generator)
        self.b = 10 * torch.randn(SLOTS, 1, OUTPUTS, RANK, generator=generator)
        self.table = 10 * torch.randn(SLOTS, VOCABULARY, RANK, generator=generator)

    def run(self, operation: str, punica: Any, rows: Any, output: Any) -> Any:
        """What the layer makes of these rows' inputs (token numbers for an embedding)."""
        y = output.clone()
        if operation == "linear":
            punica.add_lora_linear(y, rows, (self.a,), (self.b,), 1.0, (OUTPUTS,))
        elif operation == "logits":
            punica.add_lora_logits(y, rows, self.a, self.b, 1.0)
        else:
            starts = punica._embeddings_indices.view(-1, punica._embeddings_indices.shape[-1])[-1]
            picked = self.table.view(-1, RANK)[tokens_of(rows) + starts[: len(rows)]]
            before = picked.clone()
            punica.add_lora_embedding(y, picked, self.b, add_input=True)
            assert torch.equal(before.nan_to_num(), picked.nan_to_num())
        return y


def tokens_of(rows: Any) -> Any:
    """A token for each row, made of its first input."""
    return (rows[:, 0].abs() * 1000).long() % VOCABULARY


def wrapper(kind: type[Any], slot_of_row: Sequence[int]) -> Any:
    """The wrapper, told of a batch; -1 is a row of the base model."""
    made = kind(64, 16, device="cpu")
    tell(made, slot_of_row)
    return made


def tell(punica: Any, slot_of_row: Sequence[int]) -> None:
    """Which adapter each row has: the adapter in slot s has the id s + 1."""
    from vllm.lora.layers import LoRAMapping

    ids = tuple(slot + 1 for slot in slot_of_row)
    layout = [slot + 1 for slot in range(SLOTS)]
    punica.update_metadata(LoRAMapping(ids, ids, is_prefill=True), layout, SLOTS + 1, VOCABULARY)


def batch(rows: int) -> tuple[Any, Any]:
    """Inputs, and an output that is not zero."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, INPUTS)
    return torch.randn(shape, generator=generator), torch.randn(rows, OUTPUTS, generator=generator)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("slot_of_row", [[1, -1, 0, -1, 1], [0], [1, 1]])
def test_base_rows_keep_every_bit_and_others_get_their_own_adapter(
    operation: str, slot_of_row: list[int]
) -> None:
    """A row with an adapter is what vLLM computes for it alone."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    layer = Layer()
    inputs, output = batch(len(slot_of_row))
    found = layer.run(operation, wrapper(wrapper_class(), slot_of_row), inputs, output)
    for row, slot in enumerate(slot_of_row):
        one = slice(row, row + 1)
        if slot < 0:
            assert torch.equal(output[row], found[row]), row
            continue
        stock = wrapper(PunicaWrapperCPU, [slot])
        expected = layer.run(operation, stock, inputs[one], output[one])[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_batch_of_base_rows_computes_nothing(operation: str) -> None:
    """Not even NaN in every slot can reach it."""
    layer = Layer()
    for tensor in (layer.a, layer.b, layer.table):
        tensor.fill_(NAN)
    inputs, output = batch(4)
    found = layer.run(operation, wrapper(wrapper_class(), [-1] * 4), inputs, output)
    assert torch.equal(output, found)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nan_in_another_slot_reaches_nobody(operation: str) -> None:
    """Rows of slot 0 are finite, base rows untouched, though all of slot 1 is NaN."""
    layer = Layer()
    for tensor in (layer.a, layer.b, layer.table):
        tensor[1] = NAN
    inputs, output = batch(3)
    found = layer.run(operation, wrapper(wrapper_class(), [0, -1, 0]), inputs, output)
    assert found.isfinite().all()
    assert torch.equal(output[1], found[1])


def test_logits_of_a_whole_prompt_are_its_own_adapters() -> None:
    """vLLM gives the output head a part of the model's states, of one request of several."""
    from vllm.lora.layers import LoRAMapping

    layer, punica = Layer(), wrapper_class()(64, 16, device="cpu")
    of_tokens, of_samples = (1, 1, 2, 2, 2, 0), (1, 2, 0)
    mapping = LoRAMapping(of_tokens, of_samples, is_prefill=True)
    punica.update_metadata(mapping, [1, 2], SLOTS + 1, VOCABULARY)
    inputs, output = batch(6)
    for prompt, slot in ((slice(0, 2), 0), (slice(2, 5), 1), (slice(5, 6), -1)):
        found = layer.run("logits", punica, inputs[prompt], output[prompt])
        alone = wrapper(wrapper_class(), [slot] * len(found))
        expected = layer.run("logits", alone, inputs[prompt].clone(), output[prompt])
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    sampled = inputs[[1, 4, 5]]
    found = layer.run("logits", punica, sampled, output[:3])
    expected = layer.run("logits", wrapper(wrapper_class(), [0, 1, -1]), sampled, output[:3])
    assert torch.equal(expected, found)


def test_adoption_is_made_once() -> None:
    """A batch's rows survive a second adoption."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    punica = PunicaWrapperCPU(64, 16, device="cpu")
    manager = SimpleNamespace(
        punica_wrapper_mapping={"language": punica, "tower": punica}, _last_mapping="a batch"
    )
    adopt(manager)
    assert isinstance(punica, wrapper_class())
    assert manager._last_mapping is None
    assert 0 == punica.tokens.slot.numel()
    tell(punica, [1, -1])
    manager._last_mapping, rows = "the next", punica.tokens
    adopt(manager)
    assert rows is punica.tokens
    assert "the next" == manager._last_mapping


def test_without_the_guard_the_last_slot_leaks() -> None:
    """vLLM's own kernel changes a base row: the day it does not, rows need no picking."""
    from vllm.lora.ops.torch_ops import lora_ops

    layer = Layer()
    inputs, output = batch(3)
    slots = torch.tensor([1, -1, 0])
    buffer = torch.zeros(3, RANK)
    lora_ops.bgmv_shrink(inputs, layer.a, buffer, slots, 1.0)
    found = output.clone()
    lora_ops.bgmv_expand(buffer, layer.b, found, slots, True)
    assert not torch.equal(output[1], found[1])
    guarded = layer.run("linear", wrapper(wrapper_class(), [1, -1, 0]), inputs, output)
    assert torch.equal(output[1], guarded[1])

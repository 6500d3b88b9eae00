"""vLLM's LoRA arithmetic on CPU, for slots that several adapters share and for base-model rows.

vLLM marks a row without an adapter by slot -1, and its torch-native kernels gather with that index,
which wraps to the last slot: with all slots in use, a base-model request gets that slot's adapter
(seen in 0.26 and 0.32). Here such rows are neither gathered nor written.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch

from chameleon_lora.engine_vllm.cells import Cells


class CellMasks:
    """Which ranks of its slot each cell's adapter has. Owner: the worker's adapters."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self._foreign = torch.ones(cells.count, cells.max_rank, dtype=torch.bool)

    def set(self, cell: int, rank: int) -> None:
        """From now on the cell's adapter uses so many ranks from its first; the slot's others are foreign."""
        first = self.cells.first_rank(cell)
        self._foreign[cell] = True
        self._foreign[cell, first : first + rank] = False

    def select(self, cell_of_row: torch.Tensor) -> "AdapterRows":
        """What the kernels need to know of a batch, from each row's cell (-1: no adapter)."""
        has_adapter = cell_of_row >= 0
        picked = None if bool(has_adapter.all()) else has_adapter.nonzero().squeeze(1)
        cell = cell_of_row if picked is None else cell_of_row[picked]
        foreign = None if self.cells.parts == 1 else self._foreign[cell]
        return AdapterRows(picked, cell // self.cells.parts, foreign)


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of a batch that have an adapter.

    Attributes:
        picked: their numbers, (n,); None when all rows have one.
        slot: of each of them, (n,).
        foreign: True where a rank of the slot is not the row's adapter's, (n, max_rank), or None.
    """

    picked: torch.Tensor | None
    slot: torch.Tensor
    foreign: torch.Tensor | None

    def take(self, tensor: torch.Tensor) -> torch.Tensor:
        """Their part of a tensor over all rows; the tensor itself when all have an adapter."""
        return tensor if self.picked is None else tensor[self.picked]

    def put(self, tensor: torch.Tensor, part: torch.Tensor) -> None:
        """Write their part back, where `take` made a copy."""
        if self.picked is not None:
            tensor[self.picked] = part

    def mask(self, shrunk: torch.Tensor) -> None:
        """Zero, in rows of x @ A, what neighbours in the slot contributed; also inf and nan."""
        if self.foreign is not None:
            shrunk.masked_fill_(self.foreign, 0)


def adopt(adapter_manager: Any, masks: CellMasks) -> None:
    """Afterwards vLLM's LoRA arithmetic of this model reads cells; only on CPU. Idempotent."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for wrapper in adapter_manager.punica_wrapper_mapping.values():
        if getattr(wrapper, "masks", None) is not masks:
            wrapper.__class__ = wrapper_class()
            wrapper.masks = masks
            wrapper.tokens = wrapper.samples = masks.select(torch.empty(0, dtype=torch.long))
            adapter_manager._last_mapping = None  # made without these masks


@functools.cache
def wrapper_class() -> type[Any]:
    """vLLM's CPU wrapper with cells for slots."""
    from vllm.lora.ops.torch_ops.lora_ops import bgmv_expand, bgmv_expand_slice, bgmv_shrink
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class CellPunica(PunicaWrapperCPU):
        """Reads the batch's cells once a step instead of once a kernel."""

        masks: CellMasks
        tokens: AdapterRows
        samples: AdapterRows

        def update_metadata(
            self, mapping: Any, lora_index_to_id: Any, max_loras: int, vocab_size: int, **kw: Any
        ) -> None:
            super().update_metadata(mapping, lora_index_to_id, max_loras, vocab_size, **kw)
            self.tokens = self.masks.select(self.token_lora_indices)
            self.samples = self.masks.select(self.sampler_indices)
            starts = self._embeddings_indices[..., : self.indices_len[3]]  # 0.26: (2, tokens)
            starts.copy_(starts // vocab_size // self.masks.cells.parts * vocab_size)

        def _apply_shrink(self, y: Any, x: Any, w_t_all: Any, scale: float) -> None:
            shrink(bgmv_shrink, self.tokens, y.view(-1, y.shape[-1]), x, w_t_all, scale)

        def _apply_expand(self, y: Any, x: Any, w_t_all: Any, *place: Any, **kw: Any) -> None:
            expand(bgmv_expand_slice, self.tokens, y, x, w_t_all, *place, **kw)

        def add_lora_embedding(
            self, y: Any, x: Any, lora_b_stacked: Any, add_inputs: bool = True, **_: Any
        ) -> None:
            shrunk = x.clone()
            part = self.tokens.take(shrunk)
            self.tokens.mask(part)
            self.tokens.put(shrunk, part)
            expand(bgmv_expand, self.tokens, y, shrunk, lora_b_stacked, add_inputs)

        def add_lora_logits(
            self, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: Any, **_: Any
        ) -> None:
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            buffer = torch.zeros((x.size(0), lora_b_stacked.size(-1)), dtype=torch.float32)
            shrink(bgmv_shrink, self.samples, buffer, x, lora_a_stacked, scale)
            expand(bgmv_expand, self.samples, y, buffer, lora_b_stacked, True)

    return CellPunica


def shrink(kernel: Any, rows: AdapterRows, y: Any, x: Any, weights: Any, scale: float) -> None:
    """y (all rows, max_rank) = scale * x @ A of each row's own adapter, in its rows."""
    if rows.slot.numel():
        part = rows.take(y)
        kernel(rows.take(x), weights, part, rows.slot, scale)
        rows.mask(part)
        rows.put(y, part)


def expand(
    kernel: Any, rows: AdapterRows, y: Any, x: Any, weights: Any, *place: Any, **kw: Any
) -> None:
    """y (all rows, out) += x @ B of each row's own adapter, in its rows; `place` is the kernel's."""
    if rows.slot.numel():
        part = rows.take(y)
        kernel(rows.take(x), weights, part, rows.slot, *place, **kw)
        rows.put(y, part)

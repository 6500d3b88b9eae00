"""vLLM's LoRA arithmetic on CPU from slots, without its fault at base-model rows.

vLLM marks a row without an adapter by slot -1, and its torch-native kernels gather with that index,
which wraps to the last slot: with all slots in use, a base-model request gets that slot's adapter
(seen in 0.26 and 0.32). Here such rows are neither gathered nor written.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class AdapterRows:
    """The rows of a batch that have an adapter.

    Attributes:
        picked: their numbers, (n,); None when all rows have one.
        slot: of each of them, (n,).
    """

    picked: torch.Tensor | None
    slot: torch.Tensor

    @classmethod
    def of(cls, slot_of_row: torch.Tensor) -> "AdapterRows":
        """What the kernels need to know of a batch, from each row's slot (-1: no adapter)."""
        has_adapter = slot_of_row >= 0
        if bool(has_adapter.all()):
            return cls(None, slot_of_row)
        picked = has_adapter.nonzero().squeeze(1)
        return cls(picked, slot_of_row[picked])

    def apply(self, kernel: Any, y: Any, x: Any, weights: Any, *scale: Any, **kw: Any) -> None:
        """The kernel on these rows of x and y alone."""
        if not self.slot.numel():
            return
        if self.picked is None:
            kernel(x, weights, y, self.slot, *scale, **kw)
            return
        part = y[self.picked]
        kernel(x[self.picked], weights, part, self.slot, *scale, **kw)
        y[self.picked] = part


def adopt(adapter_manager: Any) -> None:
    """Afterwards vLLM's LoRA arithmetic of this model leaves base rows alone; only on CPU. Idempotent."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    for wrapper in adapter_manager.punica_wrapper_mapping.values():
        if not isinstance(wrapper, wrapper_class()):
            wrapper.__class__ = wrapper_class()
            wrapper.tokens = wrapper.samples = AdapterRows.of(torch.empty(0, dtype=torch.long))
            adapter_manager._last_mapping = None  # made without these rows


@functools.cache
def wrapper_class() -> type[Any]:
    """vLLM's CPU wrapper, which reads the batch's slots once a step instead of once a kernel."""
    from vllm.lora.ops.torch_ops.lora_ops import bgmv_expand, bgmv_expand_slice, bgmv_shrink
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    class AdapterRowsPunica(PunicaWrapperCPU):
        """Multiplies rows that have an adapter, and no others."""

        tokens: AdapterRows
        samples: AdapterRows

        def update_metadata(self, *args: Any, **kwargs: Any) -> None:
            super().update_metadata(*args, **kwargs)
            self.tokens = AdapterRows.of(self.token_lora_indices)
            self.samples = AdapterRows.of(self.sampler_indices)

        def _apply_shrink(self, y: Any, x: Any, w_t_all: Any, scale: float) -> None:
            self.tokens.apply(bgmv_shrink, y.view(-1, y.shape[-1]), x, w_t_all, scale)

        def _apply_expand(self, y: Any, x: Any, w_t_all: Any, *place: Any, **kw: Any) -> None:
            self.tokens.apply(bgmv_expand_slice, y, x, w_t_all, *place, **kw)

        def add_lora_embedding(
            self, y: Any, x: Any, lora_b_stacked: Any, add_inputs: bool = True, **_: Any
        ) -> None:
            self.tokens.apply(bgmv_expand, y, x, lora_b_stacked, add_inputs)

        def add_lora_logits(
            self, y: Any, x: Any, lora_a_stacked: Any, lora_b_stacked: Any, scale: Any, **_: Any
        ) -> None:
            y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
            buffer = torch.zeros((x.size(0), lora_b_stacked.size(-1)), dtype=torch.float32)
            rows = self._rows_of_states(x)
            rows.apply(bgmv_shrink, buffer, x, lora_a_stacked, scale)
            rows.apply(bgmv_expand, y, buffer, lora_b_stacked, True)

        def _rows_of_states(self, x: Any) -> AdapterRows:
            """Those to be sampled from, or a part of the model's states: all of one prompt, for `prompt_logprobs`.

            vLLM does not say so, and its own kernels fail there in a batch of several requests (0.32).
            """
            if len(x) == len(self.sampler_indices) and x.untyped_storage().nbytes() == x.nbytes:
                return self.samples
            first = x.storage_offset() // x.stride(0)
            found = self.token_lora_indices[first : first + len(x)]
            return AdapterRows.of(found) if len(found) == len(x) else self.samples

    return AdapterRowsPunica

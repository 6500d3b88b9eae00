"""Several adapters in one of vLLM's slots.

vLLM makes every slot as wide as the largest rank allowed, so an adapter of rank 4 in a slot of rank 16
leaves three quarters of it idle, while slots bound how many adapters one batch may mix. Here a slot
is divided into cells of equal rank. An adapter takes as many neighbouring cells as its rank needs (a
power of two, aligned); each row of a batch is multiplied with the whole slot, as ever, and what
belongs to its neighbours is masked out between A and B.
"""

from dataclasses import dataclass
from typing import Any

from chameleon_lora.policy.plan import cells_needed


@dataclass(frozen=True, slots=True)
class Cells:
    """How an engine's slots are divided.

    Attributes:
        slots: vLLM's slots (max_loras).
        parts: cells in a slot, a power of two; 1 is vLLM's own way.
        max_rank: of a slot; a multiple of `parts`.
    """

    slots: int
    parts: int
    max_rank: int

    @property
    def count(self) -> int:
        """Cells of all slots; a cell's number is slot * parts + its place in the slot."""
        return self.slots * self.parts

    def slot(self, cell: int) -> int:
        """Which of vLLM's slots holds this cell, from 0; cells are numbered slot by slot."""
        return cell // self.parts

    def first_rank(self, cell: int) -> int:
        """The row of A (column of B) of its slot at which a cell begins."""
        return cell % self.parts * (self.max_rank // self.parts)

    def needed(self, rank: int) -> int:
        """Cells that an adapter of this rank takes: a power of two, at most a whole slot."""
        return cells_needed(rank, self.parts, self.max_rank)


def cells_of(vllm_config: Any, parts: int) -> Cells:
    """The division this engine can have: `parts` or fewer, 1 off CPU and for pooling models.

    On other platforms vLLM's kernels take a row's slot whole; masking there is not built yet. A
    pooling model's head looks its adapter up by slot, not through the wrapper that knows cells.
    """
    from vllm.platforms import current_platform

    lora = vllm_config.lora_config
    if lora is None:
        return Cells(1, 1, 1)
    is_pooling = vllm_config.model_config.runner_type == "pooling"
    if not current_platform.is_cpu() or lora.fully_sharded_loras or is_pooling:
        parts = 1
    while parts > 1 and (parts > lora.max_lora_rank or lora.max_lora_rank % parts):
        parts //= 2
    return Cells(lora.max_loras, parts, lora.max_lora_rank)

"""What memory and time an engine has: in all, and left in a step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Room:
    """What the engine has left for new requests in this step.

    Attributes:
        seats: requests it may still run at the same time.
        kv_tokens: tokens that fit in free KV-cache blocks.
        batch_tokens: tokens this step may still compute.
        is_empty: no request runs, so whatever comes first is to be tried.
        free_blocks: KV blocks that neither requests nor adapters hold.
        growth_blocks: of them, that running requests take in this step.
    """

    seats: int
    kv_tokens: int
    batch_tokens: int
    is_empty: bool = False
    free_blocks: int = 0
    growth_blocks: int = 0


@dataclass(frozen=True, slots=True)
class KvBlocks:
    """The KV cache as adapters see it.

    Attributes:
        count: blocks in all.
        nbytes: of one block on one rank, over all layers; 0 if blocks cannot hold adapters.
        is_paged: adapters run from their blocks, without slots (ADR 0020).
    """

    count: int
    nbytes: int
    is_paged: bool = False

"""The policy's answer to one engine step: plain data, carried out by a driver."""

from dataclasses import dataclass
from enum import Enum

from chameleon_lora.policy.request import AdapterId, RequestId


class Held(Enum):
    """Why a lane's oldest ready request is not admitted in this step."""

    SEATS = "seats"  # the engine runs as many requests as it may
    QUOTA = "quota"  # its lane's quota and the donated pool are used up
    SLOTS = "slots"  # as many distinct adapters run as one batch may mix
    KV_MEMORY = "kv_memory"  # free KV-cache memory does not cover its prompt
    BATCH = "batch"  # this step's token budget is spent
    URGENT = "urgent"  # an older request has been overtaken to its limit and goes first
    INTERVAL = "interval"  # this step admits nobody (S-LoRA's rule)


class DemotionReason(Enum):
    """Why an adapter gave its KV blocks back."""

    DEMAND = "demand"  # requests needed them
    REPLACED = "replaced"  # an adapter worth more took them
    PREFIX = "prefix"  # the prefix cache lacked them
    RESET = "reset"  # the KV cache was emptied as a whole
    DROPPED = "dropped"  # it left host memory, or is served no longer
    FAILED = "failed"  # the copy could not be made


@dataclass(frozen=True, slots=True)
class Admission:
    """Run this request from this step on; it goes with the step's slot changes."""

    request_id: RequestId
    adapter_id: AdapterId | None
    lane: int


@dataclass(frozen=True, slots=True)
class Load:
    """Read this adapter from disk to host memory, after dropping `evicts` from host memory."""

    adapter_id: AdapterId
    evicts: tuple[AdapterId, ...]


@dataclass(frozen=True, slots=True)
class Activation:
    """Copy this adapter into the slot, over whatever is there.

    Attributes:
        is_cold: it came from disk for this, and has been in no slot since.
    """

    adapter_id: AdapterId
    slot: int
    is_cold: bool = False


@dataclass(frozen=True, slots=True)
class Promotion:
    """Copy this adapter from host memory into `blocks` KV blocks, in the background.

    Attributes:
        serial: tells it from earlier promotions of the same adapter.
        evicts: whose blocks are given back first, to make room for it.
    """

    adapter_id: AdapterId
    serial: int
    blocks: int
    evicts: tuple[AdapterId, ...]


class Fault(Enum):
    """What an adapter that cannot be loaded fails by."""

    CONTENT = "content"  # its own bytes: they will never do on this engine
    FILES = "files"  # what lies in its place, where other files may come to lie
    SERVER = "server"  # the machine's disk or memory


@dataclass(frozen=True, slots=True)
class Failure:
    """End this request: its adapter cannot be loaded."""

    request_id: RequestId
    adapter_id: AdapterId
    reason: str
    fault: Fault = Fault.SERVER


@dataclass(frozen=True, slots=True)
class LaneState:
    """One lane after the step, for metrics and for the page that explains waits."""

    lane: int
    waiting: int
    loading: int
    running: int
    quota_tokens: int
    used_tokens: int
    head: RequestId | None
    head_adapter: AdapterId | None
    held: Held | None


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Everything a driver does in one step, in this order: fail, squash, drop, load, activate, admit,
    give KV blocks back, promote.

    Attributes:
        admit: in the order in which the engine is to admit.
        squash: running requests that go back to their lanes, because the slot or memory they
            took by bypass can now go to the head they passed.
        drops: adapters to forget in host memory (unregistered, or left unused by the keep rule).
        demotions: adapters whose KV blocks are given back, besides those that promotions evict.
    """

    admit: tuple[Admission, ...] = ()
    squash: tuple[RequestId, ...] = ()
    loads: tuple[Load, ...] = ()
    drops: tuple[AdapterId, ...] = ()
    activations: tuple[Activation, ...] = ()
    fail: tuple[Failure, ...] = ()
    demotions: tuple[AdapterId, ...] = ()
    promotions: tuple[Promotion, ...] = ()


@dataclass(frozen=True, slots=True)
class StepBudget:
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
    """

    count: int
    nbytes: int

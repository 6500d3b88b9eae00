"""What the scheduler tells the workers, and what they answer.

Commands travel as an extra attribute of vLLM's SchedulerOutput, acks as one of ModelRunnerOutput.
Both are pickled between processes. Only one rank's acks reach the scheduler, so ranks agree first:
what is loaded or promoted is so on every rank (`worker/agreement.py`).
"""

from dataclasses import dataclass
from typing import TypedDict

from chameleon_lora.policy.plan import Fault

COMMANDS_ATTRIBUTE = "chameleon_commands"
ACKS_ATTRIBUTE = "chameleon_acks"


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Bring the adapter into host memory, in the background. Answered by Loaded or LoadFailed.

    Sent again for an id already known, it replaces the weights and frees the adapter's slot.

    Attributes:
        path: a local folder, or a name vLLM can resolve to one.
        is_3d: its mixture-of-experts weights are stored fused (LoRARequest.is_3d_lora_weight).
        fingerprint: of the bytes meant; others there are refused. None for whatever is there.
    """

    adapter_id: int
    name: str
    path: str
    is_3d: bool = False
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class DropAdapter:
    """Forget the host copy, or the load under way, and free the adapter's slot. Not answered.

    Only for an adapter that no scheduled request names.
    """

    adapter_id: int


@dataclass(frozen=True, slots=True)
class ActivateAdapter:
    """Put the host copy into the slot, in place of its occupant.

    Answered by Activated. Only for an adapter that was answered by Loaded, so no rank waits for it.
    """

    adapter_id: int
    slot: int


@dataclass(frozen=True, slots=True)
class PromoteAdapter:
    """Copy the host copy into these KV blocks, in the background, its bytes in the blocks' order.

    Answered by Promoted or PromotionFailed, with the same serial.

    Attributes:
        serial: tells this promotion from earlier ones of the same adapter.
        blocks: numbers of KV blocks that nobody else reads or writes until they are demoted.
    """

    adapter_id: int
    serial: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DemoteAdapter:
    """Forget the copy in KV blocks, which may be written from this step on. Not answered.

    A copy still under way is waited for first; that of the host and of the slot stay.
    """

    adapter_id: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The adapter is in host memory on every rank, ready to be activated.

    Attributes:
        is_packed: it is a plain run of bytes, so KV blocks can hold it.
        nbytes: of the largest host copy on one rank, at the adapter's exact rank.
        rank: the largest of its layers'.
        seconds: from the start of the slowest load; waiting for earlier loads not counted.
        fingerprint: of the bytes that were read.
    """

    adapter_id: int
    nbytes: int
    rank: int
    seconds: float
    is_packed: bool = True
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A rank cannot load the adapter, so none keeps it; `reason` is one line with name and cause."""

    adapter_id: int
    reason: str
    fault: Fault


@dataclass(frozen=True, slots=True)
class Activated:
    """The adapter is in its slot from this step on; `seconds` were spent inside the step.

    Attributes:
        from_device: it came from KV blocks, not from host memory.
        is_checked: those blocks' bytes were compared with the host copy and equal (debugging).
    """

    adapter_id: int
    slot: int
    seconds: float
    from_device: bool = False
    is_checked: bool = False


@dataclass(frozen=True, slots=True)
class Promoted:
    """It is in its KV blocks on every rank, complete; `seconds` from the command on, outside steps."""

    adapter_id: int
    serial: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PromotionFailed:
    """A rank has no copy in KV blocks and writes none; the blocks are to be taken from all.

    Attributes:
        is_final: that rank's KV cache can hold no adapter at all.
    """

    adapter_id: int
    serial: int
    reason: str
    is_final: bool = False


Command = LoadAdapter | DropAdapter | ActivateAdapter | PromoteAdapter | DemoteAdapter
Ack = Loaded | LoadFailed | Activated | Promoted | PromotionFailed


ANNOUNCE = "chameleon_announce"
TRY = "chameleon_try"
WITHDRAW = "chameleon_withdraw"
PIN = "chameleon_pin"
STATE = "chameleon_state"
METRICS = "chameleon_metrics"
ARRIVALS = "chameleon_arrivals"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is served from now on, as an API server says; of size and content None if nobody looked.

    Attributes:
        fingerprint: of the bytes in the adapter's files (`adapters/content.py`).
        nbytes: of its weights on disk.
    """

    name: str
    path: str
    fingerprint: str | None = None
    nbytes: int | None = None
    rank: int | None = None
    is_3d: bool = False


HINT = "output_tokens"  # key in vllm_xargs


SHARE = "chameleon_share"  # the same; written by the API server, which lets no client write it


GPU, CPU = "gpu", "cpu"


class HistogramCounts(TypedDict):
    """A histogram as it travels.

    Attributes:
        bounds: upper ends of the buckets, inclusive, rising; one more bucket follows the last.
        counts: of each bucket alone, len(bounds) + 1 of them.
        sum: of all values.
    """

    bounds: list[float]
    counts: list[int]
    sum: float

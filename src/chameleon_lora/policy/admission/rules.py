"""The rules of admission to choose from."""

from dataclasses import dataclass
from enum import Enum

from chameleon_lora.errors import ConfigError


class Bypass(Enum):
    """Which younger requests of a lane may pass a head whose adapter lacks a slot, or memory (ADR 0008)."""

    OFF = "off"
    PAPER = "paper"  # those predicted to end before what the head lacks comes free
    BACKFILL = "backfill"  # those, and all that do not keep the slot the head will get
    ANY = "any"  # every one whose adapter is in a slot (vLLM's own rule; may starve the head)

    @property
    def lets_pass(self) -> bool:
        """Whether anybody may pass at all."""
        return self is not Bypass.OFF

    @property
    def makes_promises(self) -> bool:
        """Whether the head is promised the slot that comes free first."""
        return self is not Bypass.ANY

    @property
    def binds_all(self) -> bool:
        """Whether those count as in the head's way, too, that do not keep the slot it will get."""
        return self is Bypass.PAPER


class Order(Enum):
    """How requests stand inside a lane."""

    FIFO = "fifo"
    SJF = "sjf"  # by predicted output less an allowance for age (uServe)
    BOOST = "boost"  # by arrival, moved earlier the smaller the request (ADR 0011)


class LaneOrder(Enum):
    """Which lane's head is tried next."""

    SMALLEST = "smallest"  # from the smallest lane up (the paper's Algorithm 1)
    SENIOR = "senior"  # the head that stands first among all, by share and `Order` (ADR 0011)


class Reserve(Enum):
    """How much output must fit in memory when a request is admitted."""

    PREDICTED = "predicted"  # what it is charged for in its lane's quota
    PEAK = "peak"  # the batch's worst moment, were all answers of full length (S-LoRA)


@dataclass(frozen=True, slots=True)
class AdmissionSettings:
    """How requests are admitted.

    Attributes:
        squash_limit: how often one request may be squashed; 0 turns squashing off.
        overtake_limit: admissions of younger requests after which the oldest request held back
            goes first; after twice as many nobody else is admitted before it (ADR 0012). Unset, it
            is overtaken without limit.
        every_steps: after an admission nobody is admitted in the next n - 1 steps (S-LoRA: 10), and
            prefetches begin halfway through them; an idle engine admits at once.
        aging_tokens_per_s: with SJF, predicted tokens a request gains on others per second of age.
    """

    bypass: Bypass = Bypass.BACKFILL
    squash_limit: int = 1
    overtake_limit: int | None = 256
    order: Order = Order.BOOST
    lane_order: LaneOrder = LaneOrder.SENIOR
    aging_tokens_per_s: float = 10.0
    reserve: Reserve = Reserve.PREDICTED
    every_steps: int = 1

    def __post_init__(self) -> None:
        for name, least in (("squash_limit", 0), ("overtake_limit", 1), ("every_steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"admission.{name} is {value}; use {least} or more")
        if self.aging_tokens_per_s < 0:
            raise ConfigError(
                f"admission.aging_tokens_per_s is {self.aging_tokens_per_s}; use 0 or more"
            )

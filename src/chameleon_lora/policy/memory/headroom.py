"""How many KV blocks adapters leave idle: for requests that grow, and for prefixes that come again."""

from dataclasses import dataclass

from chameleon_lora.errors import ConfigError


class Headroom:
    """A fixed part, and as much as requests lately missed in the prefix cache for adapters' sake.

    The second part is forgotten by half in each `half_life_s`, so that adapters come back when
    prefixes do not; with 0 there is none.
    """

    def __init__(self, fixed_blocks: int, most_blocks: int, half_life_s: float) -> None:
        self._fixed_blocks = fixed_blocks
        self._most_blocks = most_blocks
        self._half_life_s = half_life_s
        self._missed_blocks = 0.0
        self._since_s = 0.0

    def missed(self, blocks: int, now_s: float) -> None:
        """A request would have found so many blocks cached, had adapters not taken them."""
        if self._half_life_s:
            self._missed_blocks = self._left(now_s) + blocks
            self._since_s = now_s

    def blocks(self, now_s: float) -> int:
        """Blocks to leave idle now: the fixed part and what is left of the missed, at most all."""
        return min(self._most_blocks, self._fixed_blocks + int(self._left(now_s)))

    def is_raised(self, now_s: float) -> bool:
        """Whether anything was missed lately."""
        return self._left(now_s) >= 1.0

    def _left(self, now_s: float) -> float:
        if not self._missed_blocks:
            return 0.0
        return float(self._missed_blocks * 0.5 ** ((now_s - self._since_s) / self._half_life_s))


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """How adapters are kept in idle KV-cache memory.

    Attributes:
        max_bytes: of KV-cache memory that adapters may hold at most, besides the headroom; 0 keeps them
            out. Unset, there is no bound of its own, as with any number above the KV cache's size.
        headroom_share: of all KV blocks, that many stay idle when adapters are copied: for requests
            that grow, and for the prefix cache, whose last used blocks these are.
        promotions_per_s: adapters copied there in a second at most, so that a nearly full KV cache
            does not copy the same adapters in and out.
        max_promoting: copies under way at one time.
        prefix_half_life_s: blocks that requests missed in the prefix cache because adapters had taken
            them are left to it from then on, half as many after this time; 0 turns this off.
        fills: copy adapters there that no waiting request names, too; False leaves memory idle
            rather (S-LoRA, and Chameleon as published).
    """

    max_bytes: int | None = None
    headroom_share: float = 0.1
    promotions_per_s: float = 20.0
    max_promoting: int = 2
    prefix_half_life_s: float = 60.0
    fills: bool = True

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 0:
            raise ConfigError(
                f"device.max_bytes is {self.max_bytes}; use 0 (none) or more, or leave it out for no "
                "bound but the headroom"
            )
        if not 0.0 <= self.headroom_share <= 1.0:
            raise ConfigError(
                f"device.headroom_share is {self.headroom_share}; use a share from 0 to 1"
            )
        if self.promotions_per_s <= 0.0:
            raise ConfigError(
                f"device.promotions_per_s is {self.promotions_per_s}; use a rate above 0, or "
                "device.max_bytes = 0 to keep adapters out of the KV cache"
            )
        if self.max_promoting < 1:
            raise ConfigError(f"device.max_promoting is {self.max_promoting}; use 1 or more")
        if self.prefix_half_life_s < 0.0:
            raise ConfigError(
                f"device.prefix_half_life_s is {self.prefix_half_life_s}; use 0 (off) or more"
            )

"""What a model costs on a machine: memory, step times, links. One TOML file each.

The time of a step is linear in what it computes (`StepWork`). On GPUs `base_s` is mostly the reading
of the weights; LoRA's part grows with tokens times rank, as MBGMM and MBGMV do (Toppings, ATC '25).
"""

import tomllib
from dataclasses import dataclass, field
from enum import Enum
from importlib import resources
from pathlib import Path

import msgspec

from chameleon_lora.errors import ConfigError
from chameleon_lora.metrics.step_work import StepWork


class Basis(Enum):
    """Where a profile's numbers come from."""

    PAPER = "paper"  # fitted to figures that the Chameleon paper prints
    PUBLIC = "public"  # arithmetic from public data sheets; measured by nobody here
    MEASURED = "measured"  # fitted to runs of the engine itself by `chameleon calibrate`


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Seconds by what a step computes. The attributes multiply those of `StepWork`.

    Attributes:
        base_s: of any step.
        lora_base_s: of any step that has an adapter.
        lora_prefill_base_s: besides, of one that computes prompt tokens with an adapter.
        lora_adapter_rank_s: of a rank of each distinct adapter: reading its weights, however many use it.
    """

    base_s: float
    prefill_token_s: float
    decode_request_s: float
    context_token_s: float
    attention_pair_s: float = 0.0
    lora_base_s: float = 0.0
    lora_prefill_base_s: float = 0.0
    lora_adapter_s: float = 0.0
    lora_prefill_rank_s: float = 0.0
    lora_decode_rank_s: float = 0.0
    lora_adapter_rank_s: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0.0 <= value < float("inf"):
                raise ConfigError(f"step.{name} is {value}; use a finite number of 0 or more")

    def step_s(self, work: StepWork) -> float:
        """Seconds a step with this work takes, copies of adapters left out."""
        seconds = (
            self.base_s
            + self.prefill_token_s * work.prefill_tokens
            + self.attention_pair_s * work.attention_pairs
            + self.decode_request_s * work.decode_requests
            + self.context_token_s * work.context_tokens
        )
        if work.adapters:
            seconds += (
                self.lora_base_s
                + self.lora_adapter_s * work.adapters
                + self.lora_prefill_rank_s * work.lora_prefill_ranks
                + self.lora_decode_rank_s * work.lora_decode_ranks
                + self.lora_adapter_rank_s * work.adapter_ranks
            )
            if work.lora_prefill_ranks:
                seconds += self.lora_prefill_base_s
        return seconds


@dataclass(frozen=True, slots=True)
class Memory:
    """Device memory, in bytes.

    Attributes:
        pool_bytes: for KV cache and adapters together: what weights and activations leave.
        kv_bytes_per_token: over all layers.
        adapter_bytes_per_rank: an adapter of rank r has r times as many.
        block_tokens: of one KV block.
    """

    pool_bytes: int
    kv_bytes_per_token: int
    adapter_bytes_per_rank: int
    block_tokens: int = 16

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ConfigError(f"memory.{name} is {getattr(self, name)}; use 1 or more")

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block."""
        return self.block_tokens * self.kv_bytes_per_token


@dataclass(frozen=True, slots=True)
class Link:
    """A way for adapters: one copy after the other.

    Attributes:
        latency_s: of each copy, before its first byte.
    """

    bytes_per_s: float
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes_per_s <= 0.0 or self.latency_s < 0.0:
            raise ConfigError(
                f"a link of {self.bytes_per_s} bytes/s with a latency of {self.latency_s} s carries "
                "nothing: give a rate above 0 and a latency of 0 or more"
            )

    def copy_s(self, nbytes: int) -> float:
        """Seconds of one copy, latency included, if no other is under way."""
        return self.latency_s + nbytes / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Profile:
    """One model on one machine.

    Attributes:
        source: where the numbers come from, for people.
        host_link: host memory to device.
        device_copy: a copy in KV blocks to a slot, on the device.
        disk: disk to host memory.
        request_s: time of a request outside the engine (HTTP, tokenizer).
        in_host: its engine uses adapters from host memory, without slots; so no costs of copies are known.
        error: of a measured profile: mean relative error of step times it was not fitted to.
    """

    name: str
    model: str
    machine: str
    basis: Basis
    source: str
    memory: Memory
    step: StepCosts
    host_link: Link
    device_copy: Link
    disk: Link
    request_s: float = 0.0
    in_host: bool = False
    error: dict[str, float] = field(default_factory=dict)

    def adapter_bytes(self, rank: int) -> int:
        """Bytes of its copy in host memory or KV blocks, at exact rank; not a slot's."""
        return rank * self.memory.adapter_bytes_per_rank


def known_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    files = resources.files(__package__).joinpath("profiles").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def read_profile(name_or_path: str) -> Profile:
    """A profile that comes with the package, or one from a TOML file.

    Raises:
        ConfigError: there is none of that name, or the file is no profile.
    """
    if name_or_path in known_profiles():
        file = resources.files(__package__).joinpath("profiles", f"{name_or_path}.toml")
        return parse_profile(file.read_text(encoding="utf-8"), name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"there is no profile {name_or_path!r}: give the path of a TOML file (`chameleon calibrate` "
            f"writes one) or one of {', '.join(known_profiles())}"
        )
    try:
        return parse_profile(path.read_text(encoding="utf-8"), name_or_path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"profile {path} cannot be read: {error}") from error


def parse_profile(text: str, name: str) -> Profile:
    """The profile that a TOML text stands for; `name` is for messages.

    Raises:
        ConfigError: it is no TOML, or a key is missing or has a value of the wrong type or range.
    """
    try:
        return msgspec.convert(tomllib.loads(text), Profile)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"profile {name}: {error}") from error


def profile_text(profile: Profile) -> str:
    """The profile as TOML that `parse_profile` reads back equal."""
    fields = msgspec.to_builtins(profile)
    tables = {key: value for key, value in fields.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items() if key not in tables]
    for key, table in tables.items():
        lines += ["", f"[{key}]", *(f"{name} = {_toml(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    """A number or text in TOML's notation, which for both is JSON's."""
    return msgspec.json.encode(value).decode()

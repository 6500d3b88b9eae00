"""The profiles that come with the package: the arithmetic of the public ones, done again."""

from dataclasses import dataclass

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.sim.profile import (
    Basis,
    Profile,
    known_profiles,
    parse_profile,
    profile_text,
    read_profile,
)

GIB = 1 << 30
OF_BANDWIDTH, OF_FLOPS = 0.8, 0.55
PAPER_BANDWIDTH, PAPER_LORA_S = 696e9, 2.01e-6  # the A40, and its LoRA prefill by token and rank


@dataclass(frozen=True, slots=True)
class Gpu:
    """A data sheet: GiB that programs see, bytes/s, dense 16-bit FLOP/s, bytes/s from pinned memory."""

    gib: int
    memory_per_s: float
    flops: float
    link_per_s: float


@dataclass(frozen=True, slots=True)
class Model:
    """A model's sizes; `adapted` is the sum of inputs and outputs of the adapted matrices of a layer."""

    parameters: float
    layers: int
    hidden: int
    kv: int
    adapted: int
    matrices: int


A100 = Gpu(79, 2.039e12, 312e12, 25e9)
H100 = Gpu(79, 3.35e12, 989e12, 50e9)
H200 = Gpu(139, 4.8e12, 989e12, 50e9)
LLAMA_8B = Model(8.03e9, 32, 4096, 1024, 2 * 8192 + 2 * 5120 + 3 * 18432, 7)
PUBLIC = {
    "llama-7b-a100-80g": (Model(6.74e9, 32, 4096, 4096, 4 * 8192, 4), A100),
    "llama-13b-a100-80g": (Model(13.02e9, 40, 5120, 5120, 4 * 10240, 4), A100),
    "llama-30b-a100-80g": (Model(32.53e9, 60, 6656, 6656, 4 * 13312, 4), A100),
    "llama-3.1-8b-h100-80g": (LLAMA_8B, H100),
    "llama-3.1-8b-h200": (LLAMA_8B, H200),
}


def by_arithmetic(model: Model, gpu: Gpu) -> dict[str, float]:
    """What the profiles' `source` says, in numbers."""
    read_per_s, flops = OF_BANDWIDTH * gpu.memory_per_s, OF_FLOPS * gpu.flops
    weights_bytes = 2 * model.parameters
    kv_bytes, rank_bytes = 4 * model.layers * model.kv, 2 * model.layers * model.adapted
    return {
        "pool_bytes": 0.9 * gpu.gib * GIB - weights_bytes - 2 * GIB,
        "kv_bytes_per_token": kv_bytes,
        "adapter_bytes_per_rank": rank_bytes,
        "base_s": weights_bytes / read_per_s,
        "prefill_token_s": 2 * model.parameters / flops,
        "decode_request_s": 0.287 * 2 * model.parameters / flops,
        "context_token_s": kv_bytes / read_per_s,
        "attention_pair_s": 4 * model.hidden * model.layers / flops,
        "lora_base_s": 0.003 * model.layers / 32,
        "lora_prefill_base_s": 0.0087 * model.layers / 32,
        "lora_prefill_rank_s": PAPER_LORA_S
        * (rank_bytes / (2 << 20))
        * (PAPER_BANDWIDTH / gpu.memory_per_s),
        "lora_decode_rank_s": rank_bytes / read_per_s,
        "host_bytes_per_s": gpu.link_per_s,
        "host_latency_s": 1e-5 * 2 * model.matrices * model.layers,
        "device_bytes_per_s": read_per_s / 2,
    }


def stated(profile: Profile) -> dict[str, float]:
    """The same numbers of a profile."""
    memory, step = profile.memory, profile.step
    return {
        "pool_bytes": memory.pool_bytes,
        "kv_bytes_per_token": memory.kv_bytes_per_token,
        "adapter_bytes_per_rank": memory.adapter_bytes_per_rank,
        "base_s": step.base_s,
        "prefill_token_s": step.prefill_token_s,
        "decode_request_s": step.decode_request_s,
        "context_token_s": step.context_token_s,
        "attention_pair_s": step.attention_pair_s,
        "lora_base_s": step.lora_base_s,
        "lora_prefill_base_s": step.lora_prefill_base_s,
        "lora_prefill_rank_s": step.lora_prefill_rank_s,
        "lora_decode_rank_s": step.lora_decode_rank_s,
        "host_bytes_per_s": profile.host_link.bytes_per_s,
        "host_latency_s": profile.host_link.latency_s,
        "device_bytes_per_s": profile.device_copy.bytes_per_s,
    }


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_profile_is_its_arithmetic(name: str) -> None:
    """Sizes from the model's card, speeds from the data sheet, to three digits."""
    assert pytest.approx(by_arithmetic(*PUBLIC[name]), rel=5e-3) == stated(read_profile(name))


@pytest.mark.parametrize("name", known_profiles())
def test_a_profile_says_what_it_stands_on(name: str) -> None:
    """Its name is its file's; a public one says that nobody measured it, a measured one its error."""
    profile = read_profile(name)
    assert name == profile.name
    assert (profile.basis is Basis.MEASURED) is ("step" in profile.error)
    assert profile.basis is not Basis.PUBLIC or "nobody measured it" in profile.source
    assert "adapters on" in profile.model


def test_each_public_profile_is_checked() -> None:
    """None is left out of the arithmetic above."""
    public = {name for name in known_profiles() if read_profile(name).basis is Basis.PUBLIC}
    assert set(PUBLIC) == public


@pytest.mark.parametrize("name", known_profiles())
def test_a_profile_survives_being_written(name: str) -> None:
    """TOML and back."""
    profile = read_profile(name)
    assert profile == parse_profile(profile_text(profile), name)


def test_an_unknown_profile_is_refused_with_the_known_ones() -> None:
    """Their names, and that a file will do."""
    with pytest.raises(ConfigError, match=r"no profile 'gpt'.*llama-3\.1-8b-h200"):
        read_profile("gpt")

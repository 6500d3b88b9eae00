"""What the user asked for, and how large the run is: models' shapes, adapters, loads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chameleon_lora.errors import ConfigError

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
"""What the adapters change: the attention projections, as in the paper (section 5)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes.

    Attributes:
        context_tokens: most tokens of a prompt and its answer.
        dtype: of weights, KV cache and adapters.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context_tokens: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Proof:
    """The engine whose answers are compared with stock's.

    Attributes:
        model: with weights of its own, so that answers depend on adapters.
        ranks: of its adapters, one each.
        prompts, tokens: what each adapter is asked, and of each answer.
        blocks: of the KV cache, too few for all seats and for all adapters.
        checks: byte comparisons to be made by the first stage, and by each of the others.
        limit_s: no more rounds are begun after so long.
    """

    model: Shape
    ranks: tuple[int, ...]
    prompts: int
    tokens: int
    slots: int
    seats: int
    blocks: int
    checks: int
    fewer_checks: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class Serving:
    """What is measured.

    Attributes:
        model: a configuration alone; vLLM invents the weights.
        adapters: how many, of `ranks` in turn; names in order of their popularity.
        slots: max_loras.
        capture_sizes: of CUDA graphs; few, for each takes time at every start.
        lengths: options of `chameleon compare`.
        duration_s, warmup_s: of a run.
        loads: shares of stock's capacity.
        slo_s: most that P99 time to first token may be; None for five times stock's unloaded mean.
        activation_rank: of the adapters whose way into a slot is timed.
        each_tokens: of prompt and answer of each request to an engine without a server.
    """

    model: Shape
    adapters: int
    ranks: tuple[int, ...]
    slots: int
    seats: int
    batch_tokens: int
    capture_sizes: tuple[int, ...]
    lengths: tuple[str, ...]
    duration_s: float
    warmup_s: float
    loads: tuple[float, ...]
    slo_s: float | None
    activation_rank: int
    activations: int
    each_tokens: int


@dataclass(frozen=True, slots=True)
class Scale:
    """The whole run's size, and what its parts are guessed to take.

    Attributes:
        seconds: of each kind of work, for the estimates: an engine with the proof's model, one with
            the served model, a server, a byte comparison.
        environment: of all stages' processes.
    """

    proof: Proof
    serving: Serving
    seconds: Mapping[str, float]
    environment: Mapping[str, str]


_TINY = Shape("tiny", 128, 256, 2, 4, 2, 512, 2048, "float32")
_NARROW = Shape("narrow", 1024, 2816, 8, 16, 8, 4096, 2048, "bfloat16")
_LLAMA_8B = Shape("llama-3.1-8b", 4096, 14336, 32, 32, 8, 128_256, 8192, "bfloat16")
_RANKS = (8, 16, 32, 64, 128)

ON_GPU = Scale(
    proof=Proof(
        _NARROW, (*_RANKS, *_RANKS, 8, 16), prompts=3, tokens=12, slots=4, seats=16, blocks=40,
        checks=10_000, fewer_checks=500, limit_s=200.0,
    ),
    serving=Serving(
        _LLAMA_8B, adapters=100, ranks=_RANKS, slots=8, seats=64,
        batch_tokens=2048, capture_sizes=(1, 2, 4, 8, 16, 24, 32, 48, 64),
        lengths=("--max-input-tokens", "4096", "--max-output-tokens", "512"),
        duration_s=20.0, warmup_s=5.0, loads=(0.7, 0.9, 1.05),
        slo_s=None, activation_rank=64, activations=60, each_tokens=128,
    ),
    seconds={"proof": 30.0, "engine": 60.0, "server": 75.0, "check": 0.015, "probe": 90.0},
    environment={},
)  # fmt: skip

DRY = Scale(
    proof=Proof(
        _TINY, (4, 8, 16, 4, 8, 16), prompts=1, tokens=8, slots=4, seats=8, blocks=20,
        checks=40, fewer_checks=40, limit_s=30.0,
    ),
    serving=Serving(
        _TINY, adapters=12, ranks=(4, 8, 16), slots=4, seats=8, batch_tokens=256,
        capture_sizes=(),
        lengths=(
            *("--length-factor", "0.05"),
            *("--max-input-tokens", "64", "--max-output-tokens", "16"),
        ),
        duration_s=2.0, warmup_s=0.5, loads=(0.7,),
        slo_s=2.0, activation_rank=16, activations=10, each_tokens=16,
    ),
    seconds={"proof": 20.0, "engine": 25.0, "server": 40.0, "check": 0.02, "probe": 8.0},
    environment={
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
        "OMP_NUM_THREADS": "1",  # threads that meet wait for the slowest of a busy machine
    },
)  # fmt: skip


OPTIONS = "options.json"


@dataclass(frozen=True, slots=True)
class RunOptions:
    """One run.

    Attributes:
        out: where results go.
        work: where models and adapters are made; may be deleted afterwards.
        is_dry: tiny models on a CPU.
        backend: vLLM's attention backend; None leaves it to vLLM.
        compiles: torch.compile for the served model's engines.
        duration_s, repeats: of the comparisons; None for the scale's own.
        capacity: of stock in requests/s; None measures it.
        slo_s: the objective; None for the scale's own.
    """

    out: Path
    work: Path
    is_dry: bool = False
    backend: str | None = None
    compiles: bool = True
    duration_s: float | None = None
    repeats: int = 1
    capacity: float | None = None
    slo_s: float | None = None

    @property
    def scale(self) -> Scale:
        """The sizes."""
        return DRY if self.is_dry else ON_GPU

    @property
    def run_s(self) -> float:
        """What each run of a comparison lasts, its last answers not counted."""
        return self.duration_s or self.scale.serving.duration_s


def write_options(options: RunOptions) -> None:
    """Makes the output folder and leaves what was asked for in it.

    Raises:
        ConfigError: the folder holds the results of the other kind of run.
    """
    path = options.out / OPTIONS
    if path.exists() and read_options(options.out).is_dry != options.is_dry:
        kinds = ("a dry run", "a GPU") if options.is_dry else ("a GPU", "a dry run")
        raise ConfigError(
            f"--out {options.out} holds the results of {kinds[1]}, this is {kinds[0]}: name another "
            "folder"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(options), indent=1, default=str) + "\n", encoding="utf-8")


def read_options(out: Path) -> RunOptions:
    """What was asked for.

    Raises:
        ConfigError: the folder has no such file, or another program's.
    """
    try:
        fields: dict[str, Any] = json.loads((out / OPTIONS).read_text(encoding="utf-8"))
        return RunOptions(**{**fields, "out": out, "work": Path(fields["work"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{out / OPTIONS} cannot be read ({error}): name an empty folder"
        ) from error

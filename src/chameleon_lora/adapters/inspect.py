"""One adapter folder: what it holds, and why it cannot be served if it cannot."""

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.adapters.config import PeftConfig, parse_config, read_config_bytes
from chameleon_lora.adapters.convert import convert, is_only_pickled, pickled_file
from chameleon_lora.adapters.header import (
    WEIGHTS_NAME,
    TensorEntry,
    parse_header,
    read_header_bytes,
)
from chameleon_lora.adapters.pairs import (
    head_problems,
    layer_problems,
    lora_tensors,
    pair_problems,
    pattern_names,
)
from chameleon_lora.adapters.untrusted import is_folder, open_regular
from chameleon_lora.errors import (
    AdapterError,
    AdapterInvalidError,
    AdapterNotFoundError,
    AdapterTooLargeError,
    AdapterUnreadableError,
    ConfigError,
)

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes for --max-lora-rank


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    """What the engine can hold.

    Attributes:
        max_rank: None for any rank.
        max_bytes: of the weights' file, whose bytes need not be there: a sparse file claims as many
            as it likes. None for any size.
        has_head: its model classifies, so an adapter may bring a head of its own.
        layers: of its base model, by name; weights for others are a problem. None for any.
        converts_bin: weights that are pickled alone may be written beside as safetensors (`convert`).
    """

    max_rank: int | None = None
    max_bytes: int | None = None
    has_head: bool = True
    converts_bin: bool = False
    layers: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ConfigError(
                f"max_bytes is {self.max_bytes}, the least is 1; way out: give a part of the "
                "machine's memory"
            )
        if self.max_rank is not None and self.max_rank < 1:
            raise ConfigError(
                f"max_rank is {self.max_rank}, the least is 1; way out: give the engine's "
                "max_lora_rank"
            )


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter as its files describe it; what `problems` spoils is 0, (), or None.

    Attributes:
        name: the folder's name.
        rank: the largest rank of any module: what a slot needs.
        target_modules: as the configuration has them; what there are weights for is in `modules`.
        modules: the last parts of their names, each once.
        num_tensors: LoRA tensors, two a module.
        nbytes: their bytes in the file, in the file's dtype; the engine may hold another dtype.
        dtype: "float32" and the like, joined by "+" when mixed.
        problems: why it cannot be served, each with its way out; empty when it can.
    """

    name: str
    path: Path
    rank: int
    alpha: float
    base_model: str | None
    target_modules: tuple[str, ...]
    modules: tuple[str, ...]
    num_tensors: int
    nbytes: int
    dtype: str | None
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Weights:
    tensors: tuple[TensorEntry, ...]
    problems: tuple[str, ...]


_NO_CONFIG = PeftConfig(
    r=0,
    alpha=0.0,
    base_model=None,
    target_modules=(),
    rank_pattern={},
    alpha_pattern={},
    heads=(),
    problems=(),
)


def inspect_adapter(
    path: Path, limits: AdapterLimits | None = None, roots: Iterable[Path] = ()
) -> AdapterInfo:
    """What the folder holds, with every problem found; never raises for what is on disk.

    Reads the configuration and the safetensors header, never the weights; below `roots` if there are any.
    """
    try:
        info, over = _inspect(path, limits, roots)
    except AdapterUnreadableError as error:
        return _info(path, _NO_CONFIG, _Weights((), (str(error),)))
    return dataclasses.replace(info, problems=(*info.problems, *over))


def without_adapter(path: Path, reason: str) -> AdapterInfo:
    """What is known of a folder that is no adapter, for that reason."""
    return _info(path, _NO_CONFIG, _Weights((), (reason,)))


def require_servable(
    path: Path,
    limits: AdapterLimits | None = None,
    roots: Iterable[Path] = (),
    name: str | None = None,
) -> AdapterInfo:
    """The adapter, which has no problems and is within the limits; read below `roots` if there are any.

    Messages call it by `name`, or else by its folder's.

    Raises:
        AdapterNotFoundError: `path` is no folder.
        AdapterInvalidError: it has problems; the message lists them all.
        AdapterTooLargeError: its rank or its bytes are above the limits, and that alone is wrong.
        AdapterUnreadableError: its files cannot be read at the moment.
    """
    try:
        if not is_folder(path):
            raise AdapterNotFoundError(f"adapter {name or path.name!r}: {_no_folder(path)}")
        if limits is not None and limits.converts_bin and is_only_pickled(path):
            _convert(path, limits, roots, name)
        info, over = _inspect(path, limits, roots)
    except AdapterUnreadableError as error:
        raise AdapterUnreadableError(f"adapter {name or path.name!r}: {error}") from error
    if info.problems:
        raise AdapterInvalidError(f"adapter {name or info.name!r}: {' | '.join(info.problems)}")
    if over:
        raise AdapterTooLargeError(f"adapter {name or info.name!r}: {' | '.join(over)}")
    return info


def _convert(path: Path, limits: AdapterLimits, roots: Iterable[Path], name: str | None) -> None:
    try:
        convert(path, limits.max_bytes, roots)
    except AdapterUnreadableError:
        raise
    except AdapterError as error:
        raise type(error)(f"adapter {name or path.absolute().name!r}: {error}") from error


def _inspect(
    path: Path, limits: AdapterLimits | None, roots: Iterable[Path]
) -> tuple[AdapterInfo, list[str]]:
    """The adapter with its problems, and which limits it is above."""
    if not is_folder(path):
        return _info(path, _NO_CONFIG, _Weights((), (_no_folder(path),))), []
    config = _NO_CONFIG
    problems: tuple[str, ...] = ()
    try:
        config = parse_config(read_config_bytes(path, roots))
    except AdapterInvalidError as error:
        problems = (str(error),)
    found = _read_weights(path, roots)
    if limits is not None and not limits.has_head:
        problems = (*problems, *head_problems(found.tensors, config))
    if limits is not None and limits.layers is not None:
        problems = (*problems, *layer_problems(found.tensors, limits.layers))
    weights = _Weights(found.tensors, problems + found.problems)
    file_bytes = sum(entry.nbytes for entry in found.tensors)
    over = _over_limits(config.max_rank, file_bytes, limits)
    return _info(path, config, weights), over


def _info(path: Path, config: PeftConfig, weights: _Weights) -> AdapterInfo:
    tensors = lora_tensors(weights.tensors)
    problems = [*weights.problems, *config.problems]
    if not weights.problems:
        problems += pair_problems(weights.tensors, config)
    dtypes = sorted({entry.float_name or entry.dtype_code for entry in tensors})
    return AdapterInfo(
        name=path.absolute().name,
        path=path,
        rank=config.max_rank,
        alpha=config.alpha,
        base_model=config.base_model,
        target_modules=config.target_modules,
        modules=tuple(dict.fromkeys(n.rpartition(".")[2] for n in pattern_names(tensors))),
        num_tensors=len(tensors),
        nbytes=sum(entry.nbytes for entry in tensors),
        dtype="+".join(dtypes) or None,
        problems=tuple(problems),
    )


def _read_weights(folder: Path, roots: Iterable[Path]) -> _Weights:
    try:
        with open_regular(folder / WEIGHTS_NAME, roots) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            raw = read_header_bytes(file)
        tensors = parse_header(raw, weights_bytes=file_bytes - 8 - len(raw))
    except FileNotFoundError:
        return _Weights((), (no_weights(folder),))
    except AdapterInvalidError as error:
        return _Weights((), (str(error),))
    return _Weights(tensors, ())


def _no_folder(path: Path) -> str:
    return f"there is no folder {str(path)!r}; way out: check the path and the server's rights"


def no_weights(folder: Path) -> str:
    """Why a folder without the file of weights is not served."""
    name = pickled_file(folder)
    if name is not None:
        return (
            f"{name} is pickled, and only {WEIGHTS_NAME} is served; way out: `chameleon adapters convert` "
            "with this folder, or set serving.converts_bin and the server does that itself"
        )
    return (
        f"{WEIGHTS_NAME} is missing; way out: copy the whole folder that PEFT's save_pretrained "
        "wrote"
    )


def largest_bytes() -> int:
    """The most a file of weights may have on this machine: a quarter of its memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def fitting_rank(largest: int) -> int:
    """The least --max-lora-rank from vLLM's default of 16 on that holds adapters of this rank."""
    return next((rank for rank in RANKS if rank >= max(largest, 16)), RANKS[-1])


def _over_limits(rank: int, file_bytes: int, limits: AdapterLimits | None) -> list[str]:
    over: list[str] = []
    if limits is None:
        return over
    if limits.max_rank is not None and rank > limits.max_rank:
        over.append(
            f"its rank is {rank}, the limit is {limits.max_rank}; way out: start the engine with "
            f"--max-lora-rank {fitting_rank(rank)}, or train the adapter with a smaller rank"
        )
    if limits.max_bytes is not None and file_bytes > limits.max_bytes:
        over.append(
            f"its weights have {file_bytes} bytes, the limit is {limits.max_bytes}; way out: save them "
            "as float16, or serve it from a machine with more memory"
        )
    return over

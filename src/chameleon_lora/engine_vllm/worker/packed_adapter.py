"""An adapter in host memory, in the very form its slot will have.

A PackedAdapter is one flat buffer: q, k and v merged as the layer wants them, the scaling folded into
B, cut for this tensor-parallel rank, at the adapter's exact rank. Its bytes are those vLLM's own
activation would write. An adapter that touches a layer of unknown kind (mixture of experts,
classification head) stays a StockCopy, which vLLM's own code activates. That happens inside a step, where
an error would end the engine; so both kinds are tried on the layers here, and refused here.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from chameleon_lora.adapters.untrusted import quoted
from chameleon_lora.errors import AdapterUnfitError

WAY_OUT = "way out: serve it with the model and the limits it was made for, or save it again"
_ALIGNMENT_BYTES = 256  # what CUDA copies like best; a multiple of every element size

# Layers whose set_lora does nothing but copy A and B into the slot: checked in vLLM 0.26 and 0.32.
_PACKABLE_LAYERS = frozenset(
    {
        "ReplicatedLinearWithLoRA",
        "ColumnParallelLinearWithLoRA",
        "ColumnParallelLinearWithShardedLoRA",
        "MergedColumnParallelLinearWithLoRA",
        "MergedColumnParallelLinearWithShardedLoRA",
        "MergedColumnParallelLinearVariableSliceWithLoRA",
        "QKVParallelLinearWithLoRA",
        "QKVParallelLinearWithShardedLoRA",
        "MergedQKVParallelLinearWithLoRA",
        "MergedQKVParallelLinearWithShardedLoRA",
        "RowParallelLinearWithLoRA",
        "RowParallelLinearWithShardedLoRA",
        "LogitsProcessorWithLoRA",
        "VocabParallelEmbeddingWithLoRA",
    }
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One matrix of an adapter: `rows` x `columns` from the corner of a layer's slot.

    Attributes:
        index: which of the layer's stacked tensors (q, k, v are 0, 1, 2).
        factor: A or B.
    """

    module: str
    index: int
    factor: Literal["a", "b"]
    rows: int
    columns: int
    offset_bytes: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """A packed adapter.

    Attributes:
        flat: uint8, its own (no file mapping behind it), zero between pieces; pinned when slots
            are on CUDA.
        pieces: where each matrix lies in `flat`; adapters of one geometry may share the tuple.
        views: the matrices, in the order of `pieces`.
    """

    adapter_id: int
    rank: int
    dtype: torch.dtype
    flat: torch.Tensor
    pieces: tuple[Piece, ...]
    views: list[torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of host memory, padding between pieces included."""
        return int(self.flat.numel())


@dataclass(frozen=True, slots=True)
class StockCopy:
    """An adapter only vLLM's own code can activate: its LoRAModel, merged and ready."""

    adapter_id: int
    rank: int
    nbytes: int
    lora_model: Any


HostCopy = PackedAdapter | StockCopy


def pack(adapter_manager: Any, lora_model: Any) -> HostCopy:
    """A copy of the model in owned memory; reads the manager, changes nothing in it.

    Args:
        adapter_manager: vLLM's LoRAModelManager.
        lora_model: a LoRAModel after _create_merged_loras_inplace.

    Raises:
        AdapterUnfitError: no matrix of the adapter fits this model, one has another shape, or one holds
            nan or infinity.
    """
    layers = {
        name: weights
        for name in adapter_manager.modules
        if (weights := adapter_manager._get_lora_layer_weights(lora_model, name))
    }
    modules = adapter_manager.modules
    found = [
        (name, cut)
        for name, weights in layers.items()
        for cut in _cuts(name, modules[name], weights)
    ]
    if getattr(lora_model, "modules_to_save", None) or not all(
        is_packable(modules[name]) for name in layers
    ):
        matrices = _matrices(lora_model)
        _require_finite(matrices)
        nbytes = sum(matrix.nbytes for matrix in matrices)
        return StockCopy(lora_model.id, lora_model.rank, nbytes, lora_model)
    if not found:
        raise AdapterUnfitError(_no_layer(lora_model, modules))
    dtype = adapter_manager.lora_config.lora_dtype
    pieces, nbytes = _lay_out(found, dtype)
    flat = empty_buffer(nbytes, pinned=torch.device(adapter_manager.device).type == "cuda")
    rank = max((p.rows, p.columns)[rank_axis(p, modules[p.module])] for p in pieces)
    packed = packed_over(flat, lora_model.id, rank, dtype, pieces)
    torch._foreach_copy_(packed.views, [cut.matrix for _, cut in found])  # one call: no GIL held
    torch._foreach_zero_(_gaps(flat, pieces))
    _require_finite(packed.views)
    return packed


def is_packable(module: Any) -> bool:
    """Whether a slot of this layer is nothing but its stacked A and B."""
    kind = type(module)
    return kind.__name__ in _PACKABLE_LAYERS and kind.__module__.startswith("vllm.lora.layers")


def stacked_tensors(module: Any, factor: Literal["a", "b"]) -> tuple[torch.Tensor, ...]:
    """The tensors that hold a packable layer's slots, always as a tuple."""
    stacked = module.lora_a_stacked if factor == "a" else module.lora_b_stacked
    return (stacked,) if isinstance(stacked, torch.Tensor) else tuple(stacked)


def slot_matrix(stacked: torch.Tensor, slot: int) -> torch.Tensor:
    """The whole matrix of one slot: (max_rank, in), (out, max_rank) or (vocabulary, max_rank)."""
    matrix = stacked[slot]
    return matrix[0] if matrix.dim() == 3 else matrix


def rank_axis(piece: Piece, module: Any) -> int:
    """Which axis of the piece is the rank: 0 for A, 1 for B and for an embedding's A."""
    is_embedding = type(module).__name__ == "VocabParallelEmbeddingWithLoRA"
    return 0 if piece.factor == "a" and not is_embedding else 1


def empty_buffer(nbytes: int, *, pinned: bool) -> torch.Tensor:
    """Owned bytes of any content, page-locked if asked for."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)


def packed_over(
    flat: torch.Tensor,
    adapter_id: int,
    rank: int,
    dtype: torch.dtype,
    pieces: tuple[Piece, ...],
) -> PackedAdapter:
    """The packed adapter whose bytes are `flat`; copies nothing."""
    elements = flat.view(dtype)
    views = [
        elements.as_strided(
            (piece.rows, piece.columns), (piece.columns, 1), piece.offset_bytes // dtype.itemsize
        )
        for piece in pieces
    ]
    return PackedAdapter(adapter_id, rank, dtype, flat, pieces, views)


@dataclass(frozen=True, slots=True)
class _Cut:
    """What set_lora would copy into one stacked tensor."""

    index: int
    factor: Literal["a", "b"]
    matrix: torch.Tensor


def _cuts(name: str, module: Any, weights: Any) -> list[_Cut]:
    """What the layer's own set_lora would write, found by running it on a stand-in.

    So merging, slicing per rank and every later refinement stay vLLM's. Of a layer that is not packable
    it is not known, only that it can be written.
    """
    cuts: list[_Cut] = []
    stand_in = copy.copy(module)
    if is_packable(module):
        is_whole = "Linear" in type(module).__name__  # of others a part of the vocabulary is enough
        stand_in.lora_a_stacked = _recorders(module.lora_a_stacked, "a", cuts, is_whole)
        stand_in.lora_b_stacked = _recorders(module.lora_b_stacked, "b", cuts, is_whole)
    else:
        vars(stand_in).update((key, _without_data(value)) for key, value in vars(module).items())
    try:
        stand_in.set_lora(0, weights.lora_a, weights.lora_b)
    except AdapterUnfitError as error:
        raise AdapterUnfitError(f"layer {name}: {error}; {WAY_OUT}") from error
    except (AssertionError, AttributeError, TypeError) as error:
        raise AdapterUnfitError(f"layer {name}: its A or its B is missing; {WAY_OUT}") from error
    except (IndexError, RuntimeError, ValueError) as error:
        if is_packable(module) or "memory" in str(error):  # whose want is not the adapter's fault
            raise
        raise AdapterUnfitError(f"layer {name}: {error}; {WAY_OUT}") from error
    return [cut for cut in cuts if cut.matrix.numel()]


def _without_data(value: Any) -> Any:
    """A layer's attribute; of tensors their shapes alone, which take copies and keep nothing."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if type(value) in (list, tuple):  # no subclass, whose making may be another
        return type(value)(_without_data(item) for item in value)
    return value


def _recorders(stacked: Any, factor: Literal["a", "b"], cuts: list[_Cut], needs_whole: bool) -> Any:
    if isinstance(stacked, torch.Tensor):
        return _StackedRecorder(stacked.shape, 0, factor, cuts, needs_whole)
    return tuple(
        _StackedRecorder(tensor.shape, index, factor, cuts, needs_whole)
        for index, tensor in enumerate(stacked)
    )


class _StackedRecorder:
    """Stands where a layer keeps its stacked slots; notes copies into a slot instead of making them.

    With `needs_whole` a copy must fill the slot on the axis that is not the rank: vLLM itself would
    serve a matrix with too few inputs or outputs as if the missing ones were zero.
    """

    def __init__(
        self,
        shape: Sequence[int],
        index: int,
        factor: Literal["a", "b"],
        cuts: list[_Cut],
        needs_whole: bool,
    ) -> None:
        self.shape = shape
        self._needs_whole = needs_whole
        self._index = index
        self._factor = factor
        self._cuts = cuts

    def __setitem__(self, slot: int, value: int) -> None:
        """The reset before the copies: no concern of a buffer, which has no old occupant."""

    def __getitem__(self, key: tuple[Any, ...]) -> "_RegionRecorder":
        room = tuple(self.shape[-2:])
        region = tuple(min(part.stop, size) for part, size in zip(key[-2:], room, strict=True))
        if self._needs_whole:
            region = (region[0], room[1]) if self._factor == "a" else (room[0], region[1])
        return _RegionRecorder(self._index, self._factor, region, self._cuts)


class _RegionRecorder:
    """The corner of a slot that is about to be copied into."""

    def __init__(
        self, index: int, factor: Literal["a", "b"], region: tuple[int, ...], cuts: list[_Cut]
    ) -> None:
        self._index = index
        self._factor = factor
        self._region = region
        self._cuts = cuts

    def copy_(self, matrix: torch.Tensor, non_blocking: bool = False) -> None:  # noqa: ARG002  # torch's
        if tuple(matrix.shape) != self._region:
            raise AdapterUnfitError(
                f"its {self._factor.upper()} is {tuple(matrix.shape)}, "
                f"but this model has room for {self._region}"
            )
        self._cuts.append(_Cut(self._index, self._factor, matrix))


def _lay_out(
    found: Sequence[tuple[str, _Cut]], dtype: torch.dtype
) -> tuple[tuple[Piece, ...], int]:
    pieces: list[Piece] = []
    offset = 0
    for name, cut in found:
        rows, columns = cut.matrix.shape
        nbytes = rows * columns * dtype.itemsize
        pieces.append(Piece(name, cut.index, cut.factor, rows, columns, offset, nbytes))
        offset += -(-nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return tuple(pieces), offset


def _gaps(flat: torch.Tensor, pieces: Sequence[Piece]) -> list[torch.Tensor]:
    """The bytes between pieces, which KV blocks hold too and which must not read as nan there."""
    begins = [*(piece.offset_bytes for piece in pieces[1:]), flat.numel()]
    return [
        flat[piece.offset_bytes + piece.nbytes : begin]
        for piece, begin in zip(pieces, begins, strict=True)
    ]


def _no_layer(lora_model: Any, modules: Any) -> str:
    its = min(lora_model.loras)
    alike = [name for name in modules if name.rpartition(".")[2] == its.rpartition(".")[2]]
    return (
        f"none of its weights is for a layer of this model: they are for {quoted(its)} and the like, the "
        f"model has {quoted(min(alike or modules))}; way out: rename them, or serve it with the model "
        "it was trained on"
    )


def _require_finite(matrices: Sequence[torch.Tensor]) -> None:
    if not all(bool(matrix.isfinite().all()) for matrix in matrices):
        raise AdapterUnfitError(
            "its weights hold nan or infinity; way out: train or export it again"
        )


def _matrices(lora_model: Any) -> list[torch.Tensor]:
    """All that a LoRAModel holds."""
    factors = [f for w in lora_model.loras.values() for f in (w.lora_a, w.lora_b)]
    parts = [part for f in factors for part in (f if isinstance(f, list) else [f])]
    saved = getattr(lora_model, "modules_to_save", None) or {}
    parts += [part for module in saved.values() for part in (module.weight, module.bias)]
    return [part for part in parts if part is not None]

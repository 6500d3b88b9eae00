"""LoRA without slots, on CPU: a batch uses each adapter from where it lies in host memory, at its own rank.

vLLM gives each layer an object that multiplies (`layer.punica_wrapper`), and memory for slots. Here each layer
gets an object of its own, which knows where that layer's matrices of each adapter are, and no memory. So
nothing is copied before an adapter's first use, and a batch may mix as many adapters as it has requests.
"""

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from chameleon_lora.adapters.untrusted import first_of
from chameleon_lora.engine_vllm.worker.packed_adapter import (
    PackedAdapter,
    Piece,
    is_packable,
    stacked_tensors,
)

FEW_ROWS = 16  # of one adapter in a batch: above, calls to torch cost less than they save
_MOST_GEOMETRIES = 64
_NUMBAS = "llvmlite.binding.ffi"  # has an object that says it has any attribute, __dict__ too
_logger = logging.getLogger(f"vllm.{__name__}")
_Integers = np.ndarray[Any, np.dtype[np.int64]]


class Geometry:
    """Where adapters whose pieces lie alike have what, for a table whose layers begin at these columns.

    Attributes:
        pairs: of each slice of a layer, which pieces are its A and its B.
        columns: of the table, in the order of `pairs`.
        places: of the same, (columns, 3): A's and B's offset in bytes, and the rank.
    """

    def __init__(self, pieces: tuple[Piece, ...], first: Mapping[str, int]) -> None:
        self.pieces = pieces
        found: dict[tuple[str, int], dict[str, int]] = {}
        for number, piece in enumerate(pieces):
            found.setdefault((piece.module, piece.index), {})[piece.factor] = number
        self.pairs = {p: (of["a"], of["b"]) for p, of in found.items() if len(of) == 2}
        self.columns = [first[module] + index for module, index in self.pairs]
        sides = [(pieces[a], pieces[b]) for a, b in self.pairs.values()]
        places = [(a.offset_bytes, b.offset_bytes, b.columns) for a, b in sides]
        self.places = np.array(places, np.int64).reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One adapter's rows of a batch: a run of them, or their numbers."""

    packed: PackedAdapter
    geometry: Geometry
    rows: slice | torch.Tensor

    def pair(self, module: str, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A and B of one slice of a layer; None if the adapter leaves it alone."""
        found = self.geometry.pairs.get((module, index))
        return None if found is None else (self.packed.views[found[0]], self.packed.views[found[1]])


@dataclass(frozen=True, slots=True)
class AdapterBatch:
    """Which rows are whose, and where their adapters' matrices are.

    Attributes:
        rows: how many there are.
        numbers: of adapters with few rows, as the compiled loop reads them (`grouped_product`).
        matrices: of the same, (columns, 3, groups): the addresses of A and B, and the rank.
        numbers_at, matrices_at: the addresses of the two.
        large: adapters with more rows than that.
        groups: all of them.
    """

    rows: int
    numbers: _Integers
    matrices: _Integers
    numbers_at: int
    matrices_at: int
    large: tuple[RowGroup, ...]
    groups: tuple[RowGroup, ...]


class PagedAdapters:
    """Where the matrices of all adapters in host memory are. Owner: the worker's adapters.

    Invariant: the table's row of an adapter holds addresses inside its `flat`, from `put` to `drop`.

    Attributes:
        tokens: the batch by rows of the model's layers.
        samples: the batch by rows of logits.
    """

    def __init__(self, modules: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.layers = {name: module for name, module in modules.items() if is_packable(module)}
        self._first: dict[str, int] = {}
        count = 0
        for name, module in self.layers.items():
            self._first[name] = count
            count += len(stacked_tensors(module, "a"))
        self._table = np.zeros((64, count, 3), np.int64)
        self._free = list(range(len(self._table)))
        self._indices: dict[int, int] = {}
        self._packed: dict[int, tuple[PackedAdapter, Geometry]] = {}
        self._geometries: dict[
            int, Geometry
        ] = {}  # by the pieces' identity: hashing them takes long
        self._mapped: tuple[Any, Any] | None = None
        self.dtype, self.loop = dtype, _loop(dtype)
        self._few = FEW_ROWS if self.loop is not None else 0
        self._of_tokens: Sequence[int] = ()
        self.tokens = self.samples = self._batch(())
        for name, module in self.layers.items():
            module.set_mapping(LayerProducts(self, name, module, self._first[name]))

    def put(self, packed: PackedAdapter) -> None:
        """A batch may use the adapter from now on."""
        self.drop(packed.adapter_id)
        if not self._free:
            more = len(self._table)
            self._table = np.concatenate([self._table, np.zeros_like(self._table)])
            self._free = list(range(more, 2 * more))
        index = self._free.pop()
        geometry = self._geometry(packed.pieces)
        start = packed.flat.data_ptr()
        self._table[index] = 0
        self._table[index, geometry.columns] = np.add(geometry.places, (start, start, 0))
        self._indices[packed.adapter_id] = index
        self._packed[packed.adapter_id] = packed, geometry
        self._mapped = None

    def drop(self, adapter_id: int) -> None:
        """No batch uses the adapter any more; its memory may go."""
        index = self._indices.pop(adapter_id, None)
        if index is not None:
            del self._packed[adapter_id]
            self._free.append(index)
            self._mapped = None

    def select(self, of_tokens: Sequence[int], of_samples: Sequence[int]) -> None:
        """The next batch: each row's adapter by id; rows of an id that is not here are the base model's."""
        if self._mapped != (of_tokens, of_samples):
            self._mapped = (of_tokens, of_samples)
            self._of_tokens = of_tokens
            self.tokens = self._batch(of_tokens)
            is_decode = of_samples == of_tokens
            self.samples = self.tokens if is_decode else self._batch(of_samples)

    def of_states(self, x: torch.Tensor) -> AdapterBatch:
        """Whose rows the output head is given: those to be sampled from, or a part of the model's states.

        The latter, all of one prompt, are for `prompt_logprobs`. vLLM does not say so; they lie among the others.
        """
        if len(x) == self.samples.rows and x.untyped_storage().nbytes() == x.nbytes:
            return self.samples
        first = x.storage_offset() // x.stride(0)
        ids = self._of_tokens[first : first + len(x)]
        return self._batch(ids) if len(ids) == len(x) else self.samples

    def _batch(self, ids: Sequence[int]) -> AdapterBatch:
        of_row = np.asarray(ids, np.int64)
        order = np.argsort(of_row, kind="stable")
        found, starts = np.unique(of_row[order], return_index=True)
        runs = np.split(order, starts[1:]) if len(found) else []
        rows_of = {
            int(i): rows for i, rows in zip(found, runs, strict=True) if int(i) in self._indices
        }
        few = {i: rows for i, rows in rows_of.items() if len(rows) <= self._few}
        indices = [self._indices[i] for i in few]
        counts = np.cumsum([0, *map(len, few.values())])
        groups = {i: RowGroup(*self._packed[i], _run(rows)) for i, rows in rows_of.items()}
        numbers = np.concatenate([[len(few)], counts, *few.values()]).astype(np.int64)
        matrices = np.ascontiguousarray(self._table[indices].transpose(1, 2, 0))
        return AdapterBatch(
            len(of_row),
            numbers,
            matrices,
            numbers.ctypes.data,
            matrices.ctypes.data,
            tuple(group for i, group in groups.items() if i not in few),
            tuple(groups.values()),
        )

    def _geometry(self, pieces: tuple[Piece, ...]) -> Geometry:
        """Made once for adapters that share their pieces."""
        known = self._geometries.get(id(pieces))
        if known is None or known.pieces is not pieces:
            if len(self._geometries) >= _MOST_GEOMETRIES:
                self._geometries.clear()  # some are made again; adapters keep theirs
            known = self._geometries[id(pieces)] = Geometry(pieces, self._first)
        return known


class LayerProducts:
    """What one layer calls to add its adapters' part to its output, in place of vLLM's wrapper for all."""

    def __init__(self, adapters: PagedAdapters, name: str, module: Any, first: int) -> None:
        self._adapters = adapters
        self._name = name
        self._first = first
        b_sides = stacked_tensors(module, "b")
        self._widths = [int(b.shape[-2]) for b in b_sides]
        self._begins = [sum(self._widths[:i]) for i in range(len(b_sides))]
        inputs, outputs = int(stacked_tensors(module, "a")[0].shape[-1]), sum(self._widths)
        shape = [len(b_sides), inputs, outputs, *self._begins, *self._widths]
        self._shape = np.array(shape, np.int64)
        self._shape_at = self._shape.ctypes.data
        if type(module).__name__ == "VocabParallelEmbeddingWithLoRA":
            module.forward = functools.partial(self.embed, module.base_layer)

    def add_lora_linear(self, y: Any, x: Any, *_stacked: Any, **_ignored: Any) -> None:
        """y (tokens, outputs) += x (tokens, inputs) @ A @ B of each row's adapter.

        A layer that works on what is to be sampled, or on a request's pooled state, has as many rows as those.
        """
        tokens, samples = self._adapters.tokens, self._adapters.samples
        self._add(samples if len(y) == samples.rows else tokens, y, x)

    def add_lora_logits(self, y: Any, x: Any, *_stacked: Any, **_ignored: Any) -> None:
        """The same for logits."""
        self._add(self._adapters.of_states(x), y, x)

    def embed(self, base: Any, ids: torch.Tensor) -> torch.Tensor:
        """An embedding's output with each row's adapter."""
        found: torch.Tensor = base.forward(ids)
        flat, flat_ids = found.view(-1, found.shape[-1]), ids.flatten()
        for group in self._adapters.tokens.groups:
            pair = group.pair(self._name, 0)
            if pair is not None:
                flat[group.rows] += (
                    torch.nn.functional.embedding(flat_ids[group.rows], pair[0]) @ pair[1].T
                )
        return found

    def _add(self, batch: AdapterBatch, y: torch.Tensor, x: torch.Tensor) -> None:
        if not batch.groups:
            return
        if len(y) < batch.rows:  # the loop would write beyond
            self._require_none(batch, len(y))
            return
        adapters = self._adapters
        x = x.to(adapters.dtype).contiguous()
        is_direct = y.dtype == x.dtype and y.is_contiguous()
        whole = y if is_direct else torch.zeros(y.shape, dtype=x.dtype)  # logits may be float32
        if adapters.loop is not None and len(batch.large) < len(batch.groups):
            matrices_at = batch.matrices_at + self._first * batch.matrices.strides[0]
            adapters.loop(
                x.data_ptr(), whole.data_ptr(), self._shape_at, matrices_at, batch.numbers_at
            )
        for group in batch.large:
            self._add_group(group, whole, x)
        if not is_direct:
            y += whole

    def _require_none(self, batch: AdapterBatch, rows: int) -> None:
        """Nothing if no adapter of the batch has anything in this layer."""
        indices = range(len(self._widths))
        if any(group.pair(self._name, i) for group in batch.groups for i in indices):
            raise RuntimeError(
                f"layer {self._name} was given {rows} rows of a batch of {batch.rows}, so whose they are is not known; "
                "way out: serve the model with serving.lora_backend = 'slots'"
            )

    def _add_group(self, group: RowGroup, y: torch.Tensor, x: torch.Tensor) -> None:
        own = x[group.rows]
        for index, (begin, width) in enumerate(zip(self._begins, self._widths, strict=True)):
            pair = group.pair(self._name, index)
            if pair is None:
                continue
            part = y[:, begin : begin + width]
            low = own @ pair[0].T
            if isinstance(group.rows, slice):
                part[group.rows].addmm_(low, pair[1].T)
            else:
                part.index_add_(0, group.rows, low @ pair[1].T)


@functools.cache
def paged_manager_class() -> type[Any]:
    """vLLM's LoRA manager without memory for slots; imports vLLM at the first call."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.model_manager import LRUCacheLoRAModelManager

    class PagedLoRAModelManager(LRUCacheLoRAModelManager):
        """Its layers multiply with what `paged` knows; layers of other kinds have no adapter."""

        paged: PagedAdapters

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            super().set_adapter_mapping(LoRAMapping((0,), (0,), is_prefill=True))
            self.paged = PagedAdapters(self.modules, self.lora_config.lora_dtype)

        @property
        def lora_slots(self) -> int:
            return 1  # of each layer, for as long as it takes to see its shape

        def register_module(self, module_name: str, module: Any) -> None:
            super().register_module(module_name, module)
            if is_packable(module):
                for name in ("lora_a_stacked", "lora_b_stacked", "lora_a_stacked_2d"):
                    if hasattr(module, name):
                        setattr(module, name, _without_memory(getattr(module, name)))

        def set_adapter_mapping(self, mapping: Any) -> None:
            self.paged.select(mapping.index_mapping, mapping.prompt_mapping)

    return PagedLoRAModelManager


def is_paged(adapter_manager: Any) -> bool:
    """Whether a model's layers use adapters where they lie."""
    return hasattr(adapter_manager, "paged")


def only_in_slots(adapter_manager: Any, lora_model: Any) -> str:
    """Why an adapter cannot be used from where it lies: the layer, and the way out."""
    saved = getattr(lora_model, "modules_to_save", None) or {}
    known = adapter_manager.paged.layers
    layers = [
        name for name in lora_model.loras if name in adapter_manager.modules and name not in known
    ]
    return (
        f"its weights for {first_of([*layers, *saved])} are for a layer whose adapters are in slots only; way "
        "out: serve it with serving.lora_backend = 'slots', or train it without that layer"
    )


def _without_memory(stacked: Any) -> Any:
    if isinstance(stacked, torch.Tensor):
        return stacked.to("meta")
    return tuple(tensor.to("meta") for tensor in stacked)


def passing_by_numba(rebind_kernels: Callable[..., None]) -> Callable[..., None]:
    """vLLM's search of all loaded modules for its kernels, without one of numba's that it stumbles over.

    So a process that has loaded numba, for whatever, can start an engine on CPU.
    """

    def rebind(overrides: Any) -> None:
        hidden = sys.modules.pop(_NUMBAS, None)
        try:
            rebind_kernels(overrides)
        finally:
            if hidden is not None:
                sys.modules[_NUMBAS] = hidden

    return rebind


def _loop(dtype: torch.dtype) -> Callable[..., None] | None:
    """The compiled loop, if there is one for this type; numba is loaded where it is used only."""
    try:
        product = importlib.import_module("chameleon_lora.engine_vllm.worker.grouped_product")
        return product.compiled(dtype, torch.get_num_threads()) if dtype in product.DTYPES else None
    except Exception as error:  # noqa: BLE001  # absent, or at odds with this numpy, compiler or machine
        _logger.warning(
            "numba does not compile the products of adapters (%s: %s): torch makes them, which takes longer",
            type(error).__name__, str(error).partition("\n")[0],
        )  # fmt: skip
        return None


def _run(rows: _Integers) -> slice | torch.Tensor:
    """Row numbers as a slice, if they are neighbours: then nothing is copied."""
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else torch.from_numpy(rows)

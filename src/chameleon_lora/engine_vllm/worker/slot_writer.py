"""Puts adapters' copies into vLLM's LoRA slots, and knows what each slot still holds of its last occupant."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from chameleon_lora.engine_vllm.cells import Cells
from chameleon_lora.engine_vllm.worker.device_store import DeviceCopy
from chameleon_lora.engine_vllm.worker.packed_adapter import (
    HostCopy,
    PackedAdapter,
    Piece,
    StockCopy,
    rank_axis,
    slot_matrix,
    stacked_tensors,
)
from chameleon_lora.policy.plan import overlap

_Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class _Occupant:
    """The cells that one adapter was written to, and the pieces it was written in."""

    cells: range
    pieces: tuple[Piece, ...]


class SlotWriter:
    """Owner of the slots' contents; lives as long as the worker, used by its main thread alone.

    Invariant: `_written` holds, by first cell, the corners that may be other than zero, of all slots
    but the `_unknown` ones (at the start, after vLLM's own code wrote), which are cleared before use.
    """

    def __init__(self, adapter_manager: Any, cells: Cells) -> None:
        self._manager = adapter_manager
        self._cells = cells
        self._unknown = set(range(cells.slots))
        self._written: dict[int, _Occupant] = {}
        self._corners: dict[int, dict[int, tuple[tuple[Piece, ...], list[torch.Tensor]]]] = {}

    def write(self, source: HostCopy | DeviceCopy, cell: int) -> None:
        """Afterwards the slot holds this adapter from this cell on, and nothing of whom it overlaps.

        Without division of slots it is byte for byte what vLLM would leave there.
        """
        slot = self._cells.slot(cell)
        if isinstance(source, StockCopy):
            self._unknown.add(slot)
            self._forget_in(range(slot * self._cells.parts, (slot + 1) * self._cells.parts))
            self._write_stock(source, slot)
            return
        if slot in self._unknown:
            self._clear(slot)
            self._unknown.discard(slot)
        taken = range(cell, cell + self._cells.needed(source.rank))
        leftovers = [
            corner
            for old in self._forget_in(taken)
            for corner in self._leftovers(old, source.pieces, cell)
        ]
        if leftovers:
            torch._foreach_zero_(leftovers)
        torch._foreach_copy_(self._targets_of(source, cell), source.views, non_blocking=True)
        self._written[cell] = _Occupant(taken, source.pieces)

    def forget(self) -> None:
        """Afterwards nothing is assumed about any slot: others may have written there."""
        self._unknown = set(range(self._cells.slots))
        self._written.clear()

    def _forget_in(self, taken: range) -> list[_Occupant]:
        """The former occupants of these cells, which are no longer known."""
        found = [t for t in self._written.values() if overlap(t.cells, taken)]
        for occupant in found:
            del self._written[occupant.cells.start]
        return found

    def _targets_of(self, source: PackedAdapter | DeviceCopy, cell: int) -> list[torch.Tensor]:
        """Where each of the source's views goes."""
        corners = self._corners_of(source.pieces, cell)
        if isinstance(source, PackedAdapter):
            return corners
        return [
            corners[piece] if region is None else corners[piece][region]
            for piece, region in source.parts
        ]

    def _corners_of(self, pieces: tuple[Piece, ...], cell: int) -> list[torch.Tensor]:
        known = self._corners.setdefault(cell, {})
        key = id(pieces)
        if key not in known:
            if len(known) >= 8:  # geometries alive at a time; the views are cheap to make again
                known.clear()
            known[key] = (pieces, [self._corner(piece, cell) for piece in pieces])
        return known[key][1]

    def _corner(self, piece: Piece, cell: int) -> torch.Tensor:
        """Where a piece goes: it begins at the cell's first rank, on the axis of the rank."""
        module = self._manager.modules[piece.module]
        stacked = stacked_tensors(module, piece.factor)[piece.index]
        matrix = slot_matrix(stacked, self._cells.slot(cell))
        first = self._cells.first_rank(cell)
        if rank_axis(piece, module) == 0:
            return matrix[first : first + piece.rows, : piece.columns]
        return matrix[: piece.rows, first : first + piece.columns]

    def _leftovers(
        self, old: _Occupant, new: tuple[Piece, ...], cell: int
    ) -> Iterator[torch.Tensor]:
        """What of the old occupant's corners the new occupant will not overwrite."""
        if old.pieces is new and old.cells.start == cell:
            return
        kept: dict[_Place, Piece] = {(p.module, p.index, p.factor): p for p in new}
        for piece in old.pieces:
            corner = self._corner(piece, old.cells.start)
            heir = kept.get((piece.module, piece.index, piece.factor))
            if heir is None or old.cells.start != cell:
                yield corner
                continue
            if heir.rows < piece.rows:
                yield corner[heir.rows :]
            if heir.columns < piece.columns:
                yield corner[: heir.rows, heir.columns :]

    def _clear(self, slot: int) -> None:
        for module in self._manager.modules.values():
            module.reset_lora(slot)
            reset_full_module = getattr(type(module), "reset_module_to_save", None)
            if reset_full_module is not None:
                reset_full_module(module, slot)

    def _write_stock(self, host_copy: StockCopy, slot: int) -> None:
        """vLLM's own activation, shown a world in which `slot` is the only free one."""
        from vllm.lora.model_manager import LoRAModelManager

        manager = self._manager
        registered, layout = manager._registered_adapters, manager.lora_index_to_id
        active = manager._active_adapters
        manager._registered_adapters = {host_copy.adapter_id: host_copy.lora_model}
        manager._active_adapters = {}
        manager.lora_index_to_id = [None if i == slot else -1 for i in range(self._cells.slots)]
        try:
            LoRAModelManager.activate_adapter(manager, host_copy.adapter_id)
        finally:
            manager._registered_adapters, manager.lora_index_to_id = registered, layout
            manager._active_adapters = active

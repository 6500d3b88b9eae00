"""Puts adapters' copies into vLLM's LoRA slots, and knows what each slot still holds of its last occupant."""

from collections.abc import Iterator
from typing import Any

import torch

from chameleon_lora.engine_vllm.worker.device_store import DeviceCopy
from chameleon_lora.engine_vllm.worker.packed_adapter import (
    HostCopy,
    PackedAdapter,
    Piece,
    StockCopy,
    slot_matrix,
    stacked_tensors,
)

_Place = tuple[str, int, str]


class SlotWriter:
    """Owner of the slots' contents; lives as long as the worker, used by its main thread alone.

    Invariant: `_written` holds, by slot, the pieces whose corners may be other than zero, of all slots
    that are known; the others (at the start, after vLLM's own code wrote) are cleared before use.
    """

    def __init__(self, adapter_manager: Any) -> None:
        self._manager = adapter_manager
        self._written: dict[int, tuple[Piece, ...]] = {}
        self._corners: dict[int, dict[int, tuple[tuple[Piece, ...], list[torch.Tensor]]]] = {}

    def write(self, source: HostCopy | DeviceCopy, slot: int) -> None:
        """Afterwards the slot holds this adapter alone, byte for byte as vLLM would leave it."""
        old = self._written.pop(slot, None)
        if isinstance(source, StockCopy):
            self._write_stock(source, slot)
            return
        if old is None:
            self._clear(slot)
        elif leftovers := list(self._leftovers(old, source.pieces, slot)):
            torch._foreach_zero_(leftovers)
        torch._foreach_copy_(self._targets_of(source, slot), source.views, non_blocking=True)
        self._written[slot] = source.pieces

    def forget(self) -> None:
        """Afterwards nothing is assumed about any slot: others may have written there."""
        self._written.clear()

    def _targets_of(self, source: PackedAdapter | DeviceCopy, slot: int) -> list[torch.Tensor]:
        """Where each of the source's views goes."""
        corners = self._corners_of(source.pieces, slot)
        if isinstance(source, PackedAdapter):
            return corners
        return [
            corners[piece] if region is None else corners[piece][region]
            for piece, region in source.parts
        ]

    def _corners_of(self, pieces: tuple[Piece, ...], slot: int) -> list[torch.Tensor]:
        known = self._corners.setdefault(slot, {})
        key = id(pieces)
        if key not in known:
            if len(known) >= 8:  # geometries alive at a time; the views are cheap to make again
                known.clear()
            known[key] = (pieces, [self._corner(piece, slot) for piece in pieces])
        return known[key][1]

    def _corner(self, piece: Piece, slot: int) -> torch.Tensor:
        """Where a piece goes."""
        module = self._manager.modules[piece.module]
        matrix = slot_matrix(stacked_tensors(module, piece.factor)[piece.index], slot)
        return matrix[: piece.rows, : piece.columns]

    def _leftovers(
        self, old: tuple[Piece, ...], new: tuple[Piece, ...], slot: int
    ) -> Iterator[torch.Tensor]:
        """What of the old occupant's corners the new occupant will not overwrite."""
        if old is new:
            return
        kept: dict[_Place, Piece] = {(p.module, p.index, p.factor): p for p in new}
        for piece in old:
            corner = self._corner(piece, slot)
            heir = kept.get((piece.module, piece.index, piece.factor))
            if heir is None:
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
        manager.lora_index_to_id = [None if i == slot else -1 for i in range(len(layout))]
        try:
            LoRAModelManager.activate_adapter(manager, host_copy.adapter_id)
        finally:
            manager._registered_adapters, manager.lora_index_to_id = registered, layout
            manager._active_adapters = active

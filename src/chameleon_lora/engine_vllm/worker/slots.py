"""Adapters in vLLM's slots: padded copies in each layer, of which a batch mixes as many as there are.

Slots belong to the scheduler. This class puts adapters where it says, checks before each step that the
batch's are there, and heals what others undid (profile runs and weight reloads clear all slots).
"""

from collections.abc import Mapping
from typing import Any

from chameleon_lora.engine_vllm.cells import Cells
from chameleon_lora.engine_vllm.worker.cpu_punica import CellMasks, adopt
from chameleon_lora.engine_vllm.worker.device_store import DeviceStore
from chameleon_lora.engine_vllm.worker.packed_adapter import HostCopy, StockCopy
from chameleon_lora.engine_vllm.worker.slot_writer import SlotWriter
from chameleon_lora.errors import AdapterError
from chameleon_lora.policy.plan import overlap


class Slots:
    """Who is in which slot. Owner: the worker's adapters; used by the thread that runs steps.

    Invariants: `_assigned` holds the windows that the scheduler gave away, which do not overlap, and
    `_present` those that adapters have in fact: the same, less what someone cleared. vLLM's
    `lora_index_to_id` is `_layout`, with each of them at its window's first cell, except while vLLM
    itself has the slots (warm-up, profile runs).
    """

    def __init__(self, adapter_manager: Any, cells: Cells, device: DeviceStore) -> None:
        self._manager = adapter_manager
        self.cells = cells
        self._device = device
        self._masks = CellMasks(cells)
        self._writer = SlotWriter(adapter_manager, cells)
        self._layout: list[int | None] | None = None
        self._assigned: dict[int, range] = {}
        self._present: dict[int, range] = {}

    def activate(self, adapter_id: int, cell: int, host_copy: HostCopy) -> bool:
        """Afterwards the adapter has the window at this cell; whether it came from KV blocks."""
        window = self._window(host_copy, cell)
        for former in overlapping(self._assigned, window):
            del self._assigned[former]
        self._assigned[adapter_id] = window
        self._take()
        return self._place(adapter_id, host_copy, window)

    def ensure(self, wanted: set[int], copies: Mapping[int, HostCopy]) -> None:
        """Afterwards every adapter of the batch is in a slot.

        Raises:
            AdapterError: more adapters than slots, or one without a slot from the scheduler.
        """
        layout = self._take()
        if len(wanted) > len(layout):
            raise AdapterError(
                f"A step names {len(wanted)} adapters but there is room for {len(layout)}; "
                "raise --max-loras."
            )
        for adapter_id in sorted(wanted - self._present.keys()):  # someone cleared its slot
            if adapter_id not in self._assigned:
                raise AdapterError(
                    f"Adapter {adapter_id} is to run, but the scheduler gave it no slot"
                )
            self._place(adapter_id, copies[adapter_id], self._assigned[adapter_id])

    def drop(self, adapter_id: int) -> None:
        """The adapter leaves its slot, and has none any more."""
        self._assigned.pop(adapter_id, None)
        self._vacate(adapter_id)

    def forget(self) -> None:
        """To be called when others may have written into slots, or cleared them."""
        self._layout = None

    def lend(self) -> None:
        """Afterwards vLLM may fill slots its own way, all of them; the next step takes them back."""
        manager = self._manager
        if manager.lora_index_to_id is self._layout:
            manager.lora_index_to_id = [None] * self.cells.slots
            manager._active_adapters.clear()
            manager._last_mapping = None
        self.forget()

    def _take(self) -> list[int | None]:
        """Afterwards vLLM tells rows apart by cell, not by slot. Answers who begins in which cell.

        A profile run or a weight reload leaves vLLM's own layout, and slots of unknown content.
        """
        manager, count = self._manager, self.cells.count
        if self._layout is None or manager.lora_index_to_id is not self._layout:
            self._layout = manager.lora_index_to_id = [None] * count
            kind = type(manager._active_adapters)
            manager._active_adapters = kind(count, manager._deactivate_adapter)
            manager._last_mapping = None
            self._present.clear()
            self._writer.forget()
        adopt(manager, self._masks)
        return self._layout

    def _window(self, host_copy: HostCopy, cell: int) -> range:
        """The cells an adapter takes at this one; aligned, so that it never crosses slots."""
        cells = self.cells
        whole = isinstance(host_copy, StockCopy)
        needed = cells.parts if whole else cells.needed(host_copy.rank)
        first = cell // needed * needed
        return range(first, first + needed)

    def _vacate(self, adapter_id: int) -> None:
        """Afterwards the adapter is in no slot."""
        self._manager.deactivate_adapter(adapter_id)
        self._present.pop(adapter_id, None)

    def _place(self, adapter_id: int, host_copy: HostCopy, window: range) -> bool:
        """Puts the adapter into its window; whether it came from KV blocks."""
        manager, cell = self._manager, window.start
        if manager.lora_index_to_id[cell] == adapter_id:
            return False
        self._vacate(adapter_id)  # it may be in another slot
        for occupant in overlapping(self._present, window):
            self._vacate(occupant)
        device_copy = self._device.try_get(adapter_id, host_copy)
        self._writer.write(device_copy or host_copy, cell)
        whole = isinstance(host_copy, StockCopy)
        self._masks.set(cell, self.cells.max_rank if whole else host_copy.rank)
        self._present[adapter_id] = window
        manager.lora_index_to_id[cell] = adapter_id
        manager._active_adapters[adapter_id] = None
        manager._last_mapping = None  # the batch may be the same, its slots are not
        return device_copy is not None


def overlapping(windows: Mapping[int, range], window: range) -> list[int]:
    """The adapters whose windows share a cell with this one."""
    return [adapter_id for adapter_id, other in windows.items() if overlap(other, window)]

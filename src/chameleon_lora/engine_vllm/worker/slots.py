"""Adapters in vLLM's slots: padded copies in each layer, of which a batch mixes as many as there are.

Slots belong to the scheduler. This class puts adapters where it says, checks before each step that the
batch's are there, and heals what others undid (profile runs and weight reloads clear all slots).
"""

from collections.abc import Mapping
from typing import Any

from chameleon_lora.engine_vllm.worker.cpu_punica import adopt
from chameleon_lora.engine_vllm.worker.device_store import DeviceStore
from chameleon_lora.engine_vllm.worker.packed_adapter import HostCopy
from chameleon_lora.engine_vllm.worker.slot_writer import SlotWriter
from chameleon_lora.errors import AdapterError


class Slots:
    """Who is in which slot. Owner: the worker's adapters; used by the thread that runs steps.

    Invariants: `_assigned` holds the slots that the scheduler gave away, and `_layout` those that
    adapters have in fact: the same, less what someone cleared. It is vLLM's `lora_index_to_id`, except
    while vLLM itself has the slots (warm-up, profile runs).
    """

    def __init__(self, adapter_manager: Any, device: DeviceStore) -> None:
        self._manager = adapter_manager
        self._device = device
        self._writer = SlotWriter(adapter_manager)
        self._layout: list[int | None] | None = None
        self._assigned: dict[int, int] = {}

    def activate(self, adapter_id: int, slot: int, host_copy: HostCopy) -> bool:
        """Afterwards the adapter has this slot; whether it came from KV blocks."""
        self._assigned = {a: given for a, given in self._assigned.items() if given != slot}
        self._assigned[adapter_id] = slot
        self._take()
        return self._place(adapter_id, host_copy, slot)

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
        for adapter_id in sorted(wanted.difference(layout)):  # someone cleared its slot
            if adapter_id not in self._assigned:
                raise AdapterError(
                    f"Adapter {adapter_id} is to run, but the scheduler gave it no slot"
                )
            self._place(adapter_id, copies[adapter_id], self._assigned[adapter_id])

    def drop(self, adapter_id: int) -> None:
        """The adapter leaves its slot, and has none any more."""
        self._assigned.pop(adapter_id, None)
        self._manager.deactivate_adapter(adapter_id)

    def forget(self) -> None:
        """To be called when others may have written into slots, or cleared them."""
        self._layout = None

    def lend(self) -> None:
        """Afterwards vLLM may fill slots its own way, all of them; the next step takes them back."""
        if self._manager.lora_index_to_id is self._layout:
            self._clear()
        self.forget()

    def _take(self) -> list[int | None]:
        """Afterwards the slots are the scheduler's. Answers who is in which.

        A profile run or a weight reload leaves vLLM's own layout, and slots of unknown content.
        """
        if self._layout is None or self._manager.lora_index_to_id is not self._layout:
            self._layout = self._clear()
            self._writer.forget()
        adopt(self._manager)
        return self._layout

    def _clear(self) -> list[int | None]:
        """Afterwards vLLM knows of nobody in a slot."""
        manager = self._manager
        layout: list[int | None] = [None] * manager.lora_slots
        manager.lora_index_to_id = layout
        manager._active_adapters.clear()
        manager._last_mapping = None
        return layout

    def _place(self, adapter_id: int, host_copy: HostCopy, slot: int) -> bool:
        """Puts the adapter into the slot; whether it came from KV blocks."""
        manager = self._manager
        occupant = manager.lora_index_to_id[slot]
        if occupant == adapter_id:
            return False
        for former in (adapter_id, occupant):  # it may be in another slot
            if former is not None:
                manager.deactivate_adapter(former)
        device_copy = self._device.try_get(adapter_id, host_copy)
        self._writer.write(device_copy or host_copy, slot)
        manager.lora_index_to_id[slot] = adapter_id
        manager._active_adapters[adapter_id] = None
        manager._last_mapping = None  # the batch may be the same, its slots are not
        return device_copy is not None

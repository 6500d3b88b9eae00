"""Carries out the scheduler's commands in a worker: loads, drops, activations, copies in KV blocks.

Slots belong to the scheduler. This class does what it says, checks before each step that the batch's
adapters are in place, and heals what others undid (profile runs and weight reloads clear all slots).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from chameleon_lora.engine_vllm.cells import Cells
from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.messages import (
    Ack,
    ActivateAdapter,
    Activated,
    Command,
    DemoteAdapter,
    DropAdapter,
    LoadAdapter,
    Loaded,
    LoadFailed,
    PromoteAdapter,
)
from chameleon_lora.engine_vllm.worker.agreement import Agreement, News
from chameleon_lora.engine_vllm.worker.cpu_punica import CellMasks, adopt
from chameleon_lora.engine_vllm.worker.device_store import DeviceStore
from chameleon_lora.engine_vllm.worker.loader import (
    Delivery,
    Loader,
    LoadOrder,
    VllmReader,
)
from chameleon_lora.engine_vllm.worker.packed_adapter import HostCopy, StockCopy
from chameleon_lora.engine_vllm.worker.slot_writer import SlotWriter
from chameleon_lora.errors import AdapterError
from chameleon_lora.policy.plan import overlap


class WorkerAdapters:
    """One worker's host copies and slots; used by the thread that runs steps.

    Invariants: `_assigned` holds the windows that the scheduler gave away, which do not overlap, and
    `_present` those that adapters have in fact: the same, less what someone cleared. vLLM's
    `lora_index_to_id` is `_layout`, with each of them at its window's first cell, except while vLLM
    itself has the slots (warm-up, profile runs).
    """

    def __init__(
        self,
        adapter_manager: Any,
        cells: Cells,
        loader: Loader,
        reader: VllmReader,
        device: DeviceStore,
        agreement: Agreement,
    ) -> None:
        self._manager = adapter_manager
        self._loader = loader
        self._reader = reader
        self._device = device
        self._agreement = agreement
        self._cells = cells
        self._masks = CellMasks(cells)
        self._writer = SlotWriter(adapter_manager, cells)
        self._layout: list[int | None] | None = None
        self._assigned: dict[int, range] = {}
        self._present: dict[int, range] = {}
        self._copies: dict[int, HostCopy] = {}
        self._orders: dict[int, LoadOrder] = {}
        self._activated: list[Activated] = []

    @property
    def host_ids(self) -> frozenset[int]:
        """The adapters in host memory."""
        return frozenset(self._copies)

    def attach(self, runner: Any) -> None:
        """Makes this vLLM model runner's KV cache the one that adapters are promoted into."""
        self._device.runner = runner

    def execute(self, commands: Iterable[Command]) -> None:
        """Carries the commands out in their order; loads and promotions only begin."""
        for command in commands:
            match command:
                case LoadAdapter():
                    self._load(command)
                case DropAdapter():
                    self._drop(command.adapter_id)
                case ActivateAdapter():
                    self._activate(command)
                case PromoteAdapter():
                    self._demote(command.adapter_id)
                    self._agreement.await_promotion(command.adapter_id, command.serial)
                    self._device.promote(command, self._copies[command.adapter_id])
                case DemoteAdapter():
                    self._demote(command.adapter_id)

    def poll_acks(self) -> tuple[Ack, ...]:
        """What all ranks have done since the last call, which is made on all at the same moments.

        Waits for no disk and no copy, only for the other ranks' call.
        """
        news: list[News] = [*self._delivered(), *self._device.poll()]
        settled = self._agreement.settle(news)
        for ack in settled:
            if isinstance(ack, LoadFailed):
                self._forget_copy(ack.adapter_id)  # this rank may have read its own part well
        acks, self._activated = (*self._activated, *settled), []
        return acks

    def ensure_active(self, requests: Iterable[Any]) -> None:
        """Afterwards every adapter of the batch is in a slot.

        Raises:
            AdapterError: more adapters than slots, or one without a slot from the scheduler.
        """
        wanted = {request.lora_int_id for request in requests if request}
        layout = self._take_slots()
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
            self._place(adapter_id, self._copies[adapter_id], self._assigned[adapter_id])

    def forget_slots(self) -> None:
        """To be called when others may have written into slots, or cleared them."""
        self._layout = None

    def forget_device(self) -> None:
        """To be called before the KV cache's memory goes."""
        self._device.forget()
        self._agreement.forget_promotions()

    def lend_slots(self) -> None:
        """Afterwards vLLM may fill slots its own way, all of them; the next step takes them back."""
        manager = self._manager
        if manager.lora_index_to_id is self._layout:
            manager.lora_index_to_id = [None] * self._cells.slots
            manager._active_adapters.clear()
            manager._last_mapping = None
        self.forget_slots()

    def close(self) -> None:
        """Ends the threads and gives the loader's disk space back."""
        self._device.close()
        self._loader.close()
        self._reader.close()

    def _load(self, command: LoadAdapter) -> None:
        self._drop(command.adapter_id)
        self._agreement.await_load(command.adapter_id, command.name)
        self._orders[command.adapter_id] = self._loader.submit(command)

    def _drop(self, adapter_id: int) -> None:
        self._agreement.forget_load(adapter_id)
        self._demote(adapter_id)
        self._forget_copy(adapter_id)
        self._assigned.pop(adapter_id, None)
        self._vacate(adapter_id)

    def _demote(self, adapter_id: int) -> None:
        self._agreement.forget_promotion(adapter_id)
        self._device.demote(adapter_id)

    def _forget_copy(self, adapter_id: int) -> None:
        """Afterwards there is no host copy, and the load under way makes none."""
        self._copies.pop(adapter_id, None)
        order = self._orders.pop(adapter_id, None)
        if order is not None:
            order.is_cancelled = True

    def _delivered(self) -> Iterator[Loaded | LoadFailed]:
        """What became of this rank's own loads."""
        for delivery in self._loader.poll():
            adapter_id = delivery.order.command.adapter_id
            if self._orders.get(adapter_id) is delivery.order:  # else dropped or asked for anew
                del self._orders[adapter_id]
                yield self._deliver(adapter_id, delivery)

    def _deliver(self, adapter_id: int, delivery: Delivery) -> Loaded | LoadFailed:
        if isinstance(delivery.outcome, LoadFailed):
            return delivery.outcome
        host_copy = self._copies[adapter_id] = delivery.outcome.host_copy
        is_packed = not isinstance(host_copy, StockCopy)
        rank = host_copy.rank if is_packed else self._cells.max_rank
        fingerprint = delivery.outcome.fingerprint
        return Loaded(adapter_id, host_copy.nbytes, rank, delivery.seconds, is_packed, fingerprint)

    def _activate(self, command: ActivateAdapter) -> None:
        start = stopwatch_s()
        host_copy = self._copies[command.adapter_id]  # on every rank, for all said so
        window = self._window(host_copy, command.cell)
        for former in overlapping(self._assigned, window):
            del self._assigned[former]
        self._assigned[command.adapter_id] = window
        self._take_slots()
        from_device = self._place(command.adapter_id, host_copy, window)
        is_checked = from_device and self._device.debug_checks
        seconds = stopwatch_s() - start
        self._activated.append(
            Activated(command.adapter_id, command.cell, seconds, from_device, is_checked)
        )

    def _take_slots(self) -> list[int | None]:
        """Afterwards vLLM tells rows apart by cell, not by slot. Answers who begins in which cell.

        A profile run or a weight reload leaves vLLM's own layout, and slots of unknown content.
        """
        manager, count = self._manager, self._cells.count
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
        cells = self._cells
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
        self._masks.set(cell, self._cells.max_rank if whole else host_copy.rank)
        self._present[adapter_id] = window
        manager.lora_index_to_id[cell] = adapter_id
        manager._active_adapters[adapter_id] = None
        manager._last_mapping = None  # the batch may be the same, its slots are not
        return device_copy is not None


def overlapping(windows: Mapping[int, range], window: range) -> list[int]:
    """The adapters whose windows share a cell with this one."""
    return [adapter_id for adapter_id, other in windows.items() if overlap(other, window)]

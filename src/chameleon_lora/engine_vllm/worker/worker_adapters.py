"""Carries out the scheduler's commands in a worker: loads, drops, activations, copies in KV blocks.

It does what the scheduler says. Where a batch uses adapters from is another's matter: from vLLM's slots
(`slots`), or from where they lie (`paged_lora`).
"""

from collections.abc import Iterable, Iterator
from typing import Any

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
from chameleon_lora.engine_vllm.worker.device_store import DeviceStore
from chameleon_lora.engine_vllm.worker.loader import (
    Delivery,
    Loader,
    LoadOrder,
    VllmReader,
)
from chameleon_lora.engine_vllm.worker.loader_process import LoaderProcess
from chameleon_lora.engine_vllm.worker.packed_adapter import HostCopy, PackedAdapter
from chameleon_lora.engine_vllm.worker.paged_lora import PagedAdapters
from chameleon_lora.engine_vllm.worker.slots import Slots
from chameleon_lora.errors import AdapterError


class WorkerAdapters:
    """One worker's host copies; used by the thread that runs steps."""

    def __init__(
        self,
        places: Slots | PagedAdapters,
        loader: Loader | LoaderProcess,
        reader: VllmReader | None,
        device: DeviceStore,
        agreement: Agreement,
    ) -> None:
        self._places = places
        self._loader = loader
        self._reader = reader
        self._device = device
        self._agreement = agreement
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
        """Afterwards every adapter of the batch can be used.

        Raises:
            AdapterError: more adapters than slots, or one that the scheduler did not provide for.
        """
        wanted = {request.lora_int_id for request in requests if request}
        if isinstance(self._places, Slots):
            self._places.ensure(wanted, self._copies)
        elif absent := wanted - self._copies.keys():
            raise AdapterError(f"Adapter {min(absent)} is to run, but it is not in host memory")

    def forget_slots(self) -> None:
        """To be called when others may have written into slots, or cleared them."""
        if isinstance(self._places, Slots):
            self._places.forget()

    def forget_device(self) -> None:
        """To be called before the KV cache's memory goes."""
        self._device.forget()
        self._agreement.forget_promotions()

    def lend_slots(self) -> None:
        """Afterwards vLLM may fill slots its own way, all of them; the next step takes them back."""
        if isinstance(self._places, Slots):
            self._places.lend()

    def close(self) -> None:
        """Ends threads and processes and gives the loader's disk space back."""
        self._device.close()
        self._loader.close()
        if self._reader is not None:
            self._reader.close()

    def _load(self, command: LoadAdapter) -> None:
        self._drop(command.adapter_id)
        self._agreement.await_load(command.adapter_id, command.name)
        self._orders[command.adapter_id] = self._loader.submit(command)

    def _drop(self, adapter_id: int) -> None:
        self._agreement.forget_load(adapter_id)
        self._demote(adapter_id)
        self._forget_copy(adapter_id)

    def _demote(self, adapter_id: int) -> None:
        self._agreement.forget_promotion(adapter_id)
        self._device.demote(adapter_id)

    def _forget_copy(self, adapter_id: int) -> None:
        """Afterwards there is no host copy, and the load under way makes none."""
        self._copies.pop(adapter_id, None)
        self._places.drop(adapter_id)
        order = self._orders.pop(adapter_id, None)
        if order is not None:
            self._loader.cancel(order)

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
        is_packed, fingerprint = isinstance(host_copy, PackedAdapter), delivery.outcome.fingerprint
        if isinstance(self._places, PagedAdapters) and isinstance(host_copy, PackedAdapter):
            self._places.put(host_copy)  # the reader refuses others
        nbytes, rank = host_copy.nbytes, host_copy.rank
        return Loaded(adapter_id, nbytes, rank, delivery.seconds, is_packed, fingerprint)

    def _activate(self, command: ActivateAdapter) -> None:
        assert isinstance(self._places, Slots), "the scheduler activates where there are slots"
        start = stopwatch_s()
        host_copy = self._copies[command.adapter_id]  # on every rank, for all said so
        from_device = self._places.activate(command.adapter_id, command.slot, host_copy)
        is_checked = from_device and self._device.debug_checks
        seconds = stopwatch_s() - start
        self._activated.append(
            Activated(command.adapter_id, command.slot, seconds, from_device, is_checked)
        )

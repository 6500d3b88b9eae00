"""Where adapters' copies are, and how long a step waits for them."""

from collections.abc import Iterable, Mapping

from chameleon_lora.policy.plan import Activation, Load, Promotion
from chameleon_lora.policy.request import Adapter, AdapterId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.sim.kernel import Kernel, Priority
from chameleon_lora.sim.outcome import Found
from chameleon_lora.sim.profile import Link, Profile


class AdapterCopies:
    """Copies of adapters under way and done. Owner: the engine.

    Device copies are those in KV blocks; an engine with slots has another in the slot. One that uses
    adapters from host memory makes none.
    """

    def __init__(
        self,
        profile: Profile,
        policy: Scheduler,
        kernel: Kernel,
        adapters: Mapping[AdapterId, Adapter],
    ) -> None:
        self._policy = policy
        self._adapters = adapters
        self._kernel = kernel
        self._is_paged = policy.limits.is_paged
        self._in_host = self._is_paged and not policy.limits.block_bytes
        self._to_slot = profile.device_copy
        self.link = LinkQueue(profile.host_link)
        self.disk = LinkQueue(profile.disk)
        self._complete_s: dict[AdapterId, float] = {}  # copies in KV blocks

    def gone(self, adapter_ids: Iterable[AdapterId]) -> None:
        """The KV blocks of these adapters are free."""
        for adapter_id in adapter_ids:
            self._complete_s.pop(adapter_id, None)

    def load(self, load: Load, now_s: float) -> None:
        """An adapter is read from disk; the policy is told when it is in host memory."""
        self.gone(load.evicts)
        adapter = self._adapters[load.adapter_id]
        self._kernel.plan(
            self.disk.copy(adapter.nbytes, now_s),
            Priority.COPY,
            lambda end_s: self._policy.loaded(adapter.id, adapter.nbytes, adapter.rank, end_s),
        )

    def promote(self, promotion: Promotion, now_s: float) -> None:
        """An adapter is copied into KV blocks; the policy is told when that is done."""
        self.gone(promotion.evicts)
        nbytes = self._adapters[promotion.adapter_id].nbytes
        end_s = self._complete_s[promotion.adapter_id] = self.link.copy(nbytes, now_s)
        self._kernel.plan(end_s, Priority.COPY, lambda _: self._policy.promoted(promotion.serial))

    def activate(self, activation: Activation, now_s: float) -> tuple[Found, float]:
        """Where the adapter was, and when it can be used, at `now_s` or later."""
        if self._in_host:
            return Found.HOST if activation.is_cold else Found.DEVICE, now_s
        nbytes = self._adapters[activation.adapter_id].nbytes
        complete_s = self._complete_s.get(activation.adapter_id)
        if self._is_paged:
            if complete_s is None:
                complete_s = self.link.copy(nbytes, now_s)
                self._complete_s[activation.adapter_id] = complete_s
                return Found.HOST, complete_s
            return Found.DEVICE if complete_s <= now_s else Found.LINK, max(now_s, complete_s)
        if complete_s is not None and complete_s <= now_s:
            return Found.DEVICE, now_s + self._to_slot.copy_s(nbytes)
        return Found.HOST, self.link.copy(nbytes, now_s)


class LinkQueue:
    """When a link comes free. A copy under way is never interrupted."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._free_s = 0.0
        self.busy_s = 0.0
        self.nbytes = 0

    def copy(self, nbytes: int, now_s: float) -> float:
        """Begin a copy as soon as those before it are done; answers when it will be complete."""
        seconds = self._link.copy_s(nbytes)
        self._free_s = max(self._free_s, now_s) + seconds
        self.busy_s += seconds
        self.nbytes += nbytes
        return self._free_s

"""Between vLLM's scheduler and the policy: facts from the one, the plan of the other.

It decides nothing. Which requests run is read off vLLM's own state at each step, so an abort, a
disconnect, a preemption and a normal end all return quota the same way.
"""

import functools
import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from chameleon_lora.engine_vllm.core.arrival import arrival_of, trial_of
from chameleon_lora.engine_vllm.core.block_loans import BlockLoans, LoanedBlocks
from chameleon_lora.engine_vllm.core.telemetry import AdapterWaits, ArrivalLog, Telemetry
from chameleon_lora.engine_vllm.core.versions import AdapterVersions, ClientIds, Version
from chameleon_lora.engine_vllm.event_log import EventLog
from chameleon_lora.engine_vllm.messages import (
    Ack,
    ActivateAdapter,
    Activated,
    Announcement,
    Command,
    DropAdapter,
    Loaded,
    LoadFailed,
    Promoted,
    PromotionFailed,
)
from chameleon_lora.policy.plan import Failure, StepBudget, StepPlan
from chameleon_lora.policy.request import Adapter, AdapterId, RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import Predictor
from chameleon_lora.policy.view import PolicyView
from chameleon_lora.settings import ServingSettings

LEAST_IDLE_S, MOST_IDLE_S = 0.02, 1.0
MOST_TOLD = 1024
_logger = logging.getLogger(f"vllm.{__name__}")


def _warn(_adapter_id: int | None, text: str) -> None:
    _logger.warning("%s", text)


class Driver:
    """One engine's requests and adapters, in vLLM's terms and in the policy's.

    Attributes:
        planned: vLLM requests to admit in the step under way, in order.
        loans: the KV blocks that adapters hold; None for an engine that lends none.
        has_api_server: it announces what it serves, so that requests announce nothing.
    """

    def __init__(
        self,
        policy: Scheduler,
        serving: ServingSettings,
        blocks: LoanedBlocks | None = None,
        log: EventLog | None = None,
        most_client_ids: int = 1,
    ) -> None:
        self.policy = policy
        self.versions = AdapterVersions()
        self.client_ids = ClientIds(most_client_ids)
        self.telemetry = Telemetry()
        self._waits = AdapterWaits(self.telemetry, log)
        self.arrivals = ArrivalLog()
        self.planned: deque[Any] = deque()
        self.serving = serving
        self._reads_prompts = policy.settings.length.predictor is Predictor.WORDS
        self._requests: dict[RequestId, Any] = {}
        self._has_news = False  # for the policy to act upon, since the last step
        self._quiet_since_s = 0.0
        self.has_api_server = False
        self.loans = None if blocks is None else BlockLoans(policy, blocks)
        self._trials: dict[AdapterId, Future[Failure | None]] = {}
        self._now_s = 0.0
        # What requests can bring about again and again is told once of each version.
        self._warn_once = functools.lru_cache(MOST_TOLD)(_warn)

    # What API servers say of adapters

    def announce(self, source: Announcement) -> Version:
        """Serve this content under this name from now on; requests under way keep the former."""
        return self._take(*self.versions.announce(source))

    def renew(self, source: Announcement) -> Version:
        """Serve what is in the files from now on, whatever it is; the same otherwise."""
        return self._take(*self.versions.renew(source))

    def try_out(self, source: Announcement) -> "Future[Failure | None]":
        """Serve this content under this name once it has been read; the former until then.

        The future answers None once it is served, or why it cannot be. Where there is no room it waits its
        turn, as a request for it would. What is served and was read already is not read again.
        """
        if self.versions.is_read(source):
            served: Future[Failure | None] = Future()
            served.set_result(None)
            return served
        version = self._take(self.versions.unlisted(source), None)
        trial = self._trials[version.id] = Future()
        self.policy.arrived(trial_of(version.id, self.serving), self._now_s)
        self._has_news = True
        return trial

    def pass_by(self, source: Announcement) -> Version:
        """A version for one request that was let in just before its adapter was withdrawn.

        It is to be retired as soon as that request has arrived.
        """
        return self._take(self.versions.unlisted(source), None)

    def retire(self, version: Version) -> None:
        """Requests that name it run to their end, then it is forgotten."""
        self.policy.unregistered(version.id)
        self._forget_gone()
        self._has_news = True

    def withdraw(self, name: str) -> bool:
        """Serve this name no longer; requests under way run to their end. False if it is unknown."""
        self.client_ids.forget_name(name)
        version = self.versions.withdraw(name)
        if version is not None:
            self.retire(version)
        return version is not None

    def pin(self, name: str, is_pinned: bool) -> str | None:
        """Keep the adapter in memory from now on, or no longer; else answers why that cannot be."""
        version = self.versions.current(name)
        if version is None:
            return f"The lora adapter '{name}' cannot be found."
        budget = self.policy.settings.cache.host_bytes
        nbytes = self.policy.bytes_if_pinned(version.id)
        if is_pinned and budget is not None and nbytes > budget:
            return (
                f"With '{name}', {nbytes} bytes would be pinned, but host memory for adapters ends at "
                f"cache.host_bytes = {budget}: unpin others or raise it."
            )
        self.policy.pin(version.id, is_pinned=is_pinned)
        self._has_news = True
        return None

    def known_as(self, client_id: int, name: str) -> None:
        """A client calls this adapter by that id from now on.

        Without an API server the id is its own: what it meant before is served no longer.
        """
        former = self.client_ids.name(client_id)
        self.client_ids.use(client_id, name)
        if former is None or former == name or self.has_api_server:
            return
        if not self.client_ids.is_known(former):
            self.withdraw(former)

    def remove(self, client_id: int) -> bool:
        """Free what a client calls by this id; False if nothing is. What an API server offers stays so."""
        name = self.client_ids.forget(client_id)
        version = None if name is None else self.versions.current(name)
        if name is None or version is None or self.client_ids.is_known(name):
            return name is not None
        self.withdraw(name)
        if self.has_api_server:
            self.announce(version.source)
        return True

    def pin_id(self, client_id: int) -> str | None:
        """Keep what a client calls by this id in memory; else answers why that cannot be."""
        name = self.client_ids.name(client_id)
        if name is None:
            return f"No LoRA adapter is known by the id {client_id}: add it first."
        reason = self.pin(name, is_pinned=True)
        if reason is None:
            self.client_ids.pin(client_id)
        return reason

    def _take(self, version: Version, former: Version | None) -> Version:
        """The policy learns of it; a size that nobody knows yet is taken for the least."""
        source = version.source
        if version.id not in self.policy.adapters:
            rank, nbytes = source.rank or 1, source.nbytes or 1
            self.policy.registered(Adapter(version.id, source.name, rank, nbytes))
        if former is not None:
            is_pinned = self.policy.adapter(former.id).is_pinned
            self.policy.pin(version.id, is_pinned=is_pinned)
            self.retire(former)
        return version

    def _end_trial(self, adapter_id: AdapterId, failure: Failure | None) -> None:
        """A version was read, or cannot be: if it was on trial, who waits for that is told."""
        trial = self._trials.pop(adapter_id, None)
        if trial is None:
            return
        version = self.versions[adapter_id]
        if failure is None:
            self.policy.finished(trial_of(adapter_id, self.serving).id, 0, self._now_s)
            self._take(version, self.versions.list_unlisted(version))
        else:
            self.retire(version)
        trial.set_result(failure)

    def _forget_gone(self) -> None:
        """Forget what the policy has forgotten."""
        for adapter_id in self.versions.forget(self.policy.adapters):
            self._waits.forget(adapter_id)

    # What vLLM's scheduler does with its queue

    def arrived(self, request: Any) -> None:
        """A request joined vLLM's waiting queue, for the first time or again."""
        request_id = RequestId(request.request_id)
        former = self._requests.get(request_id)
        if former is request:
            self.returned(request)
            return
        if former is not None:  # ended since the last step; its id is used again
            self._finish(request_id, former)
        self._requests[request_id] = request
        adapter = request.lora_request
        if adapter is not None:
            known = self.policy.adapter(AdapterId(adapter.lora_int_id))
            self.arrivals.note(request.request_id, known.place)
            self._waits.arrived(
                known.adapter.id, request_id, self._now_s, is_in_host=known.is_in_host
            )
        if self.loans is not None:
            self.loans.arrived(request.block_hashes, self._now_s)
        fact = arrival_of(request, self.serving, reads_prompt=self._reads_prompts)
        self.policy.arrived(fact, self._now_s)

    def returned(self, request: Any) -> None:
        """vLLM put a request back: preempted, squashed, or planned and skipped."""
        request_id = RequestId(request.request_id)
        if request_id in self.policy.running:
            self.policy.requeued(request_id, request.num_output_tokens)

    def withdrawn(self, request: Any) -> None:
        """A waiting request was aborted; it teaches the length estimate nothing."""
        self._has_news = True
        self._finish(RequestId(request.request_id), request)

    @property
    def num_waiting(self) -> int:
        """Requests that vLLM does not run yet; those that failed too, until vLLM was told."""
        return len(self._requests) - len(self.policy.running) + len(self.planned)

    def waiting_requests(self) -> Iterator[Any]:
        """Requests that vLLM does not run yet, by arrival."""
        running = self.policy.running
        planned = {request.request_id for request in self.planned}
        return (r for i, r in self._requests.items() if i not in running or i in planned)

    # One step

    def begin_step(self, room: StepBudget, now_s: float) -> StepPlan:
        """Tell the policy who ended, ask it for the plan, and line up whom vLLM is to admit."""
        self._now_s = now_s
        if self._has_news:
            self._has_news, self._quiet_since_s = False, now_s
        for request_id in list(self.policy.running):
            request = self._requests[request_id]
            if request.is_finished():
                self._finish(request_id, request)
        plan = self.policy.step(now_s, room)
        for failure in plan.fail:
            self._end_trial(failure.adapter_id, failure)
        self._forget_gone()
        if self.loans is not None:
            self.loans.trade(plan, now_s)
        self.planned.extend(self._requests[admission.request_id] for admission in plan.admit)
        return plan

    def end_step(self) -> None:
        """Take back those of the plan whom vLLM did not admit in this step."""
        while self.planned:
            self.returned(self.planned.pop())

    def forget(self, request_id: RequestId) -> Any | None:
        """The policy ended this request itself. Answers it, None if vLLM ended it before."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            self._waits_no_more(request_id, request)
        return request

    def view(self) -> PolicyView:
        """What the policy knows, as of the last step or arrival. O(adapters + requests)."""
        return self.policy.view(self._now_s)

    def tick(self, now_s: float) -> None:
        """Set the time, for arrivals between two steps."""
        self._now_s = now_s

    def commands(self, plan: StepPlan) -> tuple[Command, ...]:
        """The plan's part for the workers, in the order in which they are to do it."""
        evicted = [adapter_id for load in plan.loads for adapter_id in load.evicts]
        drops = [DropAdapter(adapter_id) for adapter_id in (*plan.drops, *evicted)]
        loads = [self.versions.load(load.adapter_id) for load in plan.loads]
        activations: list[ActivateAdapter] = []
        if self.policy.limits.is_paged:
            self._waits.begun(plan.activations)
        else:
            activations = [ActivateAdapter(a.adapter_id, a.slot) for a in plan.activations]
            self._waits.planned(plan.activations)
        trades = () if self.loans is None else self.loans.take_commands()
        return (*drops, *loads, *activations, *trades)

    def idle_s(self, now_s: float) -> float | None:
        """How long an engine without requests may rest, None until it is told something.

        While workers read or copy it looks for their answers, the less often the longer they take.
        """
        if self._has_news:
            return 0.0
        due_s = now_s if self.policy.device(now_s).promoting else self.policy.work_due_s()
        if due_s == math.inf:
            return None
        pause_s = (now_s - self._quiet_since_s) / 8
        return max(due_s - now_s, min(max(LEAST_IDLE_S, pause_s), MOST_IDLE_S))

    def acknowledge(self, acks: Iterable[Ack], now_s: float) -> None:
        """Tell the policy what the workers did."""
        for ack in acks:
            self._has_news = True
            match ack:
                case Loaded():
                    self._loaded(ack, now_s)
                case LoadFailed():
                    self._warn_once(ack.adapter_id, ack.reason)
                    self.telemetry.load_failed()
                    self.policy.load_failed(AdapterId(ack.adapter_id), ack.reason, now_s, ack.fault)
                case Activated():
                    self._waits.activated(ack)
                case Promoted():
                    self.telemetry.promoted(ack.seconds)
                    self.policy.promoted(ack.serial)
                case PromotionFailed():
                    self._warn_once(None, f"Not kept in the KV cache: {ack.reason}")
                    self.telemetry.promotion_failed()
                    self.policy.promotion_failed(ack.serial, is_final=ack.is_final)

    def empty_device(self) -> None:
        """Every adapter gives its KV blocks back: the KV cache is to be emptied."""
        if self.loans is not None:
            self.loans.empty()
            self._has_news = True  # workers are to be told

    def check_balance(self) -> None:
        """For an engine without requests: AssertionError if a KV block is lost."""
        if self.loans is not None:
            self.loans.check_balance()

    # What workers did

    def _loaded(self, ack: Loaded, now_s: float) -> None:
        adapter_id = AdapterId(ack.adapter_id)
        self.versions.was_read(adapter_id, ack.fingerprint)
        self.telemetry.loaded(ack.seconds)
        self._waits.loaded(adapter_id, now_s)
        self.policy.loaded(adapter_id, ack.nbytes, ack.rank, now_s, is_packed=ack.is_packed)
        self._end_trial(adapter_id, None)
        device = self.policy.device(now_s)
        if ack.is_packed and 0 < device.limit_bytes < ack.nbytes:
            self._warn_once(
                adapter_id,
                f"Adapter {self.versions[adapter_id].source.name!r} is served from host memory only: "
                f"its {ack.nbytes} bytes are more than the KV cache has for adapters, "
                f"{device.limit_blocks} blocks of {device.block_bytes} bytes. Raise "
                "--gpu-memory-utilization or device.max_bytes to keep it there.",
            )

    def _finish(self, request_id: RequestId, request: Any) -> None:
        has_ended_well = str(request.get_finished_reason()) in ("stop", "length")
        output_tokens = request.num_output_tokens if has_ended_well else 0
        self.policy.finished(request_id, output_tokens, self._now_s)
        self._requests.pop(request_id, None)
        self._waits_no_more(request_id, request)

    def _waits_no_more(self, request_id: RequestId, request: Any) -> None:
        if request.lora_request is not None:
            self._waits.ended(AdapterId(request.lora_request.lora_int_id), request_id)

"""Records what each engine step computes and how long it takes, in vLLM's engine and in Chameleon's.

With CHAMELEON_STEPS=<file> set, the engine process writes one JSON line a step, an adapter's copy, a first
token; other processes add what only they know (`event_log`). `chameleon calibrate` fits a profile to
them. A step lasts from the scheduler's `schedule` to the end of its `update_from_output`, and on to the
next `schedule` where requests are left: what the engine does between two steps is part of what a step
costs. Idle time is not. A line for each request tells how long it was in the engine process until its
first token.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm.event_log import STEPS_VARIABLE, EventLog, stopwatch_s
from chameleon_lora.engine_vllm.messages import ACKS_ATTRIBUTE, Activated, Loaded
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.policy.settings import EngineLimits

_ARRIVED = "chameleon_arrived_s"


@dataclass(slots=True)
class StepRow:
    """One step.

    Attributes:
        work: its ranks are the slots', which vLLM computes in full; the adapters' where there are none.
        begin_s: when it began, seconds since the epoch, to be matched with other processes' records.
        seconds: what it took, copies of adapters inside it included.
        empty: steps before it in which nobody could run.
    """

    work: StepWork
    begin_s: float = 0.0
    seconds: float = 0.0
    empty: int = 0


@dataclass(frozen=True, slots=True)
class CopyRow:
    """One adapter that a worker of Chameleon's copied.

    Attributes:
        source: "disk" to host memory; "host" and "device" to a slot.
        in_step: the step before this line in the log waited for it.
    """

    source: str
    nbytes: int
    seconds: float
    in_step: bool


@dataclass(slots=True)
class StepLog:
    """What one engine wrote.

    Attributes:
        copies_s: seconds of `copies` inside each step, in the steps' order.
        first_s: from a request's arrival in the engine process to its first token, in their order.
        paths: folders of the adapters that requests named, by vLLM's id.
        events: what processes told of adapters themselves (`EventLog.record`).
        in_host: batches use adapters from host memory, without slots.
    """

    steps: list[StepRow] = field(default_factory=list)
    copies: list[CopyRow] = field(default_factory=list)
    copies_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    paths: dict[int, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    in_host: bool = False
    kv_blocks: int = 0
    block_bytes: int = 0
    block_tokens: int = 0


def recording(stock: Callable[..., None]) -> Callable[..., None]:
    """Scheduler.__init__ whose scheduler's steps are written to the file that STEPS_VARIABLE names."""
    path = os.environ[STEPS_VARIABLE]

    def init_and_record(scheduler: Any, *args: Any, **kwargs: Any) -> None:
        stock(scheduler, *args, **kwargs)
        log = EventLog(path)
        log.write({"cache": cache_of(scheduler)})
        StepRecorder(scheduler, log.write)

    return init_and_record


def stamping(stock: Callable[..., Any]) -> Callable[..., Any]:
    """EngineCore.preprocess_add_request that notes when a request came to the engine process."""

    def preprocess_and_stamp(engine: Any, request: Any) -> Any:
        answer = stock(engine, request)  # in the thread that reads, also during a step
        setattr(answer[0], _ARRIVED, stopwatch_s())
        return answer

    return preprocess_and_stamp


class StepRecorder:
    """Sits in front of one scheduler's methods, whose attributes keep it alive."""

    def __init__(
        self,
        scheduler: Any,
        write: Callable[[dict[str, Any]], None],
        clock: Callable[[], float] = stopwatch_s,
    ) -> None:
        self._scheduler = scheduler
        self._write = write
        self._clock = clock
        lora = scheduler.vllm_config.lora_config
        self._slot_rank = lora.max_lora_rank if lora else 0
        self._has_begun = False
        self._schedule = scheduler.schedule
        self._update = scheduler.update_from_output
        self._start_s = self._end_s = 0.0
        self._row: StepRow | None = None
        self._first: list[float] = []  # when those who get their first token in this step arrived
        self._done: list[dict[str, Any]] = []  # of the last step, which may go on until the next
        self._empty = 0
        self._paths: dict[int, str] = {}
        self._nbytes: dict[int, int] = {}
        scheduler.schedule = self._timed_schedule
        scheduler.update_from_output = self._timed_update

    def _timed_schedule(self, *args: Any, **kwargs: Any) -> Any:
        self._flush(self._clock())
        if not self._has_begun and in_host(self._scheduler):
            self._write({"in_host": True})
        self._has_begun = True
        begin_s = time.time()  # noqa: TID251  # to be matched with the workers' records
        start_s = self._clock()
        output = self._schedule(*args, **kwargs)
        end_s = self._clock()
        work = work_of(self._scheduler, output, self._slot_rank)
        self._row = None if work is None else StepRow(work, begin_s)
        self._first = list(self._arrivals_of_first_tokens(output))
        self._name_adapters(output)
        self._start_s = start_s + self._clock() - end_s  # our own work is not the engine's
        return output

    def _timed_update(self, scheduler_output: Any, model_output: Any) -> Any:
        outputs = self._update(scheduler_output, model_output)
        self._end_s = self._clock()
        acks = getattr(model_output, ACKS_ATTRIBUTE, ())
        row, self._row = self._row, None
        if row is None:
            self._empty += 1
            self._done = [{"copy": copy} for copy in self._copies(acks, in_step=False)]
            return outputs
        row.empty, self._empty = self._empty, 0
        row.seconds = self._end_s - self._start_s
        copies = [{"copy": copy} for copy in self._copies(acks, in_step=True)]
        firsts = [{"first": self._end_s - arrived_s} for arrived_s in self._first]
        self._done = [{"step": asdict(row)}, *copies, *firsts]
        if not self._scheduler.has_requests():
            self._flush(self._end_s)
        return outputs

    def _flush(self, next_start_s: float) -> None:
        """Write what the last step did, which lasted until now."""
        for line in self._done:
            if "step" in line:
                line["step"]["seconds"] += max(0.0, next_start_s - self._end_s)
            self._write(line)
        self._done = []

    def _copies(self, acks: Any, *, in_step: bool) -> Iterator[dict[str, Any]]:
        for ack in acks:
            match ack:
                case Loaded():
                    self._nbytes[ack.adapter_id] = ack.nbytes
                    yield asdict(CopyRow("disk", ack.nbytes, ack.seconds, in_step=False))
                case Activated():
                    source = "device" if ack.from_device else "host"
                    nbytes = self._nbytes.get(ack.adapter_id, 0)
                    yield asdict(CopyRow(source, nbytes, ack.seconds, in_step=in_step))
                case _:
                    pass

    def _arrivals_of_first_tokens(self, output: Any) -> Iterator[float]:
        for request_id in output.num_scheduled_tokens:
            request = self._scheduler.requests[request_id]
            arrived_s = getattr(request, _ARRIVED, None)
            if arrived_s is not None and request.num_computed_tokens >= request.num_prompt_tokens:
                delattr(request, _ARRIVED)
                yield arrived_s

    def _name_adapters(self, output: Any) -> None:
        for new in output.scheduled_new_reqs:
            lora = new.lora_request
            if lora is not None and lora.lora_int_id not in self._paths:
                self._paths[lora.lora_int_id] = lora.lora_path
                self._write({"adapter": [lora.lora_int_id, lora.lora_path]})


def work_of(scheduler: Any, output: Any, slot_rank: int) -> StepWork | None:
    """What vLLM is about to compute; None for a step without a token."""
    if not output.total_num_scheduled_tokens:
        return None
    work, ranks = StepWork(), dict[int, int]()
    for request_id, tokens in output.num_scheduled_tokens.items():
        request = scheduler.requests[request_id]
        before = request.num_computed_tokens - tokens  # schedule() has counted them in already
        rank = 0
        if request.lora_request:
            adapter_id = request.lora_request.lora_int_id
            rank = ranks[adapter_id] = rank_of(scheduler, adapter_id, slot_rank)
        if before < request.num_prompt_tokens or tokens > 1:
            work.prefill_tokens += tokens
            work.attention_pairs += tokens * before + tokens * (tokens + 1) / 2
            work.lora_prefill_ranks += rank * tokens
        else:
            work.decode_requests += 1
            work.context_tokens += before
            work.lora_decode_ranks += rank
    work.adapters, work.adapter_ranks = len(ranks), sum(ranks.values())
    return work


def rank_of(scheduler: Any, adapter_id: int, slot_rank: int) -> int:
    """The rank at which the engine computes an adapter."""
    limits = _limits(scheduler)
    if limits is None or not limits.is_paged:
        return slot_rank
    return int(scheduler.chameleon.policy.adapter(adapter_id).adapter.rank)


def in_host(scheduler: Any) -> bool:
    """Whether batches use adapters from host memory. False before the scheduler is complete."""
    limits = _limits(scheduler)
    return limits is not None and limits.is_paged and not limits.block_bytes


def _limits(scheduler: Any) -> EngineLimits | None:
    """What Chameleon's policy was told of the engine; None for stock vLLM."""
    driver = getattr(scheduler, "chameleon", None)
    return None if driver is None else driver.policy.limits


def cache_of(scheduler: Any) -> dict[str, int]:
    """Number, bytes and tokens of the KV cache's blocks, of its first group."""
    cache = scheduler.kv_cache_config
    group = cache.kv_cache_groups[0]
    return {
        "kv_blocks": cache.num_blocks,
        "block_bytes": group.kv_cache_spec.page_size_bytes * len(group.layer_names),
        "block_tokens": scheduler.block_size,
    }


def read_step_log(path: Path) -> StepLog:
    """What an engine wrote there; a last line without its end is left out.

    Raises:
        BenchError: a line is of another kind.
    """
    log = StepLog()
    text = path.read_text(encoding="utf-8")
    for line in text[: text.rfind("\n") + 1].splitlines():
        match json.loads(line):
            case {"step": step}:
                log.steps.append(StepRow(**{**step, "work": StepWork(**step["work"])}))
                log.copies_s.append(0.0)
            case {"copy": fields}:
                copy = CopyRow(**fields)
                log.copies.append(copy)
                if copy.in_step:
                    log.copies_s[-1] += copy.seconds
            case {"first": seconds}:
                log.first_s.append(seconds)
            case {"adapter": [number, folder]}:
                log.paths[number] = folder
            case {"in_host": bool(is_so)}:
                log.in_host = is_so
            case {"event": event}:
                log.events.append(event)
            case {"cache": cache}:
                log.kv_blocks, log.block_bytes = cache["kv_blocks"], cache["block_bytes"]
                log.block_tokens = cache["block_tokens"]
            case other:
                raise BenchError(f"{path} holds {other!r}, which no engine of this version writes")
    return log


def add_stock_copies(log: StepLog, nbytes_of: Callable[[str], int]) -> None:
    """Counts loads and activations that stock vLLM's workers recorded among the copies.

    `nbytes_of` gives the bytes of the adapter in a folder. Adapters that no request named are left
    out: their ids mean nothing to us.
    """
    steps = iter(enumerate(log.steps))
    number, step = next(steps, (0, None))
    for event in log.events:
        folder = log.paths.get(event["adapter_id"])
        if folder is None:
            continue
        source = "disk" if event["event"] == "disk_load" else "host"
        in_step = bool(event["in_step"])
        log.copies.append(CopyRow(source, nbytes_of(folder), event["seconds"], in_step))
        while step is not None and step.begin_s + step.seconds < event["t"]:
            number, step = next(steps, (number, None))
        if in_step and step is not None and step.begin_s <= event["t"]:
            log.copies_s[number] += event["seconds"]

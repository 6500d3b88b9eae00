"""The recorder of steps in front of a scheduler, and the reading of its log."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.measure.step_log import (
    CopyRow,
    StepRecorder,
    StepRow,
    add_stock_copies,
    read_step_log,
    work_of,
)
from chameleon_lora.engine_vllm.messages import ACKS_ATTRIBUTE, Activated, Loaded
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.policy.request import Adapter, AdapterId
from tests.engine_vllm.fake_requests import LIMITS, make_driver

SLOT_RANK = 16


@dataclass
class ScheduledLora:
    """As much of vLLM's LoRARequest as is read."""

    lora_int_id: int
    lora_path: str


@dataclass
class ScheduledRequest:
    """As much of vLLM's Request as is read."""

    num_prompt_tokens: int
    num_computed_tokens: int
    lora_request: ScheduledLora | None = None
    chameleon_arrived_s: float | None = None


@dataclass
class ScheduledOutput:
    """As much of vLLM's SchedulerOutput as is read."""

    num_scheduled_tokens: dict[str, int]
    scheduled_new_reqs: list[Any] = field(default_factory=list)

    @property
    def total_num_scheduled_tokens(self) -> int:
        """Of all requests."""
        return sum(self.num_scheduled_tokens.values())


class FakeStepScheduler:
    """Schedules what it is told to; `requests` are as vLLM leaves them after `schedule`."""

    def __init__(self, requests: dict[str, ScheduledRequest]) -> None:
        self.requests = requests
        self.vllm_config = SimpleNamespace(lora_config=SimpleNamespace(max_lora_rank=SLOT_RANK))
        self.has_more = True
        self.chameleon: Driver | None = None

    def schedule(self, output: ScheduledOutput) -> ScheduledOutput:
        """The output it was given."""
        return output

    def update_from_output(self, scheduler_output: ScheduledOutput, model_output: object) -> str:
        """A word to tell that the answer comes through."""
        return (
            f"{len(scheduler_output.num_scheduled_tokens)} outputs of {type(model_output).__name__}"
        )

    def has_requests(self) -> bool:
        """What the test says."""
        return self.has_more


class Ticks:
    """A clock that tells these times, one a reading."""

    def __init__(self, *times_s: float) -> None:
        self._times_s: Iterator[float] = iter(times_s)

    def __call__(self) -> float:
        """The next of them."""
        return next(self._times_s)


PROMPT = ScheduledRequest(num_prompt_tokens=10, num_computed_tokens=10)
CHUNK = ScheduledRequest(
    num_prompt_tokens=30, num_computed_tokens=12, lora_request=ScheduledLora(1, "/a")
)
DECODE = ScheduledRequest(num_prompt_tokens=10, num_computed_tokens=16)
LORA_DECODE = ScheduledRequest(
    num_prompt_tokens=5, num_computed_tokens=8, lora_request=ScheduledLora(2, "/b")
)


def test_work_tells_prompts_from_decodes() -> None:
    """A whole prompt of 10, tokens 8 to 11 of another, and two decodes after 15 and 7 tokens."""
    scheduler = FakeStepScheduler({"p": PROMPT, "c": CHUNK, "d": DECODE, "e": LORA_DECODE})
    work = work_of(scheduler, ScheduledOutput({"p": 10, "c": 4, "d": 1, "e": 1}), SLOT_RANK)
    assert work is not None
    assert (14, 2, 22) == (work.prefill_tokens, work.decode_requests, work.context_tokens)
    assert 55.0 + (9 + 10 + 11 + 12) == work.attention_pairs
    assert (4 * SLOT_RANK, SLOT_RANK, 2) == (
        work.lora_prefill_ranks,
        work.lora_decode_ranks,
        work.adapters,
    )


def test_without_slots_adapters_count_at_their_own_ranks(tmp_path: Path) -> None:
    """Of 8 and 4, each distinct adapter's once; the log says which kind of engine wrote it."""
    lines: list[dict[str, Any]] = []
    again = ScheduledRequest(9, 12, lora_request=ScheduledLora(2, "/b"))
    scheduler = FakeStepScheduler({"c": CHUNK, "e": LORA_DECODE, "f": again})
    driver = make_driver(limits=replace(LIMITS, slots=0, is_paged=True))
    for number, rank in ((1, 8), (2, 4)):
        driver.policy.registered(Adapter(AdapterId(number), f"a{number}", rank, 100))
    StepRecorder(scheduler, lines.append)
    scheduler.chameleon = driver  # a scheduler has its driver after the recorder
    for _ in range(2):
        run_step(scheduler, ScheduledOutput({"c": 4, "e": 1, "f": 1}))
    scheduler.schedule(ScheduledOutput({}))
    log = read_step_log(written(tmp_path, lines))
    work = log.steps[1].work
    assert (log.in_host, 2) == (True, len(log.steps))
    assert (4 * 8, 4 + 4, 2, 8 + 4) == (
        work.lora_prefill_ranks,
        work.lora_decode_ranks,
        work.adapters,
        work.adapter_ranks,
    )


def test_the_last_token_of_a_prompt_is_prompt() -> None:
    """A chunk of one token is no decode while the prompt is not complete."""
    scheduler = FakeStepScheduler({"p": PROMPT})
    work = work_of(scheduler, ScheduledOutput({"p": 1}), SLOT_RANK)
    assert work is not None
    assert (1, 0) == (work.prefill_tokens, work.decode_requests)


def test_a_step_without_tokens_is_none() -> None:
    """All wait for their adapters."""
    assert None is work_of(FakeStepScheduler({}), ScheduledOutput({}), SLOT_RANK)


def run_step(scheduler: Any, output: ScheduledOutput, acks: tuple[object, ...] = ()) -> str:
    """As the engine core does."""
    scheduler.schedule(output)
    return str(scheduler.update_from_output(output, SimpleNamespace(**{ACKS_ATTRIBUTE: acks})))


def test_a_step_lasts_until_the_next_begins() -> None:
    """Scheduling 1 s, our own work 2 s left out, the model until 9 s, and a second until the next.

    The second step ends the work: what comes after it is idle time.
    """
    lines: list[dict[str, Any]] = []
    scheduler = FakeStepScheduler({"d": DECODE})
    #             flush start end own update | flush start end own update
    clock = Ticks(0.0, 0.0, 1.0, 3.0, 9.0, 10.0, 10.0, 10.5, 10.5, 12.0)
    StepRecorder(scheduler, lines.append, clock)
    assert "1 outputs of SimpleNamespace" == run_step(scheduler, ScheduledOutput({"d": 1}))
    scheduler.has_more = False
    run_step(scheduler, ScheduledOutput({"d": 1}))
    assert [8.0, 2.0] == [line["step"]["seconds"] for line in lines]


def test_the_first_token_of_a_request_is_timed_once(tmp_path: Path) -> None:
    """From its arrival at 2 s to the end of the step that completes its prompt, at 9 s."""
    lines: list[dict[str, Any]] = []
    whole = ScheduledRequest(num_prompt_tokens=10, num_computed_tokens=10, chameleon_arrived_s=2.0)
    part = ScheduledRequest(num_prompt_tokens=30, num_computed_tokens=12, chameleon_arrived_s=1.0)
    scheduler = FakeStepScheduler({"w": whole, "p": part})
    clock = Ticks(
        5.0, 5.0, 6.0, 6.0, 9.0, 10.0, 10.0, 10.5, 10.5, 12.0, 12.0, 12.0, 12.0, 12.0, 12.0
    )
    StepRecorder(scheduler, lines.append, clock)
    for tokens in ({"w": 10, "p": 4}, {"w": 1}, {}):
        run_step(scheduler, ScheduledOutput(tokens))
    assert [7.0] == read_step_log(written(tmp_path, lines)).first_s


def test_empty_steps_are_counted_not_written(tmp_path: Path) -> None:
    """Two steps without tokens stand in the line of the next one that has some."""
    lines: list[dict[str, Any]] = []
    scheduler = FakeStepScheduler({"d": DECODE})
    StepRecorder(scheduler, lines.append)
    for tokens in ({}, {}, {"d": 1}, {}):
        run_step(scheduler, ScheduledOutput(tokens))
    log = read_step_log(written(tmp_path, lines))
    assert [2] == [step.empty for step in log.steps]


def test_copies_of_our_workers_come_from_their_acks(tmp_path: Path) -> None:
    """A load beside the step costs it nothing; what it waited for is told apart."""
    lines: list[dict[str, Any]] = []
    scheduler = FakeStepScheduler({"e": LORA_DECODE})
    StepRecorder(scheduler, lines.append)
    run_step(scheduler, ScheduledOutput({"e": 1}), (Loaded(7, 1000, 8, 0.5), Activated(7, 0, 0.25)))
    run_step(scheduler, ScheduledOutput({"e": 1}), (Activated(7, 4, 0.125, from_device=True),))
    run_step(scheduler, ScheduledOutput({}))
    log = read_step_log(written(tmp_path, lines))
    assert [0.25, 0.125] == log.copies_s
    assert [
        CopyRow("disk", 1000, 0.5, in_step=False),
        CopyRow("host", 1000, 0.25, in_step=True),
        CopyRow("device", 1000, 0.125, in_step=True),
    ] == log.copies


def test_adapters_are_named_once(tmp_path: Path) -> None:
    """The log says which folder an id stands for when a request first names it."""
    lines: list[dict[str, Any]] = []
    scheduler = FakeStepScheduler({"e": LORA_DECODE})
    StepRecorder(scheduler, lines.append)
    for _ in range(2):
        run_step(scheduler, ScheduledOutput({"e": 1}, scheduled_new_reqs=[LORA_DECODE]))
    assert {2: "/b"} == read_step_log(written(tmp_path, lines)).paths
    assert 1 == sum("adapter" in line for line in lines)


def test_copies_of_vllms_workers_come_from_themselves(tmp_path: Path) -> None:
    """Those inside a step are matched with it by time; adapters that nobody named are left out."""
    lines = [
        {"adapter": [1, "/a"]},
        event("disk_load", 1, 0.5, t=5.0, in_step=False),
        event("activate", 9, 0.5, t=5.0, in_step=True),
        *({"step": asdict(StepRow(StepWork(), begin_s, seconds=1.0))} for begin_s in (10.0, 11.0)),
        event("activate", 1, 0.25, t=11.5, in_step=True),
    ]
    log = read_step_log(written(tmp_path, lines))
    add_stock_copies(log, {"/a": 64}.__getitem__)
    assert [0.0, 0.25] == log.copies_s
    assert [CopyRow("disk", 64, 0.5, in_step=False), CopyRow("host", 64, 0.25, in_step=True)] == (
        log.copies
    )


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    """A server that is stopped may have written half a line."""
    path = written(tmp_path, [{"cache": {"kv_blocks": 3, "block_bytes": 8, "block_tokens": 16}}])
    path.write_text(path.read_text(encoding="utf-8") + '{"step": {"prefi', encoding="utf-8")
    log = read_step_log(path)
    assert (3, 8, 16, []) == (log.kv_blocks, log.block_bytes, log.block_tokens, log.steps)


def test_a_line_of_another_kind_is_refused(tmp_path: Path) -> None:
    """The message shows the file and the line."""
    with pytest.raises(BenchError, match=r"log\.jsonl holds .*'hello'"):
        read_step_log(written(tmp_path, [{"hello": 1}]))


def written(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """A log of these lines."""
    path = folder / "log.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return path


def event(name: str, adapter_id: int, seconds: float, *, t: float, in_step: bool) -> dict[str, Any]:
    """A line of `EventLog.record`."""
    fields = {"event": name, "seconds": seconds, "in_step": in_step, "adapter_id": adapter_id}
    return {"event": {**fields, "t": t}}

"""A worker's step: commands before it, acks on its output, and stock engines notice nothing."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.messages import (
    ACKS_ATTRIBUTE,
    COMMANDS_ATTRIBUTE,
    Ack,
    ActivateAdapter,
    Activated,
    DemoteAdapter,
    DropAdapter,
    LoadAdapter,
    Loaded,
    LoadFailed,
    PromoteAdapter,
    Promoted,
    PromotionFailed,
)
from chameleon_lora.errors import UnsupportedEngineError
from chameleon_lora.policy.plan import Fault

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.config import is_chameleon_scheduler  # noqa: E402
from chameleon_lora.engine_vllm.worker.step_messages import (  # noqa: E402
    answering,
    choosing_manager,
    distrusting_slots,
    obeying,
    with_acks,
)

ACKS: tuple[Ack, ...] = (LoadFailed(1, "no such folder", Fault.SERVER),)


class Output:
    """Stands for a ModelRunnerOutput."""


class AsyncOutputV1:
    """Stands for model runner V1's asynchronous output."""

    def __init__(self, inner: Output) -> None:
        self._model_runner_output = inner

    def get_output(self) -> Output:
        """What the scheduler will receive."""
        return self._model_runner_output


class AsyncOutputV2:
    """Stands for model runner V2's asynchronous output."""

    def __init__(self, inner: Output) -> None:
        self.model_runner_output = inner

    def get_output(self) -> Output:
        """What the scheduler will receive."""
        return self.model_runner_output


def test_acks_ride_on_a_copy() -> None:
    """vLLM shares one object among all empty steps; it must not keep a step's acks."""
    shared = Output()
    answer = with_acks(shared, ACKS)
    assert ACKS == getattr(answer, ACKS_ATTRIBUTE)
    assert not hasattr(shared, ACKS_ATTRIBUTE)


@pytest.mark.parametrize("wrapper", [AsyncOutputV1, AsyncOutputV2])
def test_acks_ride_inside_asynchronous_outputs(wrapper: Any) -> None:
    """The inner output, which the scheduler receives later, carries them."""
    shared = Output()
    answer = with_acks(wrapper(shared), ACKS)
    assert ACKS == getattr(answer.get_output(), ACKS_ATTRIBUTE)
    assert not hasattr(shared, ACKS_ATTRIBUTE)


def test_an_output_that_goes_nowhere_stays_none() -> None:
    """A stage of a pipeline that answers nobody has nobody to tell."""
    assert with_acks(None, ACKS) is None


def test_no_news_changes_nothing() -> None:
    """The very same output is passed on."""
    output = Output()
    assert output is with_acks(output, ())


class Diary:
    """A manager that notes what it is told, and has one ack."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.adapters = self

    def attach(self, runner: Any) -> None:
        """To be told before commands."""
        self.calls.append(("attach", runner))

    def execute(self, commands: Any) -> None:
        """The commands of a step."""
        self.calls.append(("execute", tuple(commands)))

    def poll_acks(self) -> tuple[Ack, ...]:
        """At the end of a step."""
        self.calls.append("poll")
        return ACKS

    def forget_slots(self) -> None:
        """After others wrote into them."""
        self.calls.append("forget_slots")

    def forget_device(self) -> None:
        """After the KV cache's memory may have gone."""
        self.calls.append("forget_device")


def worker_of(manager: Any, runner_type: str = "generate") -> Any:
    """A worker as far as its manager."""
    return SimpleNamespace(
        model_runner=SimpleNamespace(lora_manager=manager),
        vllm_config=SimpleNamespace(model_config=SimpleNamespace(runner_type=runner_type)),
    )


@pytest.mark.parametrize(
    ("runner_type", "tokens", "is_end"),
    [("generate", 3, False), ("generate", 0, True), ("pooling", 3, True)],
)
def test_commands_come_before_the_step_and_acks_at_its_end(
    runner_type: str, tokens: int, is_end: bool
) -> None:
    """That is told by the step alone, so that all ranks ask at the same moments."""
    manager = Diary()
    worker = worker_of(manager, runner_type)
    step = SimpleNamespace(
        **{COMMANDS_ATTRIBUTE: (DemoteAdapter(1),)}, total_num_scheduled_tokens=tokens
    )

    def execute_model(*_: Any) -> Output | None:
        manager.calls.append("step")
        return Output() if is_end else None

    def sample_tokens(*_: Any) -> Output:
        manager.calls.append("sample")
        return Output()

    answer = obeying(execute_model)(worker, step)
    begun = [("attach", worker.model_runner), ("execute", (DemoteAdapter(1),)), "step"]
    assert (begun + ["poll"] * is_end) == manager.calls
    if not is_end:
        answer = answering(sample_tokens)(worker, None)
        assert [*begun, "sample", "poll"] == manager.calls
    assert ACKS == getattr(answer, ACKS_ATTRIBUTE)


def test_a_step_that_fails_leaves_no_other_rank_waiting() -> None:
    """The rank that raised has told its news, as the others do at the end of the step."""
    manager = Diary()
    step = SimpleNamespace(total_num_scheduled_tokens=0)

    def execute_model(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        obeying(execute_model)(worker_of(manager), step)
    assert "poll" == manager.calls[-1]


def test_waking_up_makes_slots_and_blocks_unknown() -> None:
    """vLLM comes first, with its arguments; a stock manager is left alone."""
    manager, stock = Diary(), object()
    woken: list[Any] = []
    wake_up = distrusting_slots(lambda _worker, tags=None: woken.append((tags, *manager.calls)))
    wake_up(worker_of(manager), tags=["weights"])
    wake_up(worker_of(stock))
    assert [(["weights"],), (None, "forget_slots", "forget_device")] == woken
    assert ["forget_slots", "forget_device"] == manager.calls


@pytest.mark.parametrize(
    ("scheduler_cls", "expected"),
    [
        (None, False),
        ("vllm.v1.core.sched.scheduler.Scheduler", False),
        ("chameleon_lora_other.scheduler", False),
        ("chameleon_lora.engine_vllm.scheduler", True),
        (with_acks, True),
        (Output, False),
    ],
)
def test_only_this_packages_scheduler_switches_chameleon_on(
    scheduler_cls: Any, expected: bool
) -> None:
    """Decided by the qualified name of --scheduler-cls, given as text or as an object."""
    assert expected is is_chameleon_scheduler(scheduler_cls)


def test_messages_survive_pickling() -> None:
    """Commands and acks cross process borders unchanged."""
    messages = (
        LoadAdapter(1, "a", "/a"),
        DropAdapter(1),
        ActivateAdapter(1, 0),
        Loaded(1, 10, 8, 0.5),
        LoadFailed(1, "reason", Fault.SERVER),
        Activated(1, 0, 0.5),
        PromoteAdapter(1, 7, (3, 4)),
        DemoteAdapter(1),
        Promoted(1, 7, 0.5),
        PromotionFailed(1, 7, "reason", is_final=True),
    )
    assert messages == pickle.loads(pickle.dumps(messages))


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.usefixtures("hooked")
def test_a_worker_that_would_not_obey_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its adapters would never be loaded, and requests for them wait for ever."""
    from vllm.v1.worker.gpu_worker import Worker

    def execute_model(_worker: Any, scheduler_output: Any) -> Any:
        return scheduler_output

    monkeypatch.setattr(Worker, "execute_model", execute_model)
    config = SimpleNamespace(
        additional_config={}, scheduler_config=SimpleNamespace(scheduler_cls=SCHEDULER)
    )
    with pytest.raises(UnsupportedEngineError, match=r"not in place at .*Worker\.execute_model:"):
        choosing_manager(object)(config)

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

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.config import is_chameleon_scheduler  # noqa: E402
from chameleon_lora.engine_vllm.worker.step_messages import (  # noqa: E402
    choosing_manager,
    distrusting_slots,
    obeying,
    with_acks,
)

ACKS: tuple[Ack, ...] = (LoadFailed(1, "no such folder"),)


class News:
    """A manager that has these acks once."""

    def __init__(self, acks: tuple[Ack, ...]) -> None:
        self.acks = acks

    def poll_acks(self) -> tuple[Ack, ...]:
        """What is new."""
        acks, self.acks = self.acks, ()
        return acks


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
    answer = with_acks(shared, News(ACKS))
    assert ACKS == getattr(answer, ACKS_ATTRIBUTE)
    assert not hasattr(shared, ACKS_ATTRIBUTE)


@pytest.mark.parametrize("wrapper", [AsyncOutputV1, AsyncOutputV2])
def test_acks_ride_inside_asynchronous_outputs(wrapper: Any) -> None:
    """The inner output, which the scheduler receives later, carries them."""
    shared = Output()
    answer = with_acks(wrapper(shared), News(ACKS))
    assert ACKS == getattr(answer.get_output(), ACKS_ATTRIBUTE)
    assert not hasattr(shared, ACKS_ATTRIBUTE)


def test_no_output_keeps_the_news() -> None:
    """execute_model answers None when sample_tokens follows: the acks wait for that."""
    news = News(ACKS)
    assert with_acks(None, news) is None
    assert ACKS == news.acks


def test_no_news_changes_nothing() -> None:
    """The very same output is passed on."""
    output = Output()
    assert output is with_acks(output, News(()))


class Diary(News):
    """A manager that notes what it is told."""

    def __init__(self) -> None:
        super().__init__(())
        self.calls: list[Any] = []
        self.adapters = self

    def attach(self, runner: Any) -> None:
        """To be told before commands."""
        self.calls.append(("attach", runner))

    def execute(self, commands: Any) -> None:
        """The commands of a step."""
        self.calls.append(("execute", tuple(commands)))

    def forget_slots(self) -> None:
        """After others wrote into them."""
        self.calls.append("forget_slots")


def worker_of(manager: Any) -> Any:
    """A worker as far as its manager."""
    return SimpleNamespace(model_runner=SimpleNamespace(lora_manager=manager))


def test_commands_come_before_the_step_and_after_its_runner() -> None:
    """The manager knows whose KV cache to promote into; it is made before that cache."""
    manager = Diary()
    worker = worker_of(manager)
    step = SimpleNamespace(**{COMMANDS_ATTRIBUTE: (DemoteAdapter(1),)})
    obeying(lambda *_: manager.calls.append("step"))(worker, step)
    expected = [("attach", worker.model_runner), ("execute", (DemoteAdapter(1),)), "step"]
    assert expected == manager.calls


def test_waking_up_makes_slots_unknown() -> None:
    """vLLM comes first, with its arguments; a stock manager is left alone."""
    manager, stock = Diary(), object()
    woken: list[Any] = []
    wake_up = distrusting_slots(lambda _worker, tags=None: woken.append((tags, *manager.calls)))
    wake_up(worker_of(manager), tags=["weights"])
    wake_up(worker_of(stock))
    assert [(["weights"],), (None, "forget_slots")] == woken
    assert ["forget_slots"] == manager.calls


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
        LoadFailed(1, "reason"),
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

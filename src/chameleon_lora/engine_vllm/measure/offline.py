"""Runs vLLM's LLM class on a list of requests and counts what its scheduler did.

A process holds one vLLM, so `run_offline` starts one: tests and benchmarks call it for vLLM's own
scheduler and for Chameleon's, and compare.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from chameleon_lora.engine_vllm.config import CONFIG_KEY
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.worker.packed_adapter import stacked_tensors
from chameleon_lora.errors import AdapterRequestsError, BenchError

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # threads that meet wait for the slowest of a busy machine
}


class OfflineQuestion(TypedDict):
    """One greedy completion of exactly `tokens` tokens; `adapter` is a folder, None the base model."""

    prompt: list[int]
    adapter: str | None
    tokens: int


class Wave(TypedDict):
    """Requests put at once and run to their ends, and what the engine does before."""

    questions: list[OfflineQuestion]
    before: Literal["nothing", "reset", "sleep"]


class OfflineJob(TypedDict):
    """What to ask of which engine.

    Attributes:
        scheduler: as for --scheduler-cls; None is vLLM's own.
        settings: Chameleon's.
        engine: arguments of vLLM's LLM.
    """

    model: str
    scheduler: str | None
    settings: dict[str, Any]
    engine: dict[str, Any]
    waves: list[Wave]


class OfflineAnswer(TypedDict):
    """A request's tokens, why it ended, and the seconds from its arrival to its first step.

    One whose adapter cannot be loaded has no tokens, and the reason as `stop_reason`.
    """

    tokens: list[int]
    finish_reason: str
    stop_reason: str | int | None
    wait_s: float


class WaveResult(TypedDict):
    """Answers in the questions' order, and what the scheduler did for them.

    Attributes:
        steps: in which a token was computed.
    """

    answers: list[OfflineAnswer]
    steps: int
    preemptions: int
    seconds: float
    cached_tokens: int
    held_blocks: int
    held_adapters: int


class OfflineResult(TypedDict):
    """All waves, and Chameleon's counters (`Telemetry.counts`) and demotions at the end.

    Attributes:
        slot_bytes: of one of vLLM's LoRA slots, on the first rank; 0 if that is another process.
    """

    waves: list[WaveResult]
    counts: dict[str, Any]
    promotions: int
    demotions: dict[str, int]
    block_bytes: int
    kv_blocks: int
    slot_bytes: int


class OfflineEngine:
    """vLLM's LLM in this process, its scheduler watched. Not for use beside another one.

    Attributes:
        driver: Chameleon's, None for vLLM's own scheduler.
    """

    def __init__(self, job: OfflineJob) -> None:
        from vllm import LLM

        self._llm = LLM(
            job["model"],
            scheduler_cls=job["scheduler"],
            additional_config={CONFIG_KEY: job["settings"]},
            skip_tokenizer_init=True,
            enable_lora=True,
            disable_log_stats=False,
            **{"dtype": "float32", "enforce_eager": True, **job["engine"]},
        )
        core: Any = self._llm.llm_engine.engine_core
        self._executor = core.engine_core.model_executor
        self._scheduler = core.engine_core.scheduler
        self.driver: Driver | None = getattr(self._scheduler, "chameleon", None)
        self._ids: dict[str, int] = {}
        self._steps = self._preemptions = 0
        self._watch("schedule", "_steps", lambda output: output.total_num_scheduled_tokens > 0)
        self._watch("_preempt_request", "_preemptions", lambda _: True)

    def run(self, wave: Wave) -> WaveResult:
        """Puts the wave's questions and waits for all answers."""
        from vllm import SamplingParams

        match wave["before"]:
            case "reset":
                assert self._llm.reset_prefix_cache(), "requests still hold KV blocks"
            case "sleep":
                self._llm.sleep(level=1)
                self._llm.wake_up()
            case "nothing":
                pass
        self._steps = self._preemptions = 0
        start = stopwatch_s()
        try:
            done = self._llm.generate(
                [{"prompt_token_ids": question["prompt"]} for question in wave["questions"]],
                [
                    SamplingParams(
                        max_tokens=question["tokens"],
                        temperature=0,
                        ignore_eos=True,
                        detokenize=False,
                    )
                    for question in wave["questions"]
                ],
                lora_request=self._lora_requests(wave["questions"]),
                use_tqdm=False,
            )
        except AdapterRequestsError as error:
            done = error.outputs
        seconds = stopwatch_s() - start
        view = self.driver.view() if self.driver else None
        return WaveResult(
            answers=[_answer(request) for request in done],
            steps=self._steps,
            preemptions=self._preemptions,
            seconds=seconds,
            cached_tokens=sum(request.num_cached_tokens or 0 for request in done),
            held_blocks=view.device.held_blocks if view else 0,
            held_adapters=sum(known.is_on_device for known in view.adapters) if view else 0,
        )

    def result(self, waves: list[WaveResult]) -> OfflineResult:
        """What came of all waves, with the counters as they are now."""
        device = self.driver.view().device if self.driver else None
        return OfflineResult(
            waves=waves,
            counts=self.driver.telemetry.counts() if self.driver else {},
            promotions=device.promotions if device else 0,
            demotions={r.value: n for r, n in device.demotions.items()} if device else {},
            block_bytes=device.block_bytes if device else 0,
            kv_blocks=self._scheduler.kv_cache_config.num_blocks,
            slot_bytes=self._slot_bytes(),
        )

    def _slot_bytes(self) -> int:
        worker = getattr(self._executor, "driver_worker", None)
        if worker is None:
            return 0
        manager = worker.worker.model_runner.lora_manager._adapter_manager
        return sum(
            tensor.nbytes // tensor.shape[0]
            for module in manager.modules.values()
            for factor in ("a", "b")
            for tensor in stacked_tensors(module, factor)
        )

    def _watch(self, method: str, counter: str, does_count: Callable[[Any], bool]) -> None:
        """Count calls of one of the scheduler's methods, by what they answer."""
        watched = getattr(self._scheduler, method)

        def counted(*args: Any, **kwargs: Any) -> Any:
            answer = watched(*args, **kwargs)
            setattr(self, counter, getattr(self, counter) + does_count(answer))
            return answer

        setattr(self._scheduler, method, counted)

    def _lora_requests(self, questions: Sequence[OfflineQuestion]) -> list[Any]:
        """One for each question, the same for the same folder."""
        from vllm.lora.request import LoRARequest

        return [
            None
            if (folder := question["adapter"]) is None
            else LoRARequest(
                Path(folder).name, self._ids.setdefault(folder, len(self._ids) + 1), folder
            )
            for question in questions
        ]


def _answer(request: Any) -> OfflineAnswer:
    completion, times = request.outputs[0], request.metrics
    return OfflineAnswer(
        tokens=list(completion.token_ids),
        finish_reason=completion.finish_reason,
        stop_reason=completion.stop_reason,
        wait_s=times.scheduled_ts - times.queued_ts if times else 0.0,
    )


def run_offline(job: OfflineJob) -> OfflineResult:
    """The job, done in a process of its own, whose messages go to our stderr.

    Raises:
        BenchError: it ended without a result.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, told = Path(folder) / "job.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(asked), str(told)]
        ranks = job["engine"].get("tensor_parallel_size", 1)
        cores = os.cpu_count() or 1
        binding = "|".join(str(rank % cores) for rank in range(ranks)) if ranks > 1 else "auto"
        environment = {**os.environ, **ENVIRONMENT, "VLLM_CPU_OMP_THREADS_BIND": binding}
        status = subprocess.run(command, check=False, stdout=sys.stderr, env=environment)
        if status.returncode or not told.exists():
            raise BenchError(
                f"the engine ended with exit code {status.returncode}; see its messages"
            )
        result: OfflineResult = json.loads(told.read_text(encoding="utf-8"))
    return result


def _main() -> None:
    """Reads the job from the file named first, writes the result to the second."""
    job: OfflineJob = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine = OfflineEngine(job)
    waves = [engine.run(wave) for wave in job["waves"]]
    Path(sys.argv[2]).write_text(json.dumps(engine.result(waves)), encoding="utf-8")


if __name__ == "__main__":
    _main()

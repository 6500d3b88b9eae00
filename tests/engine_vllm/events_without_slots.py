"""A program: an engine without slots goes through one event after another, and tells what was answered.

Reads which adapters there are from the file named first; writes the answers to the second. A process holds one vLLM.
"""

import json
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.config import CONFIG_KEY

FIRST_TEXT_TOKEN, VOCABULARY, BLOCK_TOKENS = 3, 512, 32


class EventedEngine:
    """vLLM's LLM with Chameleon's scheduler; keeps each answer under the event's name."""

    def __init__(self, model: str, adapters: dict[str, str], **engine: Any) -> None:
        from vllm import LLM

        self.llm = LLM(
            model,
            scheduler_cls=SCHEDULER,
            additional_config={CONFIG_KEY: {"serving": {"lora_backend": "paged"}}},
            enable_lora=True,
            max_loras=2,
            max_lora_rank=64,
            max_model_len=192,
            block_size=BLOCK_TOKENS,
            dtype="float32",
            enforce_eager=True,
            disable_log_stats=False,
            **engine,
        )
        self.adapters, self.ids = adapters, {name: i + 1 for i, name in enumerate(adapters)}
        self.answers: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        self._open: dict[str, dict[str, Any]] = {}
        self._count = 0

    def adapter(self, name: str | None, alias: str | None = None, **changes: Any) -> Any:
        """vLLM's words for an adapter, perhaps under another's name."""
        from vllm.lora.request import LoRARequest

        if name is None:
            return None
        known = alias or name
        return LoRARequest(
            known, self.ids.setdefault(known, len(self.ids) + 1), self.adapters[name], **changes
        )

    def add(self, name: str | None, prompt: list[int], adapter: Any = None, **sampling: Any) -> str:
        """A request; `name` is whose answer is expected."""
        from vllm import SamplingParams

        self._count += 1
        number = str(self._count)
        params = {"max_tokens": 8, "temperature": 0, "ignore_eos": True, **sampling}
        self.llm.llm_engine.add_request(
            number,
            {"prompt_token_ids": prompt},
            SamplingParams(**params),
            lora_request=adapter or self.adapter(name),
        )
        self._open[number] = {"name": name, "prompt": prompt}
        return number

    def steps(self, event: str, most: int | None = None) -> None:
        """So many, or all that are needed; who ends is written down."""
        while self.llm.llm_engine.has_unfinished_requests() and (most is None or most > 0):
            most = None if most is None else most - 1
            for output in self.llm.llm_engine.step():
                if output.finished:
                    done = output.outputs[0]
                    self.answers.append(
                        {
                            **self._open.pop(output.request_id),
                            "event": event,
                            "tokens": list(done.token_ids),
                            "cached_tokens": output.num_cached_tokens or 0,
                        }
                    )

    def ask(self, event: str, names: list[str | None], prompt: list[int], **sampling: Any) -> None:
        """One request for each name, all at once."""
        for name in names:
            self.add(name, prompt, **sampling)
        self.steps(event)


def through_all(model: str, adapters: dict[str, str]) -> EventedEngine:
    """An engine whose host memory holds them all."""
    engine = EventedEngine(model, adapters, max_num_seqs=16, max_num_batched_tokens=64)
    names = [None, *adapters]
    short, long = _prompt(1, 7), _prompt(2, 100)
    engine.ask("mixed", names, short)
    for name, length in zip(
        [*names, *names], [100, 40, 9, 17, 5, 70, 12, 33, 90, 16, 6, 55, 20, 3], strict=False
    ):
        engine.add(name, _prompt(3 + length, length))
    engine.steps("chunked")
    for name in ("all", "qkv", "all", None):
        engine.ask("prefix", [name], long)
    _replaced(engine)
    _removed(engine)
    again = partial(engine.ask, names=names, prompt=long)
    for level in (1, 2):  # of which vLLM does on a CPU what concerns its scheduler
        engine.llm.sleep(level=level)
        engine.llm.wake_up()
        again(f"slept {level}")
    happenings: dict[str, Callable[[], Any]] = {
        "reset": engine.llm.reset_prefix_cache,
        "reset_mm": engine.llm.llm_engine.reset_mm_cache,
        "profiled": lambda: engine.llm.collective_rpc(lambda w: w.model_runner.profile_run()),
        "dummy batch": lambda: engine.llm.collective_rpc("execute_dummy_batch"),
        "reloaded": lambda: engine.llm.collective_rpc("reload_weights"),
    }
    for event, happens in happenings.items():
        happens()
        engine.llm.reset_prefix_cache()
        again(event)
    return engine


def _replaced(engine: EventedEngine) -> None:
    """One name, first for 'mlp', then for 'ranks', while a request for the former runs."""
    first = partial(engine.adapter, "mlp", "changing")
    engine.add("mlp", _prompt(50, 20), first(), max_tokens=24)
    engine.steps("replaced", 6)
    engine.add("ranks", _prompt(50, 20), engine.adapter("ranks", "changing", load_inplace=True))
    engine.steps("replaced")
    engine.add("ranks", _prompt(51, 20), engine.adapter("ranks", "changing"))
    engine.steps("replaced")


def _removed(engine: EventedEngine) -> None:
    """One whose id is no longer listed (vLLM lists `max_cpu_loras`), then the one that runs; both come again."""
    for gone in ("all", "qkv"):
        engine.add("qkv", _prompt(60, 20), max_tokens=24)
        engine.steps("removed", 6)
        engine.facts[f"removed {gone}"] = engine.llm.llm_engine.remove_lora(engine.ids[gone])
        engine.steps("removed", 4)
        engine.add(gone, _prompt(61, 20))
        engine.steps("removed")


def _prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(FIRST_TEXT_TOKEN, VOCABULARY) for _ in range(length)]


def main(asked: Path, told: Path) -> None:
    """Does what is asked in the one file, tells it in the other."""
    job = json.loads(asked.read_text(encoding="utf-8"))
    engine = through_all(job["model"], job["adapters"])
    result = {"answers": engine.answers, "facts": engine.facts}
    told.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""The plugin in a fresh process, as vLLM loads it: several times, and beside other schedulers."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SCRIPT = """
from chameleon_lora.engine_vllm.plugin import register
register()
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.worker import lora_model_runner_mixin
from vllm.v1.worker.gpu_worker import Worker

OWNERS = (OpenAIServingModels, BaseServing, AsyncLLM, EngineCore, OutputProcessor, Worker)

def pieces():
    found = {(o.__name__, n): v for o in OWNERS for n, v in vars(o).items()}
    found["manager", ""] = lora_model_runner_mixin.LRUCacheWorkerLoRAManager
    return found

first = pieces()
register()
second = pieces()
assert first.keys() == second.keys()
changed = [key for key in first if first[key] is not second[key]]
assert changed == [], changed
ours = [key for key, value in first.items() if getattr(value, "__wrapped__", None)]
assert ("AsyncLLM", "add_lora") in ours, ours
assert hasattr(EngineCore, "chameleon_announce")


class Scheduler:
    pass


class Engine:
    scheduler = Scheduler()

# Another scheduler's engine has no driver, and says so.
assert EngineCore.chameleon_announce(Engine(), [["a", "/a", "1", 1, 1, False]]) == 0
assert EngineCore.chameleon_withdraw(Engine(), ["a"]) == 0
print("idempotent")
"""


def test_registering_twice_changes_no_more_than_once() -> None:
    """The second call wraps nothing again, and engines with another scheduler announce nothing."""
    pytest.importorskip("vllm")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, check=False
    )
    assert (0, "idempotent") == (done.returncode, done.stdout.strip().rpartition("\n")[2]), (
        done.stderr[-2000:]
    )

"""Asks an engine by the ids that a client gives; run as a process, for an engine keeps what it read.

    python -m tests.engine_vllm.client_ids stock|llm|async MODEL FOLDER RESULT

FOLDER holds the adapters `a` and `b`; RESULT gets what happened, in order, as JSON.
"""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm import SCHEDULER

ENGINE: dict[str, Any] = {
    "enable_lora": True,
    "max_loras": 2,
    "max_cpu_loras": 2,
    "max_lora_rank": 8,
    "max_model_len": 64,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "dtype": "float32",
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "skip_tokenizer_init": True,
}
PROMPT = [5, 9, 17, 3, 33, 21]
Asker = Callable[..., Awaitable[Any]]
ENDINGS: list[Callable[[], object]] = []


def sync_asker() -> Asker:
    """Of vLLM's LLM class: its engine's methods by name, and `generate`."""
    from vllm import LLM

    scheduler = None if sys.argv[1] == "stock" else SCHEDULER
    llm: Any = LLM(sys.argv[2], scheduler_cls=scheduler, **ENGINE)

    async def ask(method: str, *given: Any) -> Any:
        if method != "generate":
            return getattr(llm.llm_engine, method)(*given)
        prompt: Any = {"prompt_token_ids": PROMPT}
        done = llm.generate([prompt], _sampling(), lora_request=given[0], use_tqdm=False)
        return list(done[0].outputs[0].token_ids)

    return ask


def async_asker() -> Asker:
    """The same of AsyncLLM, whose engine is another process."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=sys.argv[2], scheduler_cls=SCHEDULER, **ENGINE)
    )

    # This process ends without clearing up, and vLLM's others would outlive it.
    ENDINGS.append(engine.shutdown)

    async def ask(method: str, *given: Any) -> Any:
        if method != "generate":
            return await getattr(engine, method)(*given)
        prompt: Any = {"prompt_token_ids": PROMPT}
        answers = engine.generate(prompt, _sampling(), str(given), lora_request=given[0])
        *_, last = [answer async for answer in answers]
        return list(last.outputs[0].token_ids)

    return ask


def _sampling() -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, detokenize=False)


async def happen(ask: Asker) -> list[Any]:
    """What a client that keeps its ids may do, and what it is answered."""
    from vllm.lora.request import LoRARequest

    folder = sys.argv[3]
    seen: list[Any] = []

    async def note(method: str, *given: Any) -> None:
        try:
            answer = await ask(method, *given)
        except Exception as error:  # noqa: BLE001  # which differ by client; that there is one counts
            answer = "an error"
            sys.stderr.write(f"{method} {given}: {error!r}\n")
        seen.append([method, sorted(answer) if isinstance(answer, set) else answer])

    def lora(client_id: int, name: str, place: str | None = None, **fields: Any) -> Any:
        return LoRARequest(name, client_id, place or f"{folder}/{name}", **fields)

    for method, *given in (
        ("generate", None),
        ("list_loras",),
        ("add_lora", lora(50, "a")),
        ("list_loras",),
        ("generate", lora(50, "a")),
        ("generate", lora(50, "50", "/stub")),
        ("add_lora", lora(50, "a")),
        ("pin_lora", 50),
        ("pin_lora", 99),
        ("remove_lora", 50),
        ("list_loras",),
        ("remove_lora", 50),
        ("add_lora", lora(50, "b")),
        ("generate", lora(50, "b")),
        ("add_lora", lora(50, "b", f"{folder}/a", load_inplace=True)),
        ("generate", lora(50, "b", f"{folder}/a")),
        ("list_loras",),
        ("add_lora", lora(51, "none")),
        ("list_loras",),
        ("generate", lora(60, "b")),
        ("add_lora", lora(61, "c", f"{folder}/b")),
        ("list_loras",),
        ("remove_lora", 61),
        ("list_loras",),
    ):
        await note(method, *given)
    return seen


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(sys.argv[1] == "async"))

    async def main() -> None:
        """Waits for an engine that needs a loop, and does without one that has its own."""
        ask = async_asker() if sys.argv[1] == "async" else sync_asker()
        Path(sys.argv[4]).write_text(json.dumps(await happen(ask)), encoding="utf-8")

    asyncio.run(main())
    for end in ENDINGS:
        end()
    sys.stderr.flush()
    os._exit(0)  # an engine's own end is others' business

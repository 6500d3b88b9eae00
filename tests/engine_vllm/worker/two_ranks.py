"""An engine of two ranks, of tensors or of a pipeline, whose disks differ; run as a program, for a process holds one vLLM.

Each rank looks for adapters below its own working directory. What came of the requests is written as
JSON: name -> how it ended, what it said, and how many steps it took after it was asked for.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.config import CONFIG_KEY

MOST_STEPS = 20_000


class OwnDisks:
    """What a worker does when it is told to; vLLM mixes it into its workers."""

    rank: int
    model_runner: Any

    def go_home(self, homes: list[str]) -> None:
        """Afterwards relative paths mean this rank's own files."""
        os.chdir(homes[self.rank])

    def make_room(self) -> None:
        """For what the stage before hands on: vLLM makes it in a warm-up, which CPUs without compiling leave out."""
        from vllm.distributed import get_pp_group

        runner = self.model_runner
        if not get_pp_group().is_first_rank:
            runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
                runner.max_num_tokens, runner.model_config.dtype, runner.device
            )

    def hold(self, rank: int, name: str, pipe: str) -> None:
        """On that rank, the first to open a file of the adapter waits until the pipe is written."""
        pipes = [pipe] if rank == self.rank else []

        def wait_for_writer(event: str, args: tuple[Any, ...]) -> None:
            if pipes and event == "open" and f"/{name}/" in str(args[0]):
                Path(pipes.pop()).read_bytes()

        sys.addaudithook(wait_for_writer)


class TwoRanks:
    """The engine, and what its requests said."""

    def __init__(self, model: str, homes: list[str], kind: str) -> None:
        from vllm import LLM

        self._llm = LLM(
            model,
            scheduler_cls=SCHEDULER,
            additional_config={CONFIG_KEY: {"serving": {"lora_backend": "slots"}}},
            worker_extension_cls=f"tests.engine_vllm.worker.two_ranks.{OwnDisks.__name__}",
            skip_tokenizer_init=True,
            enable_lora=True,
            max_loras=2,
            max_lora_rank=16,
            max_num_seqs=4,
            max_num_batched_tokens=64,
            max_model_len=128,
            dtype="float32",
            enforce_eager=True,
            distributed_executor_backend="mp",
            **{f"{kind}_parallel_size": 2},
        )
        self._llm.collective_rpc("make_room")
        self._llm.collective_rpc("go_home", args=(homes,))
        self._asked = 0

    def ask(self, *names: str) -> None:
        """A request for each of these adapters."""
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        for name in names:
            self._asked += 1
            self._llm.llm_engine.add_request(
                f"{name}-{self._asked}",
                {"prompt_token_ids": [5, 9, 17, 3]},
                SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, detokenize=False),
                lora_request=LoRARequest(name, sum(map(ord, name)), f"/proc/self/cwd/{name}"),
            )

    def run_until(self, *names: str) -> dict[str, Any]:
        """Steps until a request of each has ended; answers how these and others ended meanwhile."""
        found: dict[str, Any] = {}
        for _ in range(MOST_STEPS):
            for output in self._llm.llm_engine.step():
                if output.finished:
                    end = output.outputs[0]
                    found[output.request_id.partition("-")[0]] = [
                        end.finish_reason,
                        list(end.token_ids),
                        str(end.stop_reason),
                    ]
            if set(names) <= found.keys():
                break
        return found

    def hold(self, name: str, pipe: str) -> None:
        """From now on the second rank's disk does not answer for this adapter."""
        self._llm.collective_rpc("hold", args=(1, name, pipe))


def main(model: str, homes: list[str], pipe: str, told: Path, kind: str) -> None:
    """Good and bad adapters, then one whose second half is long in coming."""
    engine = TwoRanks(model, homes, kind)
    engine.ask("other", "broken", "good")
    ends = {"first": engine.run_until("other", "broken", "good")}
    engine.hold("slow", pipe)
    engine.ask("slow", "good")
    ends["held"] = engine.run_until("good")
    engine.ask("good")
    ends["still held"] = engine.run_until("good")
    Path(pipe).write_bytes(b"go")
    ends["released"] = engine.run_until("slow")
    told.write_text(json.dumps(ends))


if __name__ == "__main__":
    main(sys.argv[1], [sys.argv[2], sys.argv[3]], sys.argv[4], Path(sys.argv[5]), sys.argv[6])

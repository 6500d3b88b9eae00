"""What of a tenant's requests is counted: all that vLLM's own client of the engine is sent for them."""

from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.caller import CALLER, CallerContext
from chameleon_lora.tenants import Tenant
from tests.engine_vllm.callers import ACME
from tests.engine_vllm.fake_requests import core_request

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.usefixtures("hooked")]
PROMPT = [5, 6, 7]
KINDS = ("FINAL_ONLY", "DELTA", "CUMULATIVE")


class Answers:
    """vLLM's own processor of outputs, with requests of one caller."""

    def __init__(self, tenant: Tenant | None = ACME) -> None:
        processor = pytest.importorskip("vllm.v1.engine.output_processor")
        self._collector = processor.RequestOutputCollector
        self._processor = processor.OutputProcessor(None, log_stats=False)
        self.caller = CallerContext(tenant, may_control=False)

    def begin(self, name: str, params: Any, parent: Any = None, index: int = 0) -> Any:
        """A request for an answer, or for one of several; vLLM's form of it."""
        request = core_request(name, PROMPT, params)
        queue = self._collector(params.output_kind, name)
        token = CALLER.set(self.caller)
        self._processor.add_request(request, None, parent, index, queue)
        CALLER.reset(token)
        return request

    def come(self, name: str, tokens: int, finish: str | None = None, pooled: Any = None) -> None:
        """Something that the engine sends for one of them."""
        from vllm.v1.engine import EngineCoreOutput, FinishReason

        output = EngineCoreOutput(
            request_id=name,
            new_token_ids=[1] * tokens,
            finish_reason=None if finish is None else FinishReason[finish],
            pooling_output=pooled,
        )
        self._processor.process_outputs([output])

    def leave(self, name: str) -> None:
        """Its client has gone."""
        self._processor.abort_requests([name], internal=True)

    @property
    def counted(self) -> tuple[int, int, int]:
        """Tokens read and written, and answers that have not ended."""
        caller = self.caller
        return caller.input_tokens, caller.output_tokens, caller.unfinished


def sampling(kind: str, n: int = 1) -> Any:
    """Parameters of a request that generates."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(n=n, output_kind=RequestOutputKind[kind], detokenize=False)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_read_and_written_is_counted(kind: str) -> None:
    """The prompt once, each token once, streamed or not."""
    answers = Answers()
    answers.begin("r", sampling(kind))
    assert (0, 0, 1) == answers.counted
    answers.come("r", 1)
    answers.come("r", 4)
    assert (3, 5, 1) == answers.counted
    answers.come("r", 2, "LENGTH")
    assert (3, 7, 0) == answers.counted


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_left_is_counted(kind: str) -> None:
    """As far as it was written, though nobody has seen a token of it; how much was read is not known."""
    answers = Answers()
    answers.begin("r", sampling(kind))
    answers.come("r", 4)
    answers.leave("r")
    answers.come("r", 9)
    assert (3, 4, 1) == answers.counted


def test_a_request_that_failed_costs_nothing() -> None:
    """Its adapter could not be loaded, for one."""
    answers = Answers()
    answers.begin("r", sampling("DELTA"))
    answers.come("r", 0, "ERROR")
    assert (0, 0, 0) == answers.counted


def test_several_answers_to_a_prompt_count_each() -> None:
    """The prompt for the first of them only."""
    from vllm.v1.engine.parallel_sampling import ParentRequest

    answers = Answers()
    parent = None
    for index in range(2):
        params = sampling("FINAL_ONLY", n=2)
        request = answers.begin(f"{index}_r", params, parent, index)
        parent = parent or ParentRequest(request)
    answers.come("1_r", 4)
    answers.come("0_r", 3, "STOP")
    assert (3, 7, 1) == answers.counted


def test_a_prompt_that_was_pooled_is_counted() -> None:
    """It has no answer in tokens."""
    torch = pytest.importorskip("torch")
    from vllm import PoolingParams

    answers = Answers()
    answers.begin("r", PoolingParams(task="embed"))
    answers.come("r", 0, "STOP", torch.zeros(4))
    assert (3, 0, 0) == answers.counted


def test_nothing_is_counted_for_others() -> None:
    """The admin has no limits."""
    answers = Answers(tenant=None)
    answers.begin("r", sampling("DELTA"))
    answers.come("r", 4, "STOP")
    assert (0, 0, 0) == answers.counted

"""A reason on its way from the engine to the client, whatever the client asked for."""

from dataclasses import dataclass
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.serving import raising, raising_at_the_end
from chameleon_lora.engine_vllm.errors import STATUS, failure_in, failure_output
from chameleon_lora.errors import AdapterRequestsError
from chameleon_lora.policy.plan import Failure, Fault
from chameleon_lora.policy.request import AdapterId, RequestId
from tests.engine_vllm.fake_requests import FakeRequest, core_request

REASON = "adapter 'a': no weights"
POOLED = 4  # of `all_params`


@dataclass
class FakeCoreOutput:
    """What is read of an EngineCoreOutput."""

    stop_reason: int | str | None
    finished: bool = True


def failure(request_id: str, fault: Fault = Fault.CONTENT) -> Failure:
    """That request's adapter cannot be loaded."""
    return Failure(RequestId(request_id), AdapterId(1), REASON, fault)


@pytest.mark.parametrize(
    "output",
    [
        FakeCoreOutput(None),
        FakeCoreOutput(2),
        FakeCoreOutput("END"),
        FakeCoreOutput("chameleon content: a", finished=False),
        FakeCoreOutput("chameleon weather: a"),
        FakeCoreOutput("a chameleon content: b"),
    ],
    ids=str,
)
def test_other_outputs_carry_no_reason(output: FakeCoreOutput) -> None:
    """Stop strings, stop tokens, unfinished outputs and none at all are no failure of ours."""
    assert failure_in(output) is None


@pytest.mark.vllm
@pytest.mark.parametrize("fault", Fault)
def test_a_reason_survives_the_process_border(fault: Fault) -> None:
    """Packed and unpacked as vLLM does it, the last output of a request still tells the reason."""
    pytest.importorskip("vllm")
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    sent = failure_output(FakeRequest("r"), failure("r", fault))
    received = MsgpackDecoder(EngineCoreOutput).decode(MsgpackEncoder().encode(sent))
    assert (REASON, fault) == failure_in(received)
    assert ("r", FinishReason.ERROR) == (received.request_id, received.finish_reason)
    assert [] == list(received.new_token_ids)


def processor_with(params: Any, queue: Any) -> Any:
    """vLLM's own, with request r and this place for its outputs, or none as under the LLM class."""
    from vllm.v1.engine.output_processor import OutputProcessor

    processor = OutputProcessor(None, log_stats=False)
    processor.add_request(core_request("r", [5, 6, 7], params), None, None, 0, queue)
    return processor


def all_params() -> list[Any]:
    """One of each kind of runner, and of each way of handing outputs out."""
    from vllm import PoolingParams, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    tasks: tuple[Any, ...] = ("embed", "classify", "token_embed", "token_classify")
    kinds = (RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE)
    sampled = [SamplingParams(output_kind=kind, detokenize=False) for kind in kinds]
    return [*(PoolingParams(task=task) for task in tasks), *sampled]


@pytest.mark.vllm
@pytest.mark.parametrize("kind", range(7))
@pytest.mark.parametrize("fault", Fault)
def test_whoever_waits_is_told_and_nobody_else(kind: int, fault: Fault) -> None:
    """vLLM's own processing goes on, and raises where that client waits: with reason and status."""
    vllm = pytest.importorskip("vllm")
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    params = all_params()[kind]
    queue = RequestOutputCollector(params.output_kind, "r")
    processor = processor_with(params, queue)
    told = [failure_output(FakeRequest("r"), failure("r", fault))]
    raising(OutputProcessor.process_outputs)(processor, told)
    with pytest.raises(Exception, match="no weights") as caught:
        queue.get_nowait()
    told_as = getattr(caught.value, "cause", caught.value)  # vLLM 0.26 unwraps it
    answer = BaseServing.create_error_response(told_as).error
    may_be_reworded = not hasattr(vllm.exceptions, "GracefulHTTPError") and kind < POOLED
    assert REASON == answer.message
    assert STATUS[Fault.CONTENT if may_be_reworded else fault] == answer.code
    assert not processor.has_unfinished_requests()


@pytest.mark.vllm
@pytest.mark.parametrize("kind", range(5))
def test_the_llm_class_raises_once_all_requests_have_ended(kind: int) -> None:
    """With the reason, and with the outputs of all, so that no empty answer is taken for one."""
    pytest.importorskip("vllm")
    from vllm.outputs import EmbeddingRequestOutput
    from vllm.v1.engine.output_processor import OutputProcessor

    processor = processor_with(all_params()[kind], None)
    told = [failure_output(FakeRequest("r"), failure("r"))]
    done = raising(OutputProcessor.process_outputs)(processor, told).request_outputs
    run = raising_at_the_end(lambda _llm, **_: ["another's", *done])
    with pytest.raises(AdapterRequestsError, match=r"1 of 2 requests .*no weights") as caught:
        run(None, use_tqdm=False)
    assert ["another's", *done] == caught.value.outputs
    assert REASON == done[0].error_message
    if hasattr(done[0], "error"):
        assert REASON == EmbeddingRequestOutput.from_base(done[0]).error.message
    assert ["fine"] == raising_at_the_end(lambda _llm: ["fine"])(None)

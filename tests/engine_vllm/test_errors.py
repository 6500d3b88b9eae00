"""A reason on its way from the engine to the client."""

from dataclasses import dataclass

import pytest

from chameleon_lora.engine_vllm.errors import client_error, failure_output, failure_reason
from tests.engine_vllm.fake_requests import FakeRequest


@dataclass
class FakeOutput:
    """What is read of an EngineCoreOutput."""

    stop_reason: int | str | None
    finished: bool = True


@pytest.mark.parametrize(
    "output",
    [
        FakeOutput(None),
        FakeOutput(2),
        FakeOutput("END"),
        FakeOutput("chameleon: a", finished=False),
        FakeOutput("a chameleon: b"),
    ],
    ids=str,
)
def test_other_outputs_carry_no_reason(output: FakeOutput) -> None:
    """Stop strings, stop tokens, unfinished outputs and none at all are no failure of ours."""
    assert failure_reason(output) is None


@pytest.mark.vllm
def test_a_reason_survives_the_process_border() -> None:
    """Packed and unpacked as vLLM does it, the last output of a request still tells the reason."""
    pytest.importorskip("vllm")
    from vllm.v1.engine import EngineCoreOutput, FinishReason
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    sent = failure_output(FakeRequest("r"), "adapter 'a': no weights")
    received = MsgpackDecoder(EngineCoreOutput).decode(MsgpackEncoder().encode(sent))
    assert "adapter 'a': no weights" == failure_reason(received)
    assert ("r", FinishReason.ERROR) == (received.request_id, received.finish_reason)
    assert [] == list(received.new_token_ids)


@pytest.mark.vllm
def test_the_client_gets_the_reason_in_words() -> None:
    """The exception that vLLM's API server answers with has the reason as its text."""
    pytest.importorskip("vllm")
    assert "adapter 'a': no weights" in str(client_error("adapter 'a': no weights"))

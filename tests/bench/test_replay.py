"""The open-loop replay against a real HTTP server in this process."""

import asyncio
import resource

import pytest

from chameleon_lora.bench.replay import Progress, Target, completion_of, replay
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.workload.requests import TimedRequest
from tests.bench.fake_openai import FakeOpenAI

TOKEN_IDS = (100, 200)


def request(
    index: int, arrival_s: float = 0.0, adapter: str | None = "a", output_tokens: int = 3
) -> TimedRequest:
    """A request of five prompt tokens."""
    return TimedRequest(index, arrival_s, adapter, 5, output_tokens)


def run(
    *requests: TimedRequest, patience_s: float = 10.0
) -> tuple[FakeOpenAI, tuple[RequestRecord, ...]]:
    """The server as it is after the replay, and the replay's records."""

    async def replay_once() -> tuple[FakeOpenAI, tuple[RequestRecord, ...]]:
        async with FakeOpenAI() as server:
            target = Target(server.base_url, "base", TOKEN_IDS)
            return server, await replay(target, requests, patience_s=patience_s)

    return asyncio.run(replay_once())


def test_a_request_is_sent_as_its_workload_says() -> None:
    """Model, prompt length and output length arrive; the answer's length is forced and greedy."""
    server, _ = run(request(0, adapter="a", output_tokens=4))
    (body,) = server.bodies
    assert ("a", 5, 4) == (body["model"], len(body["prompt"]), body["max_tokens"])
    assert (True, 0, True) == (body["ignore_eos"], body["temperature"], body["stream"])


def test_a_request_without_adapter_names_the_base_model() -> None:
    """None becomes the server's own name for its base model."""
    server, _ = run(request(0, adapter=None))
    assert [body["model"] for body in server.bodies] == ["base"]


def test_each_token_leaves_its_time() -> None:
    """Three tokens: three ascending times, the first of them the TTFT's, the end not before."""
    _, (record,) = run(request(0, output_tokens=3))
    assert len(record.token_times_s) == 3
    assert sorted(record.token_times_s) == list(record.token_times_s)
    assert record.first_token_s == record.token_times_s[0]
    assert record.token_times_s[-1] <= record.end_s


def test_token_counts_are_the_servers() -> None:
    """The usage chunk says 5 prompt and 3 output tokens."""
    _, (record,) = run(request(0, output_tokens=3))
    assert (5, 3) == (record.prompt_tokens, record.output_tokens)
    assert record.is_completed


def test_arrivals_never_wait_for_answers() -> None:
    """Two requests are sent and answered while an earlier one gets no answer at all."""
    server, records = run(
        request(0, 0.0, "silent"), request(1, 0.01), request(2, 0.02), patience_s=2.0
    )
    assert len(server.bodies) == 3
    assert [False, True, True] == [record.is_completed for record in records]


def test_an_unanswered_request_is_given_up_after_the_patience() -> None:
    """Last arrival at 0.01 and a patience of 0.2 s end the run at 0.21 s or when the machine can."""
    _, records = run(request(0, 0.0, "silent"), request(1, 0.01), patience_s=0.2)
    assert records[0].error == "given up: no whole answer 0.2 s into the run"
    assert 0.2 <= records[0].end_s


def test_no_request_is_sent_before_its_arrival() -> None:
    """Lateness is never negative, and small numbers of requests are sent on time."""
    _, records = run(*(request(i, 0.02 * i) for i in range(10)))
    assert all(record.lateness_s >= -0.001 for record in records)
    assert [0.02 * i for i in range(10)] == [record.arrival_s for record in records]


def test_records_come_in_order_of_index() -> None:
    """Whatever the order of the answers."""
    _, records = run(request(2, 0.0), request(0, 0.02), request(1, 0.01))
    assert [0, 1, 2] == [record.index for record in records]


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("failing", 'HTTP 404 for \'failing\': {"error": {"message": "no such model"}}'),
        ("breaking", 'stream broken off: {"message":"engine died"}'),
        ("cut", "stream broken off: it ended without [DONE]"),
    ],
)
def test_a_failed_request_says_why_and_harms_no_other(model: str, error: str) -> None:
    """An HTTP error, an error in mid-stream and a cut stream are recorded as what they are."""
    _, (failed, other) = run(request(0, adapter=model), request(1))
    assert failed.error == error
    assert other.is_completed


def test_an_answer_without_tokens_is_a_failure() -> None:
    """A stream that holds nothing has no time to first token."""
    _, (record,) = run(request(0, output_tokens=0))
    assert record.error == "no token: the answer was whole, and empty"


def test_a_server_that_is_not_there_fails_every_request() -> None:
    """A refused connection is an error in the record, not an exception."""
    target = Target("http://127.0.0.1:9", "base", TOKEN_IDS)
    (record,) = asyncio.run(replay(target, [request(0)]))
    assert record.error is not None
    assert record.error.startswith("connection refused: Cannot connect")


def test_progress_is_told_while_it_runs() -> None:
    """Each report counts no more answers than requests sent, and the run's own total."""
    reports: list[Progress] = []

    async def replay_once() -> None:
        async with FakeOpenAI() as server:
            requests = [request(i, 0.01 * i) for i in range(20)]
            target = Target(server.base_url, "base", TOKEN_IDS)
            await replay(target, requests, on_progress=reports.append, progress_every_s=0.05)

    asyncio.run(replay_once())
    assert reports
    assert {20} == {report.total for report in reports}
    assert all(report.completed <= report.sent for report in reports)


def test_a_run_may_have_more_streams_than_files_were_allowed() -> None:
    """The soft limit of 256 files is lifted, as far as the hard one and 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        run(request(0))
        lifted, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert lifted == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536))


def test_prompts_are_the_same_in_every_run_and_differ_between_requests() -> None:
    """Equal requests get equal prompts of ids in range; another index another prompt."""
    target = Target("", "base", TOKEN_IDS)
    prompt = completion_of(request(0), target).prompt
    assert prompt == completion_of(request(0), target).prompt
    assert prompt != completion_of(request(1), target).prompt
    assert all(isinstance(token, int) and 100 <= token < 200 for token in prompt)

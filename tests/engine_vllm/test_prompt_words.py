"""The words of prompts reach the policy as token ids, if its predictor reads them."""

import pytest

from chameleon_lora.policy.request import RequestId
from chameleon_lora.policy.settings import LengthSettings, PolicySettings, Predictor
from tests.engine_vllm.fake_requests import FakeRequest, carry_out, make_driver


class Unread:
    """Token ids that fail the test if anybody looks at them."""

    def __len__(self) -> int:
        raise AssertionError("the prompt was read")


def test_both_ends_of_a_prompt_are_told() -> None:
    """Of 1,000 token ids the first and the last 64."""
    driver = make_driver()
    driver.arrived(FakeRequest("r", num_prompt_tokens=1000, prompt_token_ids=list(range(1000))))
    told = driver.policy.request(RequestId("r")).request
    assert (*range(64), *range(936, 1000)) == told.words


def test_what_a_request_taught_is_known_of_the_next_with_its_words() -> None:
    """Prompts with token 7 had 200 tokens of answer, those with 8 had 10."""
    driver = make_driver()
    for turn in range(100):
        word, output_tokens = ((7, 200), (8, 10))[turn % 2]
        request = FakeRequest(f"{turn}", max_tokens=500, prompt_token_ids=[1, word])
        driver.arrived(request)
        carry_out(driver, float(turn))
        request.num_output_tokens, request.end = output_tokens, "stop"
    carry_out(driver, 100.0)
    for word in (7, 8):
        driver.arrived(FakeRequest(f"of {word}", max_tokens=500, prompt_token_ids=[1, word]))
    told = (driver.policy.request(RequestId(f"of {word}")) for word in (7, 8))
    long, short = (request.output_tokens for request in told)
    assert short * 3 < long


@pytest.mark.parametrize("token_ids", [None, []])
def test_a_prompt_of_embeddings_has_no_words(token_ids: list[int] | None) -> None:
    """Its output is foretold by its adapter's alone."""
    driver = make_driver()
    driver.arrived(FakeRequest("r", prompt_token_ids=token_ids))
    assert () == driver.policy.request(RequestId("r")).request.words


def test_another_predictor_reads_no_prompt() -> None:
    """With the median nothing is copied or counted."""
    settings = PolicySettings(length=LengthSettings(predictor=Predictor.MEDIAN))
    driver = make_driver(settings=settings)
    driver.arrived(FakeRequest("r", prompt_token_ids=Unread()))
    assert () == driver.policy.request(RequestId("r")).request.words

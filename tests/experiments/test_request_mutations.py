"""Requests that a server is fuzzed with: most are such as vLLM takes."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from experiments.request_mutations import BASES, requests_for

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long]
INPUTS = 300


@pytest.mark.parametrize("path", BASES)
def test_many_of_the_requests_are_sound_and_some_are_not(path: str) -> None:
    """By vLLM's own reading of them, before an engine is asked."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.exceptions import VLLMClientError

    kind: Any = CompletionRequest if path == "/v1/completions" else ChatCompletionRequest
    taken: Counter[bool] = Counter()

    @seed(0)
    @settings(
        max_examples=INPUTS, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(body=requests_for(path))
    def read(body: dict[str, Any]) -> None:
        try:
            kind.model_validate(body).to_sampling_params(100, {})
        except (ValueError, VLLMClientError):
            taken[False] += 1
        else:
            taken[True] += 1

    read()
    assert INPUTS * 0.4 < taken[True]
    assert INPUTS * 0.1 < taken[False]

"""What a body is taken to ask for: as much as vLLM would do for it."""

from typing import Any

import pytest

from chameleon_lora.tenants import TokenEstimate, estimate_of

CONTEXT = 4096
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def output_of(path: str, body: dict[str, Any]) -> int:
    """Tokens of answers that it is charged."""
    return estimate_of(path, body, 12, CONTEXT).output_tokens


@pytest.mark.parametrize(
    ("path", "body", "output_tokens"),
    [
        (COMPLETIONS, {"max_tokens": 7}, 7),
        (COMPLETIONS, {"max_tokens": 7, "n": 3}, 21),
        (COMPLETIONS, {"max_tokens": 7, "n": 2, "best_of": 3}, 21),
        (COMPLETIONS, {"max_tokens": 7, "prompt": "a b"}, 7),
        (COMPLETIONS, {"max_tokens": 7, "prompt": [1, 2, 3]}, 7),
        (COMPLETIONS, {"max_tokens": 7, "prompt": ["a", "b"]}, 14),
        (COMPLETIONS, {"max_tokens": 7, "prompt": [[1, 2], [3]]}, 14),
        (COMPLETIONS, {"max_tokens": 7, "prompt": []}, 7),
        (COMPLETIONS, {"max_tokens": 7, "prompt_embeds": "aa"}, 7),
        (COMPLETIONS, {"max_tokens": 7, "prompt_embeds": ["aa", "bb", "cc"]}, 21),
        (COMPLETIONS, {"max_tokens": 7, "prompt_embeds": ["aa"], "prompt": ["a", "b"]}, 21),
        (CHAT, {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ("/v1/responses", {"max_output_tokens": 5}, 5),
        ("/v1/messages", {"max_tokens": 5}, 5),
        ("/tokenize", {"max_tokens": 5}, 0),
        ("/v1/messages/count_tokens", {"max_tokens": 5}, 0),
    ],
)
def test_what_a_body_asks_for(path: str, body: dict[str, Any], output_tokens: int) -> None:
    """The longest limit given, for each prompt and answer; nothing on other routes."""
    assert TokenEstimate(3, output_tokens) == estimate_of(path, body, 12, CONTEXT)


@pytest.mark.parametrize("written", [7, 7.0, "7", "7.0", " 7 ", "+7", "0_7"], ids=repr)
def test_numbers_are_read_as_vllm_reads_them(written: object) -> None:
    """In text, too; of a limit and of a number of answers."""
    assert 21 == output_of(CHAT, {"max_tokens": written, "n": "3"})
    assert 21 == output_of(CHAT, {"max_completion_tokens": 3, "n": written})
    assert 7 == output_of(CHAT, {"max_tokens": written, "n": True})


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
@pytest.mark.parametrize("body", [{}, {"max_tokens": None}, {"max_tokens": "many"}, {"n": 2}])
def test_without_a_limit_an_answer_may_fill_the_context(path: str, body: dict[str, Any]) -> None:
    """Each of them."""
    expected = TokenEstimate(3, CONTEXT * body.get("n", 1), is_open=True)
    assert expected == estimate_of(path, body, 12, CONTEXT)


def test_a_completion_that_says_nothing_is_short() -> None:
    """As OpenAI and vLLM have it; null may be something else, by vLLM's version."""
    assert TokenEstimate(3, 16) == estimate_of(COMPLETIONS, {}, 12, CONTEXT)
    assert CONTEXT == output_of(COMPLETIONS, {"max_tokens": None})


@pytest.mark.parametrize("limit", [0, -5, "-1", False])
def test_nothing_is_gained_by_asking_for_nothing(limit: object) -> None:
    """An answer is a token at the least, however many are asked for."""
    assert 3 == output_of(COMPLETIONS, {"max_tokens": limit, "n": 3})
    assert 5 == output_of(COMPLETIONS, {"max_tokens": 5, "n": limit})


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens", "n", "best_of"])
@pytest.mark.parametrize(
    "number",
    [2**31, 10**4000, float("nan"), float("inf"), float("-inf"), "1e400", "9" * 10**4, "nan"],
    ids=range(8),
)
def test_a_number_beyond_all_limits_is_told(key: str, number: object) -> None:
    """By its field, without its digits."""
    with pytest.raises(ValueError, match=f"'{key}' is no number up to 2147483647") as caught:
        estimate_of(CHAT, {key: number}, 12, CONTEXT)
    assert len(str(caught.value)) < 100


def test_a_beam_reads_its_prompt_anew_for_each_token() -> None:
    """As the engine counts it."""
    body = {"max_tokens": 10, "n": 4, "use_beam_search": True}
    assert TokenEstimate(3 * 40, 40) == estimate_of(COMPLETIONS, body, 12, CONTEXT)


@pytest.mark.parametrize(("nbytes", "tokens"), [(0, 0), (1, 1), (4, 1), (5, 2)])
def test_a_prompt_is_estimated_by_bytes(nbytes: int, tokens: int) -> None:
    """Four of the body are a token."""
    assert tokens == estimate_of("/tokenize", {}, nbytes, CONTEXT).input_tokens


@pytest.mark.parametrize(
    ("path", "body", "again"),
    [
        ("/rerank", {"query": "q" * 400, "documents": ["d"] * 5}, 4),
        ("/v2/rerank", {"query": "q" * 400, "documents": "d"}, 0),
        ("/score", {"text_1": "q" * 400, "text_2": ["d"] * 5}, 4),
        ("/score", {"queries": ["q" * 396], "items": ["d"] * 5}, 4),
        ("/v1/score", {"data_1": ["q" * 400] * 5, "data_2": ["d"] * 5}, 0),
        ("/v1/score", {"data_1": [], "data_2": []}, 0),
        ("/v1/embeddings", {"query": "q" * 400, "documents": ["d"] * 5}, 0),
    ],
)
def test_a_query_is_read_with_each_document(path: str, body: dict[str, Any], again: int) -> None:
    """Once in the body, once for every pair in the engine."""
    assert 500 + again * 100 == estimate_of(path, body, 2000, CONTEXT).input_tokens

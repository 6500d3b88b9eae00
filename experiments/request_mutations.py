"""Requests for text with a field or two that were changed: most still reach the engine, which random ones hardly ever do."""

from typing import Any

from hypothesis import strategies as st

PROMPT = list(range(3, 40))
BASES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": PROMPT, "max_tokens": 2, "temperature": 0},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "red"}], "max_tokens": 2, "temperature": 0,
    },
}  # fmt: skip
SOUND: dict[str, list[Any]] = {
    "max_tokens": [1, 2, 16, "2", 2.0],
    "min_tokens": [0, 1],
    "n": [1, 2, 3, "2"],
    "temperature": [0, 0.7, 2, 1e-9],
    "top_p": [0.01, 1],
    "top_k": [-1, 0, 1, 50],
    "min_p": [0, 0.5],
    "seed": [0, -1, (1 << 63) - 1],
    "stop": ["a", ["a", "\u202e"], []],
    "stop_token_ids": [[5], []],
    "presence_penalty": [-2, 0, 2],
    "frequency_penalty": [-2, 0, 2],
    "repetition_penalty": [0.5, 1.2],
    "logit_bias": [{"5": 1.5}, {"5": -100, "6": 100}],
    "ignore_eos": [True, False],
    "skip_special_tokens": [True, False],
    "include_stop_str_in_output": [True],
    "stream": [True, False],
    "priority": [0, -5, 5],
    "cache_salt": ["salt"],
    "request_id": ["%n", "x" * 500],
    "user": ["somebody"],
    "truncate_prompt_tokens": [1, 10],
    "vllm_xargs": [{}, {"output_tokens": 3}, {"chameleon_share": "x"}, {"x": [1, 2]}],
}
COMPLETION: dict[str, list[Any]] = {
    "prompt": [[5], [[5], [6, 7]], "red", ["red", "blue"], [5] * 100],
    "logprobs": [0, 1, 5],
    "echo": [True, False],
}
CHAT: dict[str, list[Any]] = {
    "messages": [
        [{"role": "system", "content": "blue"}, {"role": "user", "content": "red"}],
        [{"role": "user", "content": [{"type": "text", "text": "red"}]}],
    ],
    "logprobs": [True, False],
    "top_logprobs": [0],
    "continue_final_message": [False],
}
WILD = (
    st.sampled_from([None, True, "", -1, 0, 1e308, 10**30, 1 << 63, "9" * 30, "\ud800", "x" * 5000])
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
)  # fmt: skip


BROKEN = {"messages"}  # vLLM itself answers with 500 where they are no list


def requests_for(path: str) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies for that route: a sound one, and of it one or two fields as clients may write them, or anything."""
    fields = SOUND | (COMPLETION if path == "/v1/completions" else CHAT)
    sound = st.sampled_from(sorted(fields)).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from(fields[name]))
    )
    wild = st.tuples(st.sampled_from(sorted(fields.keys() - BROKEN)), WILD)
    changes = st.lists(sound, min_size=1, max_size=2) | st.tuples(sound, wild) | st.tuples(wild)
    return changes.map(lambda changed: BASES[path] | dict(changed))

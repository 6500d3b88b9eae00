"""Which keys vLLM may match on module names: it runs them as expressions, and cannot stop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.adapters.patterns import MAX_KEYS, MAX_STEPS, is_literal, pattern_problems

MODULES = [f"model.layers.{n}.self_attn.{m}_proj" for n in range(80) for m in "qkvo"]


def problems(*keys: str, modules: list[str] = MODULES) -> list[str]:
    """What is wrong with these keys of rank_pattern."""
    return list(pattern_problems("rank_pattern", keys, modules))


@pytest.mark.parametrize(
    "key",
    [
        "q_proj",
        "model.layers.0.self_attn.q_proj",
        r"model\.layers\.\d+\.self_attn\.q_proj",
        r".*layers\.[0-9]\..*q_proj",
        "^model.layers.1$",
        r"layers\.[0-7]\.\w+",
    ],
)
def test_names_and_cheap_expressions_are_tried(key: str) -> None:
    """Names, ends of names, and what PEFT's users write to name many layers at once."""
    assert [] == problems(key)


@pytest.mark.parametrize(
    "key",
    [
        r"((\w|\.)+)+!",
        "(a*)*b",
        "(a|a)" * 30,
        "a?" * 30,
        "a{1,9}" * 9,
        ".*.*.*q",
        "[a-z",
        "[z-a]+",
        r"\1",
        "(?=q)",
        "q|k",
        "",
        "q" * 513,
        "q\n",
        "\u00e9",
    ],
)
def test_what_could_run_for_ever_is_refused(key: str) -> None:
    """Groups, options, a third repeat, broken and overlong expressions are named in the problem."""
    (problem,) = problems(key)
    assert "rank_pattern has the key " in problem
    assert "way out: " in problem


def test_the_number_of_keys_is_limited() -> None:
    """So many names of modules, and no more."""
    names = [f"layers.{n}.q_proj" for n in range(MAX_KEYS + 1)]
    assert [] == problems(*names[:-1])
    assert [f"rank_pattern has {MAX_KEYS + 1} keys, the limit is {MAX_KEYS}"] == [
        problem.partition(";")[0] for problem in problems(*names)
    ]


def test_the_cost_on_all_modules_is_limited() -> None:
    """Cheap on one module, too dear on very many: the limit is on the whole."""
    long_names = [f"{n}." + ".".join(["a" * 15] * 30) for n in range(1000)]
    assert [] == problems("q_proj", modules=long_names)
    (problem,) = problems(".*a.*q", modules=long_names)
    assert f"the limit is {MAX_STEPS}" in problem


SIGNS = st.sampled_from(
    ["a", ".", r"\.", r"\d", "[a-b]", "*", "+", "?", "(", ")", "|", "^", "$", "-"]
)


@pytest.mark.timeout(300)
@given(st.lists(SIGNS, max_size=12).map("".join), st.lists(st.sampled_from("ab."), max_size=60))
def test_what_is_tried_ends_soon(key: str, signs: list[str]) -> None:
    """vLLM's own matching of an accepted key raises nothing and ends.

    Of the keys that are refused some take 2^60 steps.
    """
    helper = pytest.importorskip("vllm.lora.peft_helper").PEFTHelper
    module = "".join(signs)
    if problems(key, modules=[module]):
        return
    helper._match_pattern({key: 1}, module)


@given(st.text(max_size=20))
def test_names_are_told_from_expressions(key: str) -> None:
    """A literal key holds nothing that an expression would repeat, group or choose."""
    assert not is_literal(key) or not set(key) & set("*+?()[]{}|^$\\")

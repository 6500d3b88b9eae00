"""Which key of a pattern means a module: as PEFT and vLLM have it, in a time known before."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.adapters.patterns import (
    MAX_EXPRESSIONS,
    MAX_STEPS,
    MAX_VALUES,
    exact_pattern,
    is_literal,
    key_finder,
    pattern_problems,
)

MODULES = [f"model.layers.{n}.self_attn.{m}_proj" for n in range(80) for m in "qkvo"]
Q3 = "model.layers.3.self_attn.q_proj"


def problems(*keys: str, modules: Sequence[str] = MODULES) -> list[str]:
    """What is wrong with these keys of rank_pattern."""
    return list(pattern_problems("rank_pattern", dict.fromkeys(keys, 4), modules))


@pytest.mark.parametrize(
    ("key", "is_meant"),
    [
        ("q_proj", True),
        ("proj", False),
        ("model.layers.3.self_attn.q_proj", True),
        (r"layers\.3\.self_attn\.q_proj", True),
        ("q_proj$", True),
        ("^q_proj", False),
        ("^model.layers.3", False),
        (r"model\.layers\.\d+\.self_attn\.q_proj", True),
        (r".*layers\.[0-9]\..*q_proj", True),
        (r"layers\.[4-7]\..+", False),
        (r".*\.layers\.3\..*(q_proj|k_proj|v_proj|o_proj)$", True),
        (r"model\.layers\.(?:[0-9]|1[0-5])\.self_attn\.(q|k)_proj", True),
        (r"layers\.\d{1,2}\.self_attn\.q_proj", True),
        (r"layers\.\d{2,}\.self_attn\.q_proj", False),
        (r"(?P<layer>layers\.3)\..*?q_proj", True),
        ("k_proj|q_proj", True),
        (r"(self_)?attn\.q_proj", True),
        (r"[^.]*_proj", True),
        (r"(?i)Q_PROJ", True),
    ],
)
def test_a_key_means_the_modules_that_peft_says(key: str, is_meant: bool) -> None:
    """Names, their ends, and what PEFT's documents and axolotl's users write."""
    assert [] == problems(key)
    assert (key if is_meant else None) == key_finder([key])(Q3)


def test_the_first_key_that_matches_counts() -> None:
    """Also among names and expressions."""
    keys = ["layers.7.x", r".*\.(q|k)_proj", "q_proj", r".*_proj"]
    find = key_finder(keys)
    assert [keys[1], keys[3], None] == [find(Q3), find("a.v_proj"), find("norm")]
    assert "q_proj" == key_finder(["q_proj", r".*q_proj"])(Q3)


@pytest.mark.parametrize(
    "key",
    [
        "(a|b){999}" * 50,
        "((a{99}){99}){99}",
        "[a-z",
        "[z-a]+",
        r"(a)\1",
        "(?=q)q_proj",
        "(?<!k)q_proj",
        "a)|(q_proj",
        "a{,9}",
        "",
        "*",
        "q" * 513 + "+",
        "\ud800+",
    ],
)
def test_what_has_no_known_bound_is_refused(key: str) -> None:
    """What looks around or back, broken, overlong and overlarge expressions are named in the problem."""
    (problem,) = problems(key)
    assert "rank_pattern has the key " in problem
    assert "way out: " in problem


@pytest.mark.timeout(60)
@pytest.mark.parametrize("key", [r"((\w|\.)+)+!", "(a*)*b", "(?:(?:a?){99}){9}b", "(.*)*(.*)*x"])
def test_what_would_backtrack_for_hours_is_only_no_match(key: str) -> None:
    """No name takes longer than its length times the expression's size."""
    long_name = ".".join(["a" * 15] * 30)
    assert [] == problems(key, modules=[long_name])
    assert key_finder([key])(long_name) is None


def test_names_are_not_counted_as_expressions() -> None:
    """A name for each of a large model's modules is fine; so many expressions are not."""
    modules = [f"model.layers.{n}.mlp.experts.{m}.up_proj" for n in range(60) for m in range(128)]
    assert [] == problems(*modules, modules=modules)
    many = [f"layers[.]{n}" for n in range(MAX_EXPRESSIONS + 1)]
    assert [] == problems(*many[:-1], modules=[Q3])
    (problem,) = problems(*many, modules=[Q3])
    assert f"rank_pattern has {MAX_EXPRESSIONS + 1} expressions, the limit is" in problem


def test_the_cost_on_all_modules_is_limited() -> None:
    """Cheap on one module, too dear on very many: the limit is on the whole."""
    long_names = [f"{n}." + ".".join(["a" * 15] * 30) for n in range(20_000)]
    (problem,) = problems(".*a.*q(a|b)", modules=long_names)
    assert f"the limit is {MAX_STEPS}" in problem


def test_the_cost_to_the_engine_is_limited() -> None:
    """Names that have nothing in common are tried one after the other there."""
    flat = [f"q_proj{n}" for n in range(20_000)]
    assert [] == problems("q_proj", modules=flat)
    (problem,) = problems(*flat, modules=flat)
    assert f"the limit is {MAX_STEPS}" in problem


def test_the_number_of_different_values_is_limited() -> None:
    """The engine tries one expression for each."""
    pattern = {f"layers.{n}": float(n) for n in range(MAX_VALUES + 1)}
    (problem,) = pattern_problems("alpha_pattern", pattern, MODULES)
    assert problem.startswith(f"alpha_pattern has {MAX_VALUES + 1} different values")


SIGNS = st.sampled_from(
    ["a", ".", r"\.", r"\d", "[a-b]", "*", "+", "?", "(", ")", "|", "^", "$", "-", "{2}", "b"]
)
NAMES = st.lists(st.sampled_from("ab."), max_size=8).map("".join)


@pytest.mark.timeout(300)
@given(st.lists(st.lists(SIGNS, max_size=8).map("".join), max_size=3), st.lists(NAMES, max_size=4))
def test_the_engine_finds_what_the_keys_say(keys: list[str], modules: list[str]) -> None:
    """vLLM's own matching gives each module the same value, with the keys and with our names for them."""
    helper = pytest.importorskip("vllm.lora.peft_helper").PEFTHelper
    match = getattr(helper, "_match_pattern", None)
    if match is None:
        pytest.skip("this vLLM reads no patterns")
    pattern = {key: float(place) for place, key in enumerate(keys)}
    if list(pattern_problems("rank_pattern", pattern, modules)):
        return
    exact = exact_pattern(pattern, modules)
    asked = {
        key.replace("\\", "").replace(".", r"\.") if is_literal(key) else key: value
        for key, value in pattern.items()
    }  # a name's dots are dots
    for module in modules:
        assert match(asked, module) == match(exact, module)


@given(st.text(max_size=20))
def test_names_are_told_from_expressions(key: str) -> None:
    """A literal key holds nothing that an expression would repeat, group or choose."""
    assert not is_literal(key) or not set(key.removesuffix("$")) & set("*+?()[]{}|^$")

"""What the GPU run takes for wrong."""

from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch")
from chameleon_lora.engine_vllm.measure.offline import OfflineQuestion, Wave
from experiments.gpu.outcome import StageResults, read_results
from experiments.gpu.proof import (
    Likeness,
    faults_of,
    is_anothers,
    known_answers,
    likeness,
    shared_length,
    wrong_adapters,
)

pytestmark = pytest.mark.slow  # torch is imported
SAID: dict[str | None, list[int]] = {"a": [5, 6, 7, 8], "b": [1, 2, 3, 4], None: [9, 9, 9, 9]}
ASKED: tuple[str | None, ...] = (None, "a", "b")


def question(adapter: str | None) -> OfflineQuestion:
    """The one prompt, put to this adapter."""
    return OfflineQuestion(prompt=[4, 4], adapter=adapter, tokens=4)


def waves() -> list[Wave]:
    """A warm-up; each alone, twice; a batch of both adapters, twice."""
    singles = [[question(adapter)] for adapter in ASKED]
    batch = [question("a"), question("b")]
    return [
        Wave(questions=asked, before="nothing")
        for asked in ([question("a")], *singles, *singles, batch, batch)
    ]


def answers(**said: list[int]) -> list[list[list[int]]]:
    """What an engine says that answers as stock does, but for these adapters."""
    return [
        [said.get(str(q["adapter"]), SAID[q["adapter"]]) for q in wave["questions"]]
        for wave in waves()
    ]


def faults(tmp_path: Path, stock: Sequence[list[list[int]]], **ours: list[int]) -> list[str]:
    """What is wrong with ours."""
    return faults_of(StageResults(tmp_path / "proof.found"), waves(), stock, answers(**ours))


def test_equal_answers_have_no_fault_and_all_swaps_would_be_seen(tmp_path: Path) -> None:
    """Both adapters' answers given for each other's."""
    assert [] == faults(tmp_path, answers())
    found = read_results(tmp_path / "proof.found")
    assert (2, 2, 0) == (found["swaps"], found["swaps_seen"], found["wrong_adapters"])


def test_one_token_that_differs_is_a_fault_where_stock_repeats_itself(tmp_path: Path) -> None:
    """In both parts: alone and in batches."""
    found = faults(tmp_path, answers(), a=[5, 6, 7, 1])
    assert [
        "batch 1: 2 of 6 answers differ from stock's, 0 of 3 of stock's from its own",
        "fixed batch: 2 of 4 answers differ from stock's, 0 of 2 of stock's from its own",
    ] == found


def test_answers_may_differ_where_stocks_own_do(tmp_path: Path) -> None:
    """Stock says something else to the same question the second time."""
    stock = answers()
    stock[5], stock[7][0] = [[5, 6, 1, 1]], [5, 6, 1, 1]
    assert [] == faults(tmp_path, stock)


def test_another_adapters_answer_is_a_fault(tmp_path: Path) -> None:
    """It is named as such, whatever else differs."""
    assert "4 answers are another adapter's" in faults(tmp_path, answers(), a=SAID["b"])


def test_adapters_that_answer_alike_prove_nothing(tmp_path: Path) -> None:
    """A swap of them would not be noticed, which is said."""
    alike = answers(b=SAID["a"])
    found = faults(tmp_path, alike, b=SAID["a"])
    assert ["of 2 swapped answers only 0 would be noticed"] == found


def test_the_base_models_answers_and_unknown_prompts_are_not_counted() -> None:
    """There is nothing to set them beside."""
    known = known_answers(waves(), answers())
    asked = [question(None), OfflineQuestion(prompt=[7], adapter="a", tokens=4), question("a")]
    assert 1 == wrong_adapters(asked, [SAID["b"], SAID["b"], SAID["b"]], known)


BY_ADAPTER = {"a": [5, 6, 7, 8], "b": [5, 9, 7, 8], "c": [1, 2, 3, 4]}


def test_likeness_counts_whole_answers_and_first_tokens() -> None:
    """And names the places that differ."""
    expected = [[1, 2], [3, 4], [5, 6]]
    assert Likeness(3, 1, 2, (1, 2)) == likeness(expected, [[1, 2], [3, 5], [6, 6]])


def test_an_answer_that_follows_another_adapters_is_seen() -> None:
    """Also where both begin alike."""
    assert is_anothers(BY_ADAPTER["c"], "a", BY_ADAPTER)
    assert is_anothers([5, 9, 7, 1], "a", BY_ADAPTER)


def test_an_answer_that_leaves_its_own_late_or_for_nobodys_is_not_anothers() -> None:
    """Numbers that differ in the last place change a token now and then."""
    assert not is_anothers([5, 6, 7, 1], "a", BY_ADAPTER)
    assert not is_anothers([9, 9, 9, 9], "a", BY_ADAPTER)
    assert not is_anothers([5, 9, 1, 1], "a", BY_ADAPTER)


def test_the_shared_length_ends_at_the_first_difference_or_at_the_shorter_end() -> None:
    """However long the other is."""
    assert [2, 2, 0] == [shared_length([1, 2], other) for other in ([1, 2, 3], [1, 2], [2])]

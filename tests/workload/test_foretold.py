"""Output lengths foretold with the errors of a predictor."""

import csv
import gzip
import random
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.foretold import (
    SSJF_CUT_SHARES,
    SSJF_CUTS_TOKENS,
    SSJF_ERRORS,
    LengthClasses,
    OutputGuess,
    bert_like,
    noisy_oracle,
    oracle,
    per_request,
    read_ssjf_predictions,
)
from chameleon_lora.workload.requests import TimedRequest

HALVES = (0.5,)
LENGTHS = tuple(range(1, 1001))
HEADER = ",output_token_length,predicted_length,latency,model\n"


def accuracy(guess: OutputGuess, lengths: Sequence[int], shares: Sequence[float]) -> float:
    """Share of the lengths whose guess falls in their class."""
    classes, rng = LengthClasses(lengths, shares), random.Random(1)
    right = [classes.index(n) == classes.index(guess(n, rng)) for n in lengths]
    return sum(right) / len(right)


def test_an_oracle_says_the_truth() -> None:
    """Whatever chance says; an answer of nothing counts as one token."""
    assert [7, 900, 1] == [oracle(tokens, random.Random(0)) for tokens in (7, 900, 0)]


@pytest.mark.parametrize("shares", [HALVES, SSJF_CUT_SHARES])
@pytest.mark.parametrize("wanted", [0.0, 0.6, 0.8, 1.0])
def test_a_noisy_oracle_is_as_often_right_as_it_is_set(
    wanted: float, shares: Sequence[float]
) -> None:
    """By class, to 4 % over 1,000 lengths; a right guess is the truth, a wrong one is not."""
    guess = noisy_oracle(LENGTHS, wanted, shares)
    assert wanted == pytest.approx(accuracy(guess, LENGTHS, shares), abs=0.04)
    rng = random.Random(2)
    exact = sum(tokens == guess(tokens, rng) for tokens in LENGTHS)
    assert wanted == pytest.approx(exact / len(LENGTHS), abs=0.04)


def test_wrong_guesses_are_other_lengths_of_the_workload() -> None:
    """Of 10, 20, 30 and 40 cut in halves, 10 is taken for 30 or 40 and both do come."""
    guess, rng = noisy_oracle((10, 20, 30, 40), 0.0, HALVES), random.Random(3)
    assert {30, 40} == {guess(10, rng) for _ in range(50)}
    assert {10, 20} == {guess(30, rng) for _ in range(50)}


def test_where_all_lengths_are_alike_no_guess_is_wrong() -> None:
    """There is no other class to draw from."""
    guess = noisy_oracle((50, 50, 50), 0.0)
    assert 50 == guess(50, random.Random(0))
    assert 50 == bert_like((50, 50, 50))(50, random.Random(0))


@pytest.mark.parametrize("wrong", [-0.1, 1.1])
def test_an_accuracy_is_a_probability(wrong: float) -> None:
    """Others are refused with the way out."""
    with pytest.raises(ConfigError, match=r"use 0 to 1"):
        noisy_oracle(LENGTHS, wrong)


def test_a_workload_without_requests_has_no_lengths_to_draw() -> None:
    """It is refused for both kinds of error."""
    for make in (bert_like, lambda lengths: noisy_oracle(lengths, 0.5)):
        with pytest.raises(ConfigError, match="without requests"):
            make(())


def test_a_bert_errs_as_published() -> None:
    """0.60 right in five classes, on lengths of another workload, and 0.84 in halves."""
    lengths = [round(random.Random(n).lognormvariate(4.0, 1.0)) + 1 for n in range(20_000)]
    guess = bert_like(lengths)
    assert 0.60 == pytest.approx(accuracy(guess, lengths, SSJF_CUT_SHARES), abs=0.015)
    assert 0.84 == pytest.approx(accuracy(guess, lengths, HALVES), abs=0.015)


def test_a_bert_tells_classes_apart_and_no_more() -> None:
    """Five different answers: the medians of the classes."""
    rng = random.Random(4)
    guess = bert_like(LENGTHS)
    assert {125, 375, 625, 870, 995} == {guess(tokens, rng) for tokens in LENGTHS}


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=30),
    share=st.sampled_from((0.0, 0.5, 1.0)),
    seed=st.integers(0, 9),
)
def test_guesses_are_possible_lengths(lengths: list[int], share: float, seed: int) -> None:
    """At least one token wherever one is drawn, and the same for the same chance."""
    for guess in (noisy_oracle(lengths, share), bert_like(lengths)):
        for tokens in lengths:
            said = guess(tokens, random.Random(seed))
            assert said == guess(tokens, random.Random(seed))
            assert 1 <= said <= max(1, *lengths)


def test_a_request_is_foretold_the_same_in_any_order() -> None:
    """Its chance comes from the seed and its index."""
    requests = [TimedRequest(n, 0.1 * n, None, 10, 1 + n * 37 % 1000) for n in range(50)]
    foretell = per_request(bert_like(LENGTHS), seed=5)
    forwards = {request.index: foretell(request) for request in requests}
    backwards = {request.index: foretell(request) for request in reversed(requests)}
    assert forwards == backwards
    other = per_request(bert_like(LENGTHS), seed=6)
    assert list(forwards.values()) != [other(request) for request in requests]


def count_errors(predictions: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """How often each true class (rows) was given each class (columns)."""
    counts = [[0] * len(SSJF_ERRORS) for _ in SSJF_ERRORS]
    for output_tokens, predicted in predictions:
        counts[bisect_right(SSJF_CUTS_TOKENS, output_tokens)][predicted] += 1
    return tuple(tuple(row) for row in counts)


def test_predictions_are_read_and_counted(tmp_path: Path) -> None:
    """Two short answers, of which one was taken for the next class."""
    path = tmp_path / "predictions.csv.gz"
    rows = "0,40,1,0.02,vicuna-13b\n1,12,0,0.01,vicuna-13b\n"
    path.write_bytes(gzip.compress(f"{HEADER}{rows}".encode()))
    predictions = read_ssjf_predictions(path)
    assert ((40, 1), (12, 0)) == predictions
    assert (1, 1, 0, 0, 0) == count_errors(predictions)[0]


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file without the columns is an error that names its own."""
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", "utf8")
    with pytest.raises(ConfigError, match=r"has the columns \['a', 'b'\]"):
        read_ssjf_predictions(path)


@pytest.mark.parametrize("row", ["0,forty,1,0.02,m", "0,40,5,0.02,m", "0,-1,1,0.02,m", "0,40"])
def test_a_malformed_line_is_named(tmp_path: Path, row: str) -> None:
    """With the file, the line and what was expected."""
    path = tmp_path / "predictions.csv"
    path.write_text(f"{HEADER}0,40,1,0.02,m\n{row}\n", "utf8")
    with pytest.raises(ConfigError, match=r"predictions.csv', line 3: .*a class of 0 to 4"):
        read_ssjf_predictions(path)


def test_the_table_is_what_was_published(data_dir: Path, tmp_path: Path) -> None:
    """The committed counts are those of all 85,482 published predictions, made again."""
    path = tmp_path / "predictions.csv.gz"
    with (
        gzip.open(data_dir / "ssjf_bert_counts.csv.gz", "rt", encoding="utf8") as counts,
        gzip.open(path, "wt", encoding="utf8", compresslevel=1) as predictions,
    ):
        predictions.write(HEADER)
        for row in csv.DictReader(counts):
            line = f"0,{row['output_token_length']},{row['predicted_length']},0.02,m\n"
            predictions.write(line * int(row["requests"]))
    found = read_ssjf_predictions(path)
    assert 85_482 == len(found)
    assert count_errors(found) == SSJF_ERRORS

"""The learner of words: what prompts tell beyond their adapter, and what that may cost."""

import random

import pytest

from chameleon_lora.policy.estimate.words import (
    CELL_BITS,
    OWN_AFTER,
    WordLearner,
)
from chameleon_lora.policy.request import MOST_WORDS, AdapterId, Request, RequestId, excerpt

LIST, POEM, NOISE = 1, 2, range(10, 60)


def make() -> WordLearner:
    """A learner that believes in 100 tokens."""
    return WordLearner(64, 100, 4.0)


def asked(adapter_id: int | None, *words: int, tokens: int = 20) -> Request:
    """A request with these words in its prompt."""
    named = None if adapter_id is None else AdapterId(adapter_id)
    return Request(RequestId("r"), named, tokens, 10_000, None, words)


def teach(learner: WordLearner, adapter_id: int | None, count: int, seed: int = 1) -> None:
    """Lists take 20 tokens and poems 400, among other words that mean nothing."""
    rng = random.Random(seed)
    for _ in range(count):
        word = rng.choice((LIST, POEM))
        request = asked(adapter_id, word, *rng.sample(NOISE, 4))
        learner.observe(request, 20 if word == LIST else 400)


def test_the_first_prediction_is_the_belief() -> None:
    """Whatever the words are."""
    assert 100.0 == pytest.approx(make().predict(asked(1, LIST, 7)))


def test_words_tell_short_answers_from_long_ones() -> None:
    """After 1,000 of one adapter each is taken for what it is, to a factor of 1.5."""
    learner = make()
    teach(learner, 1, 1000)
    assert 20 == pytest.approx(learner.predict(asked(1, LIST, 11, 12)), rel=0.5)
    assert 400 == pytest.approx(learner.predict(asked(1, POEM, 11, 12)), rel=0.34)


def test_an_unseen_adapter_has_what_words_mean_elsewhere() -> None:
    """Its first request for a poem is taken for longer than its first for a list."""
    learner = make()
    teach(learner, 1, 200)
    assert learner.predict(asked(2, LIST, 11)) * 2 < learner.predict(asked(2, POEM, 11))


def test_an_adapter_moves_its_predictions_without_a_new_meaning() -> None:
    """Ten answers of one that writes ten times as much as others lift what is expected of it."""
    learner = make()
    teach(learner, 1, 200)
    before = learner.predict(asked(2, LIST, 11))
    for _ in range(10):
        learner.observe(asked(2, LIST, 11), 200)
    assert before * 2 < learner.predict(asked(2, LIST, 11))
    assert learner.predict(asked(1, LIST, 11)) < 60


def test_an_adapter_may_mean_the_opposite_by_a_word() -> None:
    """With many requests seen it has weights of its own: here its lists are long, its poems short."""
    learner = make()
    rng = random.Random(2)
    for _ in range(6 * OWN_AFTER):
        adapter_id, word = rng.choice((1, 2)), rng.choice((LIST, POEM))
        is_long = (word == POEM) == (adapter_id == 1)
        learner.observe(asked(adapter_id, word, *rng.sample(NOISE, 4)), 400 if is_long else 20)
    for adapter_id, short, long in ((1, LIST, POEM), (2, POEM, LIST)):
        ratio = learner.predict(asked(adapter_id, long)) / learner.predict(asked(adapter_id, short))
        assert ratio > 3


def test_the_prompts_length_counts() -> None:
    """Where long prompts have long answers, a long prompt of unknown words is taken for long."""
    learner = make()
    for turn in range(300):
        tokens = 1000 if turn % 2 else 10
        learner.observe(asked(1, 100 + turn, tokens=tokens), 400 if turn % 2 else 20)
    short, long = (learner.predict(asked(1, 5000, tokens=tokens)) for tokens in (10, 1000))
    assert short * 2 < long


def test_run_away_answers_teach_little() -> None:
    """Every tenth answer never ends: lists are still taken for under 35 tokens instead of 20."""
    learner, rng = make(), random.Random(1)
    for turn in range(1000):
        word = rng.choice((LIST, POEM))
        tokens = 20 if word == LIST else 400
        request = asked(1, word, *rng.sample(NOISE, 4))
        learner.observe(request, tokens if turn % 10 else 1_000_000)
    assert 20 == pytest.approx(learner.predict(asked(1, LIST, 11, 12)), abs=15)


def test_memory_does_not_grow_with_words() -> None:
    """100,000 different words share the cells there are."""
    learner = make()
    for first in range(0, 100_000, 100):
        learner.observe(asked(None, *range(first, first + 100)), 50)
    assert 1 << CELL_BITS == len(learner._weights) == len(learner._squares)
    assert 50 == pytest.approx(learner.predict(asked(None, 7)), rel=0.2)


def test_a_forgotten_adapter_is_an_unknown_one() -> None:
    """Also one that had weights of its own; and what it taught of words in general stays."""
    learner = make()
    teach(learner, 1, OWN_AFTER + 10)
    question = (LIST, 11, 12)
    learner.forget(AdapterId(1))
    learner.forget(AdapterId(9))
    assert learner.predict(asked(2, *question)) == learner.predict(asked(1, *question))
    assert learner.predict(asked(1, LIST)) * 2 < learner.predict(asked(1, POEM))


def test_a_short_prompt_is_looked_at_whole() -> None:
    """Up to 128 words."""
    words = list(range(MOST_WORDS))
    assert tuple(words) == excerpt(words)
    assert () == excerpt([])


def test_of_a_long_prompt_both_ends_are_looked_at() -> None:
    """64 from the beginning and 64 from the end of 1,000."""
    assert (*range(64), *range(936, 1000)) == excerpt(range(1000))


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_the_shortest_prompts_have_a_length_too(tokens: int) -> None:
    """Each is learned as its own."""
    learner = make()
    for _ in range(50):
        learner.observe(asked(1, tokens=tokens), 10)
        learner.observe(asked(1, tokens=4096), 1000)
    assert learner.predict(asked(1, tokens=tokens)) < learner.predict(asked(1, tokens=4096))

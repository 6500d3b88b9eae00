"""What stock vLLM answers: the truth that Chameleon's answers are compared with."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.servers.process import running_server
from faults.adapter_fixtures import AdapterFixtures
from tests.live.client import Question, with_client
from tests.live.servers import BASE, NAMES, WEIGHTS, stock_spec

_FIRST_TEXT_TOKEN, _VOCABULARY = 3, 512  # those before are special


def _random_prompt(seed: int, tokens: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(_FIRST_TEXT_TOKEN, _VOCABULARY) for _ in range(tokens))


PROMPTS = tuple(_random_prompt(seed, 6 + 7 * seed) for seed in range(5))
"""6 to 34 tokens."""
INTERLEAVED = [(name, prompt) for prompt in PROMPTS for name in NAMES]
"""45: each adapter and the base model in turn, with one prompt after the other."""
TALE = _random_prompt(98, 12)
"""A prompt whose answer is known for TALE_TOKENS, long enough for much to happen meanwhile."""
TALE_TOKENS = 320
BOOK = _random_prompt(99, 300)
"""A prompt of several prefix-cache blocks."""
TALE_TELLERS: tuple[int | None, ...] = (None, 0, 1, 2, 3)
"""The weights whose TALE is known; None is the base model."""
ANSWER_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Stock:
    """Answers of vLLM without Chameleon, each taken with nothing else in the batch."""

    answers: dict[tuple[int | None, tuple[int, ...]], tuple[int, ...]]

    def answer(self, weights: int | None, prompt: tuple[int, ...], tokens: int) -> tuple[int, ...]:
        """The first tokens of the answer; None asks the base model."""
        known = self.answers[weights, prompt]
        assert tokens <= len(known)
        return known[:tokens]

    @classmethod
    def ask(cls, fixtures: AdapterFixtures, log: Path) -> "Stock":
        """Starts stock vLLM, asks everything one by one, and stops it."""
        asked = list(_all_questions())
        questions = [
            Question(BASE if weights is None else f"w{weights}", prompt, tokens)
            for weights, prompt, tokens in asked
        ]
        with running_server(stock_spec(fixtures, log)) as url:
            replies = with_client(url, lambda client: client.ask_all(questions, at_once=1))
        return cls(
            {
                (weights, prompt): reply.tokens
                for (weights, prompt, _), reply in zip(asked, replies, strict=True)
            }
        )


def _all_questions() -> Iterable[tuple[int | None, tuple[int, ...], int]]:
    for weights in (None, *WEIGHTS):  # the base model first, while no slot is in use
        for prompt in (*PROMPTS, BOOK):
            yield weights, prompt, ANSWER_TOKENS
        if weights in TALE_TELLERS:
            yield weights, TALE, TALE_TOKENS

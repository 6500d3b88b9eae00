"""What a predictor would have said of a request's output length, made from the true one.

For simulations: an `OutputGuess` gets the true length and answers what is foretold. Wrong guesses are
drawn, and always from lengths of the same workload.
"""

import csv
import gzip
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median_low

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.reading import MalformedError, in_line
from chameleon_lora.workload.requests import TimedRequest

OutputGuess = Callable[[int, random.Random], int]
"""True output tokens and a source of chance to foretold ones, >= 1."""

SSJF_CUT_SHARES = (0.25, 0.5, 0.75, 0.99)
"""Where SSJF cuts the output lengths of its data into five classes, as shares of the requests."""

SSJF_CUTS_TOKENS = (42, 141, 294, 503)
"""The same cuts in its data, in tokens; a class begins at its cut."""

SSJF_ERRORS: tuple[tuple[int, ...], ...] = (
    (17290, 3290, 648, 355, 90),
    (3273, 11969, 4095, 1605, 204),
    (643, 4582, 9680, 5855, 454),
    (275, 1450, 5266, 12148, 1466),
    (14, 45, 133, 447, 205),
)
"""How often requests of each true class (rows) were given each class (columns) by a BERT.

Counted over the 85,482 test predictions that Qiu et al. published with "Efficient Interactive LLM Serving with Proxy Model-based Sequence Length
Prediction" (SSJF, 2024): github.com/James-QiuHaoran/LLM-serving-with-proxy-models, Apache-2.0.
"""


class LengthClasses:
    """The output lengths of a workload, cut into classes of given shares."""

    def __init__(self, lengths: Sequence[int], shares: Sequence[float]) -> None:
        """Classes end at these shares of the ordered lengths.

        Raises:
            ConfigError: there are no lengths.
        """
        if not lengths:
            raise ConfigError("output lengths cannot be foretold for a workload without requests")
        self.ordered = sorted(lengths)
        self.cuts = tuple(self.ordered[int(len(lengths) * share)] for share in shares)

    def index(self, output_tokens: int) -> int:
        """The class of a length, counted from 0."""
        return bisect_right(self.cuts, output_tokens)

    def span(self, index: int) -> tuple[int, int]:
        """Where the lengths of a class begin and end among the ordered ones; alike if it has none."""
        cuts = [bisect_left(self.ordered, cut) for cut in self.cuts]
        bounds = (0, *cuts, len(self.ordered))
        return bounds[index], bounds[index + 1]


def oracle(output_tokens: int, rng: random.Random) -> int:  # noqa: ARG001  # an OutputGuess
    """The truth, or 1 for an answer of no token."""
    return max(1, output_tokens)


def noisy_oracle(
    lengths: Sequence[int], accuracy: float, shares: Sequence[float] = SSJF_CUT_SHARES
) -> OutputGuess:
    """The truth with a probability of `accuracy`, else a length of the workload in another class.

    Raises:
        ConfigError: `accuracy` is no probability, or there are no lengths.
    """
    if not 0.0 <= accuracy <= 1.0:
        raise ConfigError(f"an accuracy of {accuracy} is no probability; use 0 to 1")
    classes = LengthClasses(lengths, shares)
    spans = [classes.span(index) for index in range(len(shares) + 1)]

    def guess(output_tokens: int, rng: random.Random) -> int:
        is_right = rng.random() < accuracy
        begin, end = spans[classes.index(output_tokens)]
        others = len(lengths) - (end - begin)
        place = rng.randrange(max(1, others))
        if is_right or not others:
            return max(1, output_tokens)
        return max(1, classes.ordered[place if place < begin else place + end - begin])

    return guess


def bert_like(lengths: Sequence[int]) -> OutputGuess:
    """A class drawn as a BERT would choose it (`SSJF_ERRORS`), told as the median length of that class.

    Classes hold the same shares of this workload as of the BERT's own data.

    Raises:
        ConfigError: there are no lengths.
    """
    classes = LengthClasses(lengths, SSJF_CUT_SHARES)
    typical = [_typical_tokens(classes, index) for index in range(len(SSJF_ERRORS))]

    def guess(output_tokens: int, rng: random.Random) -> int:
        return rng.choices(typical, SSJF_ERRORS[classes.index(output_tokens)])[0]

    return guess


def per_request(guess: OutputGuess, seed: int) -> Callable[[TimedRequest], int]:
    """The guess with chance of each request's own: another order or rate changes no answer."""
    return lambda request: guess(
        request.output_tokens, random.Random(f"{seed}:foretold:{request.index}")
    )


def read_ssjf_predictions(path: Path) -> tuple[tuple[int, int], ...]:
    """True output tokens and predicted class of each request; `.gz` is unpacked.

    Raises:
        ConfigError: the file lacks the columns of SSJF's published predictions, or a line has
            something else in them.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf8", newline="") as lines:
        rows = csv.DictReader(lines)
        if not {"output_token_length", "predicted_length"} <= set(rows.fieldnames or ()):
            raise ConfigError(
                f"{path} has the columns {rows.fieldnames}; SSJF's predictions have "
                "output_token_length and predicted_length"
            )
        return tuple(_prediction(path, rows.line_num, row) for row in rows)


def _prediction(path: Path, number: int, row: Mapping[str, str]) -> tuple[int, int]:
    try:
        output_tokens, predicted = int(row["output_token_length"]), int(row["predicted_length"])
        if output_tokens < 0 or not 0 <= predicted < len(SSJF_ERRORS):
            raise ValueError
    except (TypeError, ValueError) as error:
        malformed = MalformedError(
            list(row.values()), "a length of 0 or more and a class of 0 to 4"
        )
        raise in_line(path, number, malformed) from error
    return output_tokens, predicted


def _typical_tokens(classes: LengthClasses, index: int) -> int:
    """The median of a class; of an empty one, where it would begin or end."""
    begin, end = classes.span(index)
    if begin < end:
        return max(1, median_low(classes.ordered[begin:end]))
    return max(1, classes.cuts[min(index, len(classes.cuts) - 1)])

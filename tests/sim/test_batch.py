"""The batch that costs O(1) a step, against one that walks all its requests."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.policy.request import AdapterId, RequestId
from chameleon_lora.sim.batch import Batch, RunningRequest
from chameleon_lora.workload.requests import TimedRequest

PICKS = st.integers(0, 1 << 16)


class PlainRequest:
    """A request of the plain batch: its tokens in the cache, and what it generated."""

    def __init__(self, run: RunningRequest) -> None:
        self.run = run
        self.left = run.left_tokens
        self.tokens = 0
        self.generated = run.generated
        self.is_decoding = False

    @property
    def is_over(self) -> bool:
        """True with all its tokens."""
        return self.generated >= self.run.request.output_tokens


def plain_prefill(
    batch: dict[RequestId, PlainRequest], budget: int | None
) -> tuple[list[PlainRequest], int]:
    """Prompts computed one token at a time, oldest request first; answers whose are complete."""
    complete, pairs = [], 0
    for plain in batch.values():
        if plain.is_decoding or not plain.left:
            continue
        while plain.left and (budget is None or budget > 0):
            budget = None if budget is None else budget - 1
            plain.left -= 1
            pairs += plain.tokens
            plain.tokens += 1
        if not plain.left:
            complete.append(plain)
    return complete, pairs


class BatchMachine(RuleBasedStateMachine):
    """Requests come, are computed, decode, end or are taken out, in any order an engine allows."""

    @initialize(block=st.sampled_from((1, 2, 3, 16)))
    def start(self, block: int) -> None:
        self.block = block
        self.batch = Batch(block)
        self.plain: dict[RequestId, PlainRequest] = {}
        self.count = 0
        self.out: list[PlainRequest] = []

    @rule(
        tokens=st.integers(1, 40),
        output=st.integers(1, 40),
        adapter=st.none() | st.integers(1, 3),
    )
    def admit(self, tokens: int, output: int, adapter: int | None) -> None:
        """A new request."""
        self.count += 1
        named = None if adapter is None else f"a{adapter}"
        self.enter(TimedRequest(self.count, 0.0, named, tokens, output), 0)

    @precondition(lambda self: self.out)
    @rule(pick=PICKS)
    def come_back(self, pick: int) -> None:
        """One that was taken out: its prompt and what it generated are to be computed again."""
        plain = self.out.pop(pick % len(self.out))
        self.enter(plain.run.request, plain.generated)

    def enter(self, request: TimedRequest, generated: int) -> None:
        """The request is in both batches."""
        adapter_id = AdapterId(int(request.adapter[1:])) if request.adapter else None
        run = RunningRequest(
            request_id=RequestId(str(request.index)),
            request=request,
            adapter_id=adapter_id,
            rank=8 * (adapter_id or 0),
            left_tokens=request.input_tokens + generated,
            generated=generated,
        )
        self.batch.admit(run)
        self.plain[run.request_id] = PlainRequest(run)

    @precondition(lambda self: self.batch.prefilling)
    @rule(budget=st.none() | st.integers(0, 60))
    def prefill(self, budget: int | None) -> None:
        """A step that computes prompts; those complete get a token."""
        before = [plain.left for plain in self.plain.values()]
        work = StepWork()
        complete = self.batch.prefill(budget, work)
        expected, pairs = plain_prefill(self.plain, budget)
        assert [plain.run for plain in expected] == complete
        taken = [b - p.left for b, p in zip(before, self.plain.values(), strict=True)]
        ranks = [plain.run.rank for plain in self.plain.values()]
        assert sum(taken) == work.prefill_tokens
        assert sum(t * r for t, r in zip(taken, ranks, strict=True)) == work.lora_prefill_ranks
        # Half a token of its own: a prompt token is taken to attend to half of its like.
        assert pairs + sum(taken) / 2 == work.attention_pairs
        for plain in expected:
            plain.is_decoding = True
            plain.generated += 1
            assert (not plain.is_over) is self.batch.join(plain.run)
            if plain.is_over:
                del self.plain[plain.run.request_id]

    @precondition(lambda self: self.batch.decoding)
    @rule(steps=st.integers(1, 50))
    def decode(self, steps: int) -> None:
        """As many steps as nobody ends before, at once."""
        decoding = [plain for plain in self.plain.values() if plain.is_decoding]
        to_end = min(p.run.request.output_tokens - p.generated for p in decoding)
        assert to_end == self.batch.steps_to_end()
        steps = min(steps, to_end)
        assert self.growth(decoding, steps) == self.batch.growth_blocks_in(steps)
        assert (
            self.growth(decoding, 1) == self.batch.growth_blocks() == self.batch.growth_blocks_in(1)
        )
        self.batch.decode(steps)
        for plain in decoding:
            plain.tokens += steps
            plain.generated += steps
        over = [plain.run for plain in decoding if plain.is_over]
        ended = self.batch.ended()
        assert sorted(run.request_id for run in over) == sorted(run.request_id for run in ended)
        for run in over:
            plain = self.plain.pop(run.request_id)
            assert (plain.tokens, plain.generated) == (run.tokens, run.generated)

    def growth(self, decoding: list[PlainRequest], steps: int) -> int:
        """Blocks that these take in so many steps."""
        now = sum(self.blocks(plain.tokens) for plain in decoding)
        return sum(self.blocks(plain.tokens + steps) for plain in decoding) - now

    @precondition(lambda self: self.plain)
    @rule(pick=PICKS)
    def take_out(self, pick: int) -> None:
        """A request leaves before its end, and may come back."""
        plain = self.plain.pop(list(self.plain)[pick % len(self.plain)])
        self.batch.remove(plain.run)
        assert plain.generated == plain.run.generated
        assert plain.tokens == plain.run.tokens
        self.out.append(plain)

    def blocks(self, tokens: int) -> int:
        """Whole blocks."""
        return (tokens + self.block - 1) // self.block

    @invariant()
    def counts_agree(self) -> None:
        """Blocks, context, ranks and adapters are the sums over all who run."""
        if not hasattr(self, "batch"):
            return
        plain, batch, work = self.plain.values(), self.batch, StepWork()
        decoding = [item for item in plain if item.is_decoding]
        batch.load(work)
        assert list(self.plain) == list(batch.runs)
        assert sum(self.blocks(item.tokens + item.left) for item in plain) == batch.used_blocks
        assert len(decoding) == batch.decoding == work.decode_requests
        assert sum(item.tokens for item in decoding) == work.context_tokens
        assert sum(item.run.rank for item in decoding) == work.lora_decode_ranks
        ranks = {i.run.adapter_id: i.run.rank for i in plain if i.run.adapter_id is not None}
        assert (len(ranks), sum(ranks.values())) == (work.adapters, work.adapter_ranks)


TestBatchMachine = BatchMachine.TestCase

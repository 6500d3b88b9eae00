"""Agreement: ranks at different speeds come to the same acks at the same moments."""

from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chameleon_lora.policy.plan import Fault

pytest.importorskip("torch")

from chameleon_lora.engine_vllm.messages import (
    Loaded,
    LoadFailed,
    Promoted,
    PromotionFailed,
)
from chameleon_lora.engine_vllm.worker.agreement import Agreement, News, gather_of_one

RANKS = 3
IDS = st.integers(1, 3)


class Ranks:
    """Three ranks of one engine, which get the same commands and settle at the same moments."""

    def __init__(self) -> None:
        self.told: list[list[News]] = [[] for _ in range(RANKS)]
        self.agreements = [Agreement(lambda _: self.told) for _ in range(RANKS)]

    def settle(self) -> list[News]:
        """What all agree on; they must agree on that."""
        found = [one.settle(news) for one, news in zip(self.agreements, self.told, strict=True)]
        self.told = [[] for _ in range(RANKS)]
        assert [found[0]] * RANKS == found
        return found[0]


@pytest.fixture
def ranks() -> Ranks:
    """With a load and a promotion begun."""
    made = Ranks()
    for agreement in made.agreements:
        agreement.await_load(1, "a")
        agreement.await_promotion(2, 7)
    return made


def loaded(nbytes: int = 10, fingerprint: str = "f", *, is_packed: bool = True) -> Loaded:
    """One rank's own part."""
    return Loaded(1, nbytes, 8, nbytes / 10, is_packed, fingerprint)


def test_an_adapter_is_loaded_when_every_rank_has_it(ranks: Ranks) -> None:
    """The largest part and the slowest read count; packed only if all parts are."""
    ranks.told[0] = [loaded(10)]
    assert [] == ranks.settle()
    ranks.told[2] = [loaded(30, is_packed=False)]
    assert [] == ranks.settle()
    ranks.told[1] = [loaded(20)]
    assert [Loaded(1, 30, 8, 3.0, False, "f")] == ranks.settle()


def test_one_ranks_failure_is_everybodys(ranks: Ranks) -> None:
    """At once, with that rank's reason; what others say of it later is not heard."""
    failure = LoadFailed(1, "no weights", Fault.SERVER)
    ranks.told = [[loaded()], [failure], []]
    assert [failure] == ranks.settle()
    ranks.told[2] = [LoadFailed(1, "another reason", Fault.SERVER)]
    assert [] == ranks.settle()


def test_parts_of_two_contents_are_no_adapter(ranks: Ranks) -> None:
    """Files that changed between two ranks' reads."""
    ranks.told = [[loaded()], [loaded(fingerprint="g")], [loaded()]]
    (failure,) = ranks.settle()
    assert isinstance(failure, LoadFailed)
    assert failure.reason.startswith("Adapter 'a' cannot be loaded: its files changed")


def test_a_promotion_is_complete_when_every_rank_has_copied(ranks: Ranks) -> None:
    """The slowest counts."""
    ranks.told = [[Promoted(2, 7, 1.0)], [Promoted(2, 7, 3.0)], []]
    assert [] == ranks.settle()
    ranks.told[2] = [Promoted(2, 7, 2.0)]
    assert [Promoted(2, 7, 3.0)] == [ack for ack in ranks.settle() if isinstance(ack, Promoted)]


def test_what_was_called_off_is_not_answered(ranks: Ranks) -> None:
    """Nor does an earlier promotion's end count for a later one."""
    for agreement in ranks.agreements:
        agreement.forget_load(1)
        agreement.await_promotion(2, 8)
    ranks.told = [[loaded(), PromotionFailed(2, 7, "no room")] for _ in range(RANKS)]
    assert [] == ranks.settle()


def test_one_rank_asks_nobody() -> None:
    """And where nothing is awaited, several ask nobody either."""

    def fail(_: Sequence[News]) -> list[list[News]]:
        raise AssertionError("the ranks were asked")

    assert [] == Agreement(fail).settle([])
    agreement = Agreement(gather_of_one)
    agreement.await_load(1, "a")
    assert [loaded()] == agreement.settle([loaded()])


class AgreementMachine(RuleBasedStateMachine):
    """Any order of loads, drops and ranks' own ends. Kept beside it: what each rank has to say."""

    def __init__(self) -> None:
        super().__init__()
        self.ranks = Ranks()
        self.open: dict[int, list[bool | None]] = {}  # adapter -> how it ended on each rank

    @rule(adapter_id=IDS)
    def load(self, adapter_id: int) -> None:
        self.drop(adapter_id)
        self.open[adapter_id] = [None] * RANKS
        for agreement in self.ranks.agreements:
            agreement.await_load(adapter_id, str(adapter_id))

    @rule(adapter_id=IDS)
    def drop(self, adapter_id: int) -> None:
        self.open.pop(adapter_id, None)
        for agreement in self.ranks.agreements:
            agreement.forget_load(adapter_id)

    @rule(ends=st.lists(st.tuples(IDS, st.integers(0, RANKS - 1), st.booleans()), max_size=6))
    def step(self, ends: list[tuple[int, int, bool]]) -> None:
        for adapter_id, rank, is_good in ends:
            if self.open.get(adapter_id, [True] * RANKS)[rank] is None:
                self.open[adapter_id][rank] = is_good
                news: News = (
                    Loaded(adapter_id, 1, 8, 0.1)
                    if is_good
                    else LoadFailed(adapter_id, "no", Fault.SERVER)
                )
                self.ranks.told[rank].append(news)
        settled = {ack.adapter_id: isinstance(ack, Loaded) for ack in self.ranks.settle()}
        expected = {
            adapter_id: False not in on_ranks
            for adapter_id, on_ranks in self.open.items()
            if None not in on_ranks or False in on_ranks
        }
        assert expected == settled
        for adapter_id in expected:
            del self.open[adapter_id]

    @invariant()
    def all_ranks_wait_for_the_same(self) -> None:
        waiting = [sorted(agreement._loads) for agreement in self.ranks.agreements]
        assert [sorted(self.open)] * RANKS == waiting


TestAgreementMachine = AgreementMachine.TestCase

"""Which version a name means, and that no id or inner name ever means two."""

from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.engine_vllm.core.versions import FIRST_ID, MOST_PLAIN, AdapterVersions, Version
from chameleon_lora.engine_vllm.messages import Announcement, LoadAdapter
from tests.engine_vllm.fake_requests import announced

NAMES = st.sampled_from(["a", "b", "a@1001", "a@1002"])
EVENTS = st.lists(
    st.tuples(NAMES, st.none() | st.sampled_from(["1", "2", "3"])), min_size=1, max_size=30
)


def test_a_name_means_its_announced_version() -> None:
    """The first version goes by the name itself and gets an id that vLLM's own warm-up lacks."""
    catalog = AdapterVersions()
    source = announced("a")
    version, former = catalog.announce(source)
    assert (Version(version.id, "a", source), None) == (version, former)
    assert FIRST_ID <= version.id
    assert version == catalog.current("a")


def test_an_unknown_name_means_nothing() -> None:
    """Unknown and withdrawn names have no version."""
    catalog = AdapterVersions()
    catalog.announce(announced("a"))
    catalog.withdraw("a")
    assert (None, None) == (catalog.current("a"), catalog.current("b"))


def test_the_same_announcement_is_the_same_version() -> None:
    """A second API server that says the same changes nothing."""
    catalog = AdapterVersions()
    version, _ = catalog.announce(announced("a"))
    assert (version, None) == catalog.announce(announced("a"))


def test_another_content_is_another_version() -> None:
    """A new fingerprint gives a new id and inner name, and answers the version it replaces."""
    catalog = AdapterVersions()
    first, _ = catalog.announce(announced("a", "1"))
    second, former = catalog.announce(announced("a", "2"))
    assert first == former
    assert second == catalog.current("a")
    assert first.id != second.id
    assert ("a", f"a@{second.id}") == (first.inner_name, second.inner_name)


def test_another_path_is_another_version() -> None:
    """The same fingerprint from another place is not trusted to be the same content."""
    catalog = AdapterVersions()
    first, _ = catalog.announce(announced("a"))
    second, former = catalog.announce(announced("a", path="/elsewhere/a"))
    assert first == former
    assert first.inner_name != second.inner_name


def test_a_name_that_comes_back_is_a_new_version() -> None:
    """Withdrawn and announced again, even with the same content, it has a new id and inner name."""
    catalog = AdapterVersions()
    first, _ = catalog.announce(announced("a"))
    assert first == catalog.withdraw("a")
    second, former = catalog.announce(announced("a"))
    assert former is None
    assert first.id != second.id
    assert first.inner_name != second.inner_name


def test_withdrawing_an_unknown_name_changes_nothing() -> None:
    """It answers None, for a second API server may say the same."""
    catalog = AdapterVersions()
    assert catalog.withdraw("a") is None


def test_what_is_read_is_read_again_or_nothing() -> None:
    """A version announced without a look at its files is the content that its first load found."""
    catalog = AdapterVersions()
    version, _ = catalog.announce(Announcement("a", "/a"))
    assert LoadAdapter(version.id, "a", "/a") == catalog.load(version.id)
    catalog.was_read(version.id, "7")
    assert LoadAdapter(version.id, "a", "/a", fingerprint="7") == catalog.load(version.id)
    assert (version, None) == catalog.announce(Announcement("a", "/a"))


def test_a_renewed_adapter_is_a_new_version_once_it_was_read() -> None:
    """Before that, the load to come finds what is there anyway."""
    catalog = AdapterVersions()
    source = Announcement("a", "/a")
    first, _ = catalog.renew(source)
    assert (first, None) == catalog.renew(source)
    catalog.load(first.id)
    second, former = catalog.renew(source)
    assert (first, True) == (former, first.inner_name != second.inner_name)


def test_versions_that_nobody_uses_are_forgotten() -> None:
    """After 20,000 re-announcements, and as many names that came and went, little is left."""
    catalog = AdapterVersions()
    version, _ = catalog.announce(announced("a"))
    for number in range(20_000):
        version, _ = catalog.announce(announced("a", str(number)))
        catalog.forget({version.id})
    for number in range(20_000):
        catalog.announce(announced(f"b{number}"))
        catalog.withdraw(f"b{number}")
        catalog.forget({version.id})
    assert version == catalog.current("a")
    sizes = [len(table) for table in vars(catalog).values() if hasattr(table, "__len__")]
    assert MOST_PLAIN + 10 >= sum(sizes)


@given(EVENTS)
def test_no_id_or_inner_name_is_used_twice(events: list[tuple[str, str | None]]) -> None:
    """Over any history each id and each inner name has one content, and names mean the last one."""
    catalog = AdapterVersions()
    versions: list[Version] = []
    expected: dict[str, str] = {}
    for name, fingerprint in events:
        if fingerprint is None:
            catalog.withdraw(name)
            expected.pop(name, None)
            continue
        version, _ = catalog.announce(announced(name, fingerprint))
        expected[name] = fingerprint
        if version not in versions:
            versions.append(version)
    assert len(versions) == len({version.id for version in versions})
    assert len(versions) == len({version.inner_name for version in versions})
    current = [(name, catalog.current(name)) for name, _ in events]
    assert expected == {name: version.source.fingerprint for name, version in current if version}

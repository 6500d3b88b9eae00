"""Which version a name means, and that no id or inner name ever means two."""

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.engine_vllm.core.versions import FIRST_ID, AdapterVersions, Version
from chameleon_lora.engine_vllm.messages import Announcement, LoadAdapter
from chameleon_lora.policy.request import AdapterId
from tests.engine_vllm.fake_requests import announced

NAMES = st.sampled_from(["a", "b", "a@1001", "a@1002"])
EVENTS = st.lists(
    st.tuples(NAMES, st.none() | st.sampled_from(["1", "2", "3"])), min_size=1, max_size=30
)


def test_a_name_means_its_announced_version() -> None:
    """Its inner name tells its content, and it gets an id that vLLM's own warm-up lacks."""
    catalog = AdapterVersions()
    source = announced("a")
    version, former = catalog.announce(source)
    assert (Version(version.id, "a@1", source), None) == (version, former)
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


def test_who_did_not_look_says_nothing_new() -> None:
    """A second API server that was not asked for the adapter yet announces it without a content."""
    catalog = AdapterVersions()
    version, _ = catalog.announce(announced("a"))
    unread = replace(announced("a"), fingerprint=None)
    assert (version, None) == catalog.announce(unread)
    other, former = catalog.announce(replace(unread, rank=16))
    assert (version, f"a@{other.id}") == (former, other.inner_name)


def test_what_the_files_hold_names_the_version_once_it_is_known() -> None:
    """Found out before anything was read, it is a version of its own; afterwards it is the one that was read."""
    catalog = AdapterVersions()
    unread = replace(announced("a"), fingerprint=None)
    catalog.announce(unread)
    version, _ = catalog.announce(announced("a"))
    assert "a@1" == version.inner_name
    first, _ = catalog.announce(replace(unread, name="b"))
    catalog.load(first.id)
    catalog.was_read(first.id, "1")
    assert (first, None) == catalog.announce(replace(announced("a"), name="b"))


def test_another_content_is_another_version() -> None:
    """A new fingerprint gives a new id and inner name, and answers the version it replaces."""
    catalog = AdapterVersions()
    first, _ = catalog.announce(announced("a", "1"))
    second, former = catalog.announce(announced("a", "2"))
    assert first == former
    assert second == catalog.current("a")
    assert first.id != second.id
    assert ("a@1", "a@2") == (first.inner_name, second.inner_name)


def test_another_path_is_another_version() -> None:
    """The same fingerprint from another place is not trusted to be the same content."""
    catalog = AdapterVersions()
    first, _ = catalog.announce(announced("a"))
    second, former = catalog.announce(announced("a", path="/elsewhere/a"))
    assert first == former
    assert first.inner_name != second.inner_name


def test_a_name_that_comes_back_while_its_former_version_is_used_is_a_new_one() -> None:
    """Withdrawn and announced again, even with the same content, it has a new id and inner name."""
    catalog = AdapterVersions()
    first, _ = catalog.announce(announced("a"))
    assert first == catalog.withdraw("a")
    second, former = catalog.announce(announced("a"))
    assert former is None
    assert first.id != second.id
    assert first.inner_name != second.inner_name


def test_a_content_that_comes_back_has_its_inner_name_again() -> None:
    """So what is cached of its prefixes is still right; the id is new."""
    catalog = AdapterVersions()
    first, _ = catalog.announce(announced("a", "1"))
    second, _ = catalog.announce(announced("a", "2"))
    catalog.forget({second.id})
    third, _ = catalog.announce(announced("a", "1"))
    assert first.inner_name == third.inner_name
    assert first.id != third.id


def test_the_same_bytes_read_in_another_way_are_another_version() -> None:
    """Whether a mixture's experts are stored fused is said by the client, not by the files."""
    catalog = AdapterVersions()
    plain, _ = catalog.announce(announced("a"))
    fused, _ = catalog.announce(replace(announced("a"), is_3d=True))
    assert ("a@1", "a@3d-1") == (plain.inner_name, fused.inner_name)


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


def test_a_renewed_adapter_is_the_same_version_if_it_is_known_to_hold_the_same() -> None:
    """Also once it was read: nothing is loaded anew."""
    catalog = AdapterVersions()
    first, _ = catalog.renew(announced("a"))
    catalog.load(first.id)
    assert (first, None) == catalog.renew(announced("a"))
    assert first != catalog.renew(announced("a", "2"))[0]


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
    assert 10 >= sum(sizes)


@given(EVENTS, st.randoms())
def test_no_id_or_inner_name_has_two_contents(
    events: list[tuple[str, str | None]], chance: Random
) -> None:
    """Over any history of each; no two versions at a time have one inner name; names mean the last one."""
    catalog = AdapterVersions()
    versions: dict[AdapterId, Version] = {}
    used: set[AdapterId] = set()
    expected: dict[str, str] = {}
    for name, fingerprint in events:
        if fingerprint is None:
            catalog.withdraw(name)
            expected.pop(name, None)
            used = {adapter_id for adapter_id in used if chance.random() < 0.5}
            used -= set(catalog.forget(used))
            continue
        version, _ = catalog.announce(announced(name, fingerprint))
        expected[name] = fingerprint
        versions[version.id] = version
        used.add(version.id)
        assert len(catalog._by_id) == len({v.inner_name for v in catalog._by_id.values()})
    contents = {(v.inner_name, v.source) for v in versions.values()}
    assert len(contents) == len({inner_name for inner_name, _ in contents})
    current = [(name, catalog.current(name)) for name, _ in events]
    assert expected == {name: version.source.fingerprint for name, version in current if version}

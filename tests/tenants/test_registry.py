"""The tenants' file: what it says, and what is refused."""

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants import TenantRegistry, digest_of, hash_key, parse_tenants

KEYS = {name: name * 20 for name in "abc"}
HASHES = {name: hash_key(key) for name, key in KEYS.items()}
WHOLE = f"""
[tenants.acme]
keys = ["{HASHES["a"]}", "{HASHES["b"]}"]
adapters = ["acme-*", "shared"]
base_model = true
share_prefixes = true
weight = 2
requests_per_s = 0.5
burst = 10
input_tokens_per_minute = 60000
output_tokens_per_minute = 20000

[tenants.bob]
keys = ["{HASHES["c"]}"]
"""


def parse(text: str) -> TenantRegistry:
    """The tenants of a file called t.toml."""
    return parse_tenants(text, "t.toml")


def test_every_value_arrives() -> None:
    """Of the first tenant all, of the second the defaults: no adapter, not the base model, no limit."""
    acme, bob = parse(WHOLE).tenants
    assert ("acme", 2, ("acme-*", "shared"), 2, 0.5, 10, 60000, 20000) == (
        acme.name, len(acme.keys), acme.adapters, acme.weight, acme.requests_per_s, acme.burst,
        acme.input_tokens_per_minute, acme.output_tokens_per_minute,
    )  # fmt: skip
    assert (acme.base_model, bob.base_model) == (True, False)
    assert (acme.share_prefixes, bob.share_prefixes) == (True, False)
    assert ((), 1.0, None, None, None, None) == (
        bob.adapters, bob.weight, bob.requests_per_s, bob.burst,
        bob.input_tokens_per_minute, bob.output_tokens_per_minute,
    )  # fmt: skip


@pytest.mark.parametrize(("key", "name"), [("a", "acme"), ("b", "acme"), ("c", "bob")])
def test_each_key_is_its_tenants(key: str, name: str) -> None:
    """A tenant may have several."""
    digest = digest_of(f"Bearer {KEYS[key]}".encode())
    assert digest is not None
    tenant = parse(WHOLE).find(digest)
    assert tenant is not None
    assert name == tenant.name


def test_an_unknown_key_is_nobodys() -> None:
    """Not even one that begins alike."""
    digest = digest_of(f"Bearer {KEYS['a'][:-1]}".encode())
    assert digest is not None
    assert parse(WHOLE).find(digest) is None


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [("acme-1", True), ("shared", True), ("acme-", True)]
    + [(name, False) for name in ("acme", "Acme-1", "xacme-1", "shared2", "bob-1", "")],
)
def test_patterns_are_those_of_a_shell(name: str, is_allowed: bool) -> None:
    """Whole names, capitals told apart."""
    assert is_allowed is parse(WHOLE).tenants[0].may_name(name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("keys = []", ["keys is empty"]),
        ("adapters = []", ["keys is missing"]),
        ('keys = "one"', ["keys is of type str", "list"]),
        ("keys = ['plain']", ["keys[0]", "chameleon tenants hash"]),
        (f"keys = ['{HASHES['a']}']\nadaptors = []", ["'adaptors' is unknown", "adapters"]),
        (f"keys = ['{HASHES['a']}']\nadapters = ['']", ["adapters holds ''"]),
        (f"keys = ['{HASHES['a']}']\nadapters = [3]", ["adapters is [3]", "a list of names"]),
        (f"keys = ['{HASHES['a']}']\nweight = 0", ["weight is 0", "0.001 to 1000"]),
        (f"keys = ['{HASHES['a']}']\nweight = true", ["weight is True", "a number"]),
        (f"keys = ['{HASHES['a']}']\nweight = nan", ["weight is nan"]),
        (f"keys = ['{HASHES['a']}']\nburst = 2", ["burst is 2 without requests_per_s"]),
        (f"keys = ['{HASHES['a']}']\nrequests_per_s = inf", ["requests_per_s is above 1e+15"]),
        (f"keys = ['{HASHES['a']}']\nrequests_per_s = 5e-324", ["requests_per_s is 4.94066e-324"]),
        (f"keys = ['{HASHES['a']}']\nrequests_per_s = 1\nburst = 1{'0' * 400}", ["burst is above"]),
        (f"keys = ['{HASHES['a']}']\nrequests_per_s = 0", ["requests_per_s is 0", "leave it out"]),
        (f"keys = ['{HASHES['a']}']\ninput_tokens_per_minute = 0.5", ["0.5", "a whole number"]),
        (f"keys = ['{HASHES['a']}']\noutput_tokens_per_minute = -1", ["is -1"]),
        (f"keys = ['{HASHES['a']}']\nbase_model = 1", ["base_model is 1", "true or false"]),
        (f"keys = ['{HASHES['a']}']\nshare_prefixes = 'no'", ["'no'", "true or false"]),
        (f"keys = ['{HASHES['a']}']\nname = 'x'", ["'name' is unknown"]),
    ],
)
def test_a_bad_value_is_refused_by_name(line: str, words: list[str]) -> None:
    """The message names file, tenant, key and value, and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        parse(f"[tenants.acme]\n{line}\n")
    message = str(caught.value)
    assert message.startswith("tenants file t.toml: tenant 'acme': ")
    assert [] == [word for word in words if word not in message]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "0 tenants"),
        ("[tenants]", "0 tenants"),
        ("tenants = 3", "0 tenants"),
        ("[tenant.acme]", "'tenant' is unknown"),
        ("[tenants\n", "is not TOML"),
        ("[tenants]\nacme = 1", "'acme' is 1"),
        (f"[tenants.'a b']\nkeys = ['{HASHES['a']}']", "'a b' is not allowed"),
    ],
)
def test_a_bad_file_is_refused(text: str, word: str) -> None:
    """The message names the file."""
    with pytest.raises(ConfigError, match=r"tenants file t\.toml") as caught:
        parse(text)
    assert word in str(caught.value)


def test_no_two_tenants_have_one_key() -> None:
    """The message names both, and the key by its place."""
    with pytest.raises(ConfigError, match=r"tenant 'bob': keys\[0\] is also a key of 'acme'"):
        parse(WHOLE.replace(HASHES["c"], HASHES["b"]))

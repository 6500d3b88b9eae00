"""Keys and their hashes."""

import hashlib

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants import KeyHash, digest_of, hash_key, is_one_of, parse_hash

KEY = "k" * 16


def test_a_key_is_found_by_its_hash() -> None:
    """The line that `hash_key` gives stands for the key that a client sends."""
    known = parse_hash(hash_key(KEY), "keys[0]")
    sent = digest_of(f"Bearer {KEY}".encode())
    assert sent is not None
    assert is_one_of(sent, (parse_hash(hash_key("j" * 16), "keys[0]"), known))
    assert not is_one_of(sent, ())


def test_the_hash_is_plain_sha256() -> None:
    """So that other tools can make it too."""
    assert f"sha256:{hashlib.sha256(KEY.encode()).hexdigest()}" == hash_key(KEY)


@pytest.mark.parametrize("value", [None, b"", b"Bearer", b"Bearer ", b"Basic abc", KEY.encode()])
def test_what_is_no_bearer_has_no_key(value: bytes | None) -> None:
    """Neither without a header nor with another scheme."""
    assert digest_of(value) is None


def test_the_scheme_is_read_in_any_case() -> None:
    """As vLLM does."""
    assert digest_of(b"Bearer abc") == digest_of(b"bearer abc")


@pytest.mark.parametrize(
    ("key", "word"),
    [("ab3de", "5 characters"), ("k" * 16 + "\u00e9", "ASCII"), ("k k" * 9, "spaces")],
)
def test_a_key_that_cannot_serve_is_refused(key: str, word: str) -> None:
    """Too short, or nothing that a header carries; the message does not show it."""
    with pytest.raises(ConfigError, match=word) as caught:
        hash_key(key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("text", ["", "sha256:", "sha256:" + "A" * 64, "a-plain-key-by-mistake", 7])
def test_what_is_no_hash_is_refused(text: object) -> None:
    """The message names the place and the way out, and shows no key."""
    with pytest.raises(ConfigError, match=r"keys\[3\].*chameleon tenants hash") as caught:
        parse_hash(text, "keys[3]")
    assert "by-mistake" not in str(caught.value)


@pytest.mark.parametrize("place", range(32))
def test_every_byte_of_a_hash_counts(place: int) -> None:
    """One that differs in one byte is another's, wherever the known ones stand."""
    known = hashlib.sha256(KEY.encode()).digest()
    other = bytearray(known)
    other[place] ^= 1
    assert not is_one_of(KeyHash(bytes(other)), (KeyHash(known), KeyHash(known)))

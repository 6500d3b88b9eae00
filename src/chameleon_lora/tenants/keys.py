"""API keys, of which only hashes are kept.

A key is random and long, so one round of SHA-256 without salt is enough: there is nothing to guess.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import NewType

from chameleon_lora.errors import ConfigError

KeyHash = NewType("KeyHash", bytes)
PREFIX = "sha256:"
LEAST_LETTERS = 16
SHOWN_LETTERS = 4
_HASH = re.compile(rf"{PREFIX}([0-9a-f]{{64}})")
_MAKE = "`chameleon tenants hash` makes a key's hash"


def hash_key(key: str) -> str:
    """The line that stands for a key, `sha256:` and 64 hexadecimal digits.

    Raises:
        ConfigError: the key is too short, or no HTTP header can carry it.
    """
    if len(key) < LEAST_LETTERS:
        raise ConfigError(
            f"the key has {len(key)} characters, the least is {LEAST_LETTERS}: short keys can be "
            "guessed; take a random one, as `openssl rand -hex 24` prints"
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            "the key holds spaces or characters beyond printable ASCII, which no Authorization "
            "header carries; take a random one, as `openssl rand -hex 24` prints"
        )
    return PREFIX + hashlib.sha256(key.encode()).hexdigest()


def parse_hash(text: object, what: str) -> KeyHash:
    """The hash that such a line stands for; `what` names its place.

    Raises:
        ConfigError: it is none. The message shows no more of it than its beginning: it may be a key.
    """
    found = _HASH.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(f"{what} is {_shown(text)}, no {PREFIX} with 64 hex digits: {_MAKE}")
    return KeyHash(bytes.fromhex(found[1]))


def digest_of(authorization: bytes | None) -> KeyHash | None:
    """The hash of the key in the value of an Authorization header, or None if it has none."""
    scheme, _, key = (authorization or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not key:
        return None
    return KeyHash(hashlib.sha256(key).digest())


def is_one_of(digest: KeyHash, hashes: Iterable[KeyHash]) -> bool:
    """Whether it is among them; takes the same time wherever it stands."""
    is_found = False
    for known in hashes:
        is_found |= hmac.compare_digest(digest, known)
    return is_found


def _shown(text: object) -> str:
    if not isinstance(text, str):
        return f"of type {type(text).__name__}"
    return f"{text[:SHOWN_LETTERS]!r}... of {len(text)} characters"

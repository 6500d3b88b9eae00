"""Which model and which adapters does a server have?"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from chameleon_lora.adapters import AdapterFolder
from chameleon_lora.adapters.config import parse_config, read_config_bytes
from chameleon_lora.errors import AdapterError, BenchError
from chameleon_lora.workload.named_adapters import NamedAdapter

MODELS = "/v1/models"
_SHOWN_CHARACTERS = 200
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class ServerModels:
    """What a server says it has.

    Attributes:
        base_model: the name of the model that is no adapter; where the list has none, as for a key that
            may use adapters only, the one that adapters call their parent.
        context_tokens: most tokens of a prompt and its answer; None if it does not say.
        adapters: in its own order; a name where the rank is not known.
    """

    base_model: str
    context_tokens: int | None
    adapters: tuple[NamedAdapter | str, ...]


class UnreachableError(BenchError):
    """No connection, or no whole answer in time; the message names the URL and the way out."""


async def ask_server(base_url: str, headers: Mapping[str, str] | None = None) -> ServerModels:
    """What GET /v1/models says. A card with a `parent` is an adapter, whose rank stands in its `root`.

    Raises:
        UnreachableError: it cannot be reached.
        BenchError: it answers what no OpenAI server answers.
    """
    url = base_url + MODELS
    timeout = aiohttp.ClientTimeout(total=_PATIENCE_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            session.get(url) as response,
        ):
            status, text = response.status, (await response.read()).decode(errors="replace")
    except TimeoutError as error:
        raise UnreachableError(
            f"{url} did not answer within {_PATIENCE_S:g} s: is the server still starting?"
        ) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise UnreachableError(
            f"{url} cannot be reached ({error}): start the server, or correct --base-url"
        ) from error
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        raise BenchError(f"{url} answered HTTP {status}: give --api-key, or set OPENAI_API_KEY")
    if status != HTTPStatus.OK:
        raise _not_openai(url, f"HTTP {status}: {text}")
    return served_of(url, text)


def served_of(url: str, text: str) -> ServerModels:
    """What the body of an answer to GET /v1/models says.

    Raises:
        BenchError: it is no list of models, or an empty one.
    """
    try:
        fields = json.loads(text)
        cards = [card for card in fields["data"] if isinstance(card["id"], str)]
    except (ValueError, KeyError, TypeError) as error:
        raise _not_openai(url, text) from error
    if not cards:
        raise _not_openai(url, text)
    bases = [card for card in cards if card.get("parent") is None]
    context = (bases or cards)[0].get("max_model_len")
    return ServerModels(
        base_model=bases[0]["id"] if bases else cards[0]["parent"],
        context_tokens=context if isinstance(context, int) and context > 0 else None,
        adapters=tuple(_adapter(card) for card in cards if card.get("parent") is not None),
    )


def adapters_below(folder: Path) -> tuple[NamedAdapter | str, ...]:
    """The adapters of a folder by their sub-folders' names, in that order.

    Raises:
        AdapterNotFoundError: the folder cannot be listed.
        BenchError: it holds none.
    """
    names = AdapterFolder(folder).names()
    if not names:
        raise BenchError(
            f"{str(folder)!r} holds 0 adapters, the least is 1: give the folder whose sub-folders "
            "are adapters"
        )
    return tuple(named(name, str(folder / name)) for name in names)


def with_ranks(
    names: Iterable[str], known: Iterable[NamedAdapter | str]
) -> tuple[NamedAdapter | str, ...]:
    """`names` in their order, each with the rank that an adapter of `known` gives it."""
    by_name = {adapter.name: adapter for adapter in known if isinstance(adapter, NamedAdapter)}
    return tuple(by_name.get(name, name) for name in names)


def named(name: str, root: str | None) -> NamedAdapter | str:
    """The adapter with its rank, or its name if `root` is no adapter's folder on this machine."""
    if not root:
        return name
    try:
        rank = parse_config(read_config_bytes(Path(root))).max_rank
    except (AdapterError, OSError, ValueError):
        return name
    return NamedAdapter(name, rank) if rank > 0 else name


def _adapter(card: Mapping[str, Any]) -> NamedAdapter | str:
    root = card.get("root")
    return named(card["id"], root if isinstance(root, str) else None)


def _not_openai(url: str, came: str) -> BenchError:
    shown = " ".join(came.split())[:_SHOWN_CHARACTERS]
    return BenchError(
        f"{url} answered {shown!r}, which is no OpenAI server's list of models: give --base-url "
        "the root of one, such as http://127.0.0.1:8000"
    )

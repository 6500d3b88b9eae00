"""Whose cached prefixes a request may read: those of its own adapter's own content, and no others."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.requested_version import name_version
from chameleon_lora.engine_vllm.core.utilities import keying
from tests.engine_vllm.fake_requests import announced, make_driver

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

BLOCK_TOKENS = 4
PROMPT = list(range(1, 13))  # three blocks


@pytest.fixture(autouse=True)
def _has_vllm() -> None:
    """Keys are vLLM's own."""
    pytest.importorskip("vllm")


def keys(driver: Driver, name: str | None, path: str | None = None) -> tuple[bytes, ...]:
    """The keys of the prompt's blocks in the prefix cache, for a request that names this adapter."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    adapter = None if name is None else LoRARequest(name, 1, path or f"/adapters/{name}")
    request: Any = Request(
        request_id="r",
        prompt_token_ids=PROMPT,
        sampling_params=SamplingParams(max_tokens=1),
        pooling_params=None,
        lora_request=adapter,
        block_hasher=get_request_block_hasher(BLOCK_TOKENS, sha256),
    )
    name_version(driver, request)
    assert len(PROMPT) // BLOCK_TOKENS == len(request.block_hashes)
    return tuple(request.block_hashes)


def name(driver: Driver, adapter: Any) -> tuple[str, bool]:
    """The inner name that a request for this adapter gets, and whether no other will get it."""
    request = SimpleNamespace(lora_request=adapter, block_hashes=[], update_block_hashes=list)
    is_last = name_version(driver, request) is not None
    return request.lora_request.lora_name, is_last


def test_one_content_of_one_adapter_has_one_key() -> None:
    """Two requests with the same prompt share their prefix, also after a second announcement."""
    driver = make_driver()
    driver.announce(announced("a"))
    first = keys(driver, "a")
    driver.announce(announced("a"))
    assert first == keys(driver, "a")


def test_blocks_are_keyed_once_and_by_the_inner_name() -> None:
    """Where the request comes in; again only if the adapter has become another before it is added."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    hashed: list[str] = []
    hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)

    def stock(_engine: Any, came: Any) -> tuple[Any, int]:
        def count(request: Any) -> Any:
            hashed.append(request.lora_request.lora_name)
            return hasher(request)

        params = SamplingParams(max_tokens=1)
        adapter = came.lora_request
        return Request("r", PROMPT, params, None, lora_request=adapter, block_hasher=count), 0

    driver = make_driver()
    engine = SimpleNamespace(scheduler=SimpleNamespace(chameleon=driver))
    driver.announce(announced("a", "1"))
    adapter = LoRARequest("a", 1, "/adapters/a")
    found = []
    for fingerprint in ("1", "2"):
        request, _ = keying(stock)(engine, SimpleNamespace(lora_request=adapter))
        assert adapter is request.lora_request
        driver.announce(announced("a", fingerprint))
        name_version(driver, request)
        found.append((request.lora_request.lora_name, tuple(request.block_hashes)))
    assert ["a@1", "a@1", "a@2"] == hashed
    assert "a@1" == found[0][0]
    assert ("a@2", keys(driver, "a")) == found[1]


def test_adapters_and_the_base_model_share_nothing() -> None:
    """The same prompt has other keys for each, block by block."""
    driver = make_driver()
    for name in ("a", "b", "a@2"):
        driver.announce(announced(name))
    found = [keys(driver, name) for name in (None, "a", "b", "a@2")]
    for blocks in zip(*found, strict=True):
        assert len(found) == len(set(blocks))


def test_contents_of_one_adapter_share_nothing() -> None:
    """Replaced, replaced again: no content reads another's blocks; put back as it was, it has its own."""
    driver = make_driver()
    found = []
    for fingerprint in ("1", "2", "3", "1"):
        driver.announce(announced("a", fingerprint))
        found.append(keys(driver, "a"))
    *different, last = found
    for blocks in zip(*different, strict=True):
        assert len(different) == len(set(blocks))
    assert found[0] == last


def test_an_adapter_that_went_and_came_has_its_keys_if_it_has_its_bytes() -> None:
    """Withdrawn and announced anew; with other bytes, or bytes that nobody knows, it shares nothing."""
    driver = make_driver()
    driver.announce(announced("a"))
    first = keys(driver, "a")
    for source in (replace(announced("a"), fingerprint=None), announced("a", "2")):
        driver.withdraw("a")
        driver.announce(source)
        assert not set(first) & set(keys(driver, "a"))
    driver.withdraw("a")
    driver.announce(announced("a"))
    assert first == keys(driver, "a")


def test_one_content_has_one_key_in_all_engines() -> None:
    """So prefixes kept outside of an engine, for others or for later, are those of the same bytes."""
    found = []
    for contents in ("1", "21"):
        driver = make_driver()
        for fingerprint in contents:
            driver.announce(announced("a", fingerprint))
        found.append(keys(driver, "a"))
    assert found[0] == found[1]


def test_an_adapter_called_like_anothers_version_shares_nothing_with_it() -> None:
    """The content 2 of `a` is called a@2 inside; a client's own `a@2` is another."""
    driver = make_driver()
    for source in (announced("a", "1"), announced("a", "2"), announced("a@2", "1")):
        driver.announce(source)
    assert not set(keys(driver, "a")) & set(keys(driver, "a@2"))


def test_an_adapter_that_nobody_announced_has_keys_of_its_path(tmp_path: Path) -> None:
    """As with vLLM's own LLM class: the same name at another path is another content."""
    driver = make_driver()
    places = ("/one", str(tmp_path), "a-hubs/name")
    found = {key for place in places for key in keys(driver, "a", place)}
    assert len(places) * len(PROMPT) // BLOCK_TOKENS == len(found)


def test_a_request_after_the_unload_brings_nothing_back() -> None:
    """Let in just before, it is served alone; its adapter stays unloaded and is forgotten."""
    from vllm.lora.request import LoRARequest

    driver = make_driver()
    driver.has_api_server = True
    driver.announce(announced("a"))
    driver.withdraw("a")
    late, is_last = name(driver, LoRARequest("a", 1, "/adapters/a"))
    assert (None, True) == (driver.versions.current("a"), is_last)
    assert "a" != late


def test_a_request_from_before_the_reload_does_not_turn_it_back() -> None:
    """The name means what was announced last, whatever path the request was let in with."""
    from vllm.lora.request import LoRARequest

    driver = make_driver()
    driver.has_api_server = True
    version = driver.announce(announced("a", path="/adapters/new"))
    assert (version.inner_name, False) == name(driver, LoRARequest("a", 1, "/adapters/old"))
    assert version == driver.versions.current("a")


def test_load_inplace_is_another_content() -> None:
    """Without an API server that looks into files: once the former was read, keys are new."""
    from vllm.lora.request import LoRARequest

    driver = make_driver()
    again = LoRARequest("a", 1, "/adapters/a", load_inplace=True)
    first, _ = name(driver, again)
    assert first == name(driver, again)[0]  # not read yet, so it will be what is there now
    version = driver.versions.current("a")
    assert version is not None
    driver.versions.load(version.id)
    second, _ = name(driver, again)
    assert first != second
    assert second == name(driver, LoRARequest("a", 1, "/adapters/a"))[0]

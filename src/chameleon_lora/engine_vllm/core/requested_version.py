"""Which version of an adapter vLLM's LoRARequest means, and what is announced by naming one.

Of an API server the name alone tells, for that has announced it. Without one the client's id and path
tell, as stock vLLM has it.
"""

import functools
import logging
import os
from dataclasses import replace
from typing import Any

import msgspec

from chameleon_lora.adapters import AdapterLimits, read_fingerprint, require_servable
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.versions import Version
from chameleon_lora.engine_vllm.messages import Announcement
from chameleon_lora.engine_vllm.sources import resolved

KEYED_BY = "chameleon_keyed_by"  # on a request: the inner name by which its blocks are keyed
_logger = logging.getLogger(f"vllm.{__name__}")


def name_version(driver: Driver, request: Any) -> Version | None:
    """Let the request name one version of its adapter, by the engine's own id and inner name.

    Answers the version if no other request can mean it: it is to be retired once this one is added.
    """
    adapter = request.lora_request
    if adapter is None:
        return None
    version = version_meant(driver, adapter)
    is_passing = version is None and driver.has_api_server
    if is_passing:  # let in just before it was unloaded
        version = driver.pass_by(unseen(adapter))
    else:
        version = version or announce_unseen(driver, adapter)
        driver.known_as(adapter.lora_int_id, version.source.name)
    request.lora_request = msgspec.structs.replace(
        adapter, lora_name=version.inner_name, lora_int_id=version.id, load_inplace=False
    )
    if version.inner_name != getattr(request, KEYED_BY, adapter.lora_name):
        request.block_hashes.clear()  # they were keyed by another name
        request.update_block_hashes()
    return version if is_passing else None


def version_meant(driver: Driver, adapter: Any) -> Version | None:
    """What vLLM's LoRARequest means of what is served; None if that is to be announced.

    Without an API server, vLLM's own rule holds where a path leads nowhere: the id alone tells. Trainers
    name an adapter that they have added by its id and any path.
    """
    version = driver.versions.current(adapter.lora_name)
    if driver.has_api_server:
        return version
    if adapter.load_inplace:
        return None
    path = adapter.lora_path
    if version is not None and version.source.path == path:
        return version
    known = driver.client_ids.name(adapter.lora_int_id)
    if known is None or not leads_nowhere(path):
        return None
    _tell_once(adapter.lora_int_id, path, known)
    return driver.versions.current(known)


def leads_nowhere(path: str) -> bool:
    """Whether there is no folder at a path, and no hub can have an adapter of that name."""
    is_hub_name = path.count("/") == 1 and path[0] not in "/.~"
    return not is_hub_name and not os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111  # never raises


@functools.lru_cache(256)
def _tell_once(client_id: int, path: str, name: str) -> None:
    _logger.warning(
        "There is no adapter at %r; requests with lora_int_id %d get %r, which has that id.",
        path, client_id, name,
    )  # fmt: skip


def add_adapter(driver: Driver, adapter: Any, limits: AdapterLimits) -> None:
    """Serve what vLLM's LoRARequest names, by that id too, and read it when it is asked for.

    Raises:
        AdapterError: naming the adapter and why it cannot be served.
    """
    version = version_meant(driver, adapter)
    if not driver.has_api_server and (version is None or version.source.path == adapter.lora_path):
        folder = resolved(adapter.lora_path, adapter.lora_name)
        info = require_servable(folder, limits, name=adapter.lora_name)
        found = {"nbytes": info.nbytes, "rank": info.rank}
        version = announce_unseen(driver, adapter, fingerprint=read_fingerprint(folder), **found)
    if version is not None:  # else it was unloaded meanwhile
        driver.known_as(adapter.lora_int_id, version.source.name)


def announce_unseen(driver: Driver, adapter: Any, **found: Any) -> Version:
    """Serve an adapter of which vLLM's LoRARequest is known, and what was found; there is no API server."""
    source = replace(unseen(adapter), **found)
    return driver.renew(source) if adapter.load_inplace else driver.announce(source)


def unseen(adapter: Any) -> Announcement:
    """What vLLM's LoRARequest says of an adapter."""
    is_3d = bool(getattr(adapter, "is_3d_lora_weight", False))
    return Announcement(adapter.lora_name, adapter.lora_path, is_3d=is_3d)

"""A fault that `experiments.fuzz_http --planted` has to find: a plugin of vLLM's, for the server that it starts and no other."""

import functools
import importlib
import os
from http import HTTPStatus
from pathlib import Path
from typing import Any

WORDS = "planted fault"
_ENTRY_POINT = "[vllm.general_plugins]\nplanted = experiments.planted_http_fault:plant\n"


def plant() -> None:
    """Afterwards each sound request with a `logit_bias` is an error of the server's own."""
    client = importlib.import_module("vllm.v1.engine.async_llm").AsyncLLM
    error = importlib.import_module("vllm.exceptions").GracefulHTTPError
    stock = client.add_request

    @functools.wraps(stock)
    async def add_request(
        engine: Any, request_id: Any, prompt: Any, params: Any, *args: Any, **given: Any
    ) -> Any:
        if getattr(params, "logit_bias", None):
            raise error(WORDS, HTTPStatus.INTERNAL_SERVER_ERROR)  # whose words vLLM repeats
        return await stock(engine, request_id, prompt, params, *args, **given)

    client.add_request = add_request


def announce(folder: Path) -> str:
    """PYTHONPATH of a server that is to have it."""
    (folder / "planted-1.dist-info").mkdir()
    (folder / "planted-1.dist-info" / "METADATA").write_text("Name: planted\nVersion: 1\n")
    (folder / "planted-1.dist-info" / "entry_points.txt").write_text(_ENTRY_POINT)
    found = os.environ.get("PYTHONPATH")
    return ":".join((str(folder), str(Path(__file__).parents[1]), *filter(None, (found,))))

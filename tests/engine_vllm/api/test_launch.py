"""How vLLM's server is started."""

import os

import pytest

from chameleon_lora.engine_vllm.api.launch import KEEP_ALIVE, KEEP_ALIVE_S, keep_connections


@pytest.mark.vllm
@pytest.mark.slow
def test_connections_outlive_those_of_clients_and_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's request meets a connection that closes: vLLM's own 5 s are below the usual 60 s."""
    envs = pytest.importorskip("vllm.envs")
    monkeypatch.delenv(KEEP_ALIVE, raising=False)
    assert envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE <= 60
    monkeypatch.setenv(KEEP_ALIVE, "")  # so that it is put back
    del os.environ[KEEP_ALIVE]
    keep_connections(os.environ)
    assert 60 < KEEP_ALIVE_S == envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE


def test_what_the_user_says_stays() -> None:
    """Where a proxy is known, so is the right time."""
    environment = {KEEP_ALIVE: "20"}
    keep_connections(environment)
    assert {KEEP_ALIVE: "20"} == environment

"""The plugin as vLLM loads it: several times, and beside other schedulers."""

from types import SimpleNamespace

import pytest

from chameleon_lora.engine_vllm import hooks
from chameleon_lora.engine_vllm.hook_table import HOOKS
from chameleon_lora.engine_vllm.hooks import require_hooks, target_of
from chameleon_lora.engine_vllm.plugin import register
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.hooked import vllm_restored

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_registering_twice_changes_no_more_than_once() -> None:
    """The second call wraps nothing again; afterwards vLLM is in this test's process as it was."""
    pytest.importorskip("vllm")
    is_there = hooks._is_expected
    wrapped = [h for h in HOOKS if h.wrapper is not None and not h.is_new and is_there(h)]
    before = [target_of(hook) for hook in wrapped]
    with vllm_restored():
        register()
        first = [target_of(hook) for hook in wrapped]
        register()
        assert first == [target_of(hook) for hook in wrapped]
        require_hooks(ServingSettings(tenants="tenants.toml"))
    assert before == [target_of(hook) for hook in wrapped]


@pytest.mark.usefixtures("hooked")
def test_an_engine_with_another_scheduler_takes_no_adapters() -> None:
    """It has no driver, and says so."""
    from vllm.v1.engine.core import EngineCore

    engine = SimpleNamespace(scheduler=object())
    assert 0 == EngineCore.chameleon_announce(engine, [["a", "/a", "1", 1, 1, False]])
    assert 0 == EngineCore.chameleon_withdraw(engine, ["a"])

"""What the installed vLLM has, what is put there, and how a hook that is missing is told."""

import ast
import functools
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm import scheduler
from chameleon_lora.engine_vllm.hook_table import HOOKS, SCHEDULER, TESTED, Hook, Part
from chameleon_lora.engine_vllm.hooks import (
    _is_expected,
    install,
    is_installed,
    require_hooks,
    require_targets,
    target_of,
)
from chameleon_lora.errors import UnsupportedEngineError
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.hooked import vllm_unhooked

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SOURCES = Path(__file__).resolve().parents[2] / "src" / "chameleon_lora" / "engine_vllm"
OPEN = ServingSettings()
WITH_TENANTS = ServingSettings(tenants="tenants.toml")
WITH_ADMIN = ServingSettings(admin_key_hash="sha256:" + "0" * 64)


@pytest.fixture(autouse=True)
def version() -> str:
    """The version of the installed vLLM."""
    return str(pytest.importorskip("vllm").__version__)


def core(target: str, **more: Any) -> Hook:
    """A place in vLLM's scheduler."""
    return Hook(Part.CORE, SCHEDULER, target, **more)


class TestTargets:
    def test_the_installed_vllm_has_every_one(self) -> None:
        """The version at hand is one Chameleon runs on."""
        require_targets()

    @pytest.mark.parametrize(
        ("hook", "lack"),
        [
            (Hook(Part.CORE, "vllm.nowhere", "Thing"), "vllm.nowhere.Thing"),
            (core("Schedulex"), f"{SCHEDULER}.Schedulex"),
            (core("Scheduler.plan_all"), f"{SCHEDULER}.Scheduler.plan_all"),
            (core("Scheduler.waiting.queue"), f"{SCHEDULER}.Scheduler.waiting.queue"),
            (
                core("Scheduler.add_request", parameters=("request", "lane", "quota")),
                f"parameter lane, quota of {SCHEDULER}.Scheduler.add_request",
            ),
        ],
        ids=["module", "class", "method", "instance", "parameters"],
    )
    def test_a_missing_one_is_told_with_version_and_way_out(
        self, hook: Hook, lack: str, version: str
    ) -> None:
        """vLLM's version, the place, and the versions that have it."""
        with pytest.raises(UnsupportedEngineError) as caught:
            require_targets((hook,))
        text = str(caught.value)
        assert text.startswith(f"vLLM {version} lacks {lack}. ")
        assert all(tested in text for tested in TESTED)

    def test_what_vllm_itself_lacks_is_told_as_the_cause(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An import that fails in vLLM, for a package is not there, is no missing piece of vLLM's."""
        (tmp_path / "vllm_piece.py").write_text("import nothing_of_that_name\n")
        monkeypatch.syspath_prepend(tmp_path)
        hook = Hook(Part.CORE, "vllm_piece", "S", elsewhere=(("vllm.nowhere", "S"),))
        with pytest.raises(UnsupportedEngineError) as caught:
            require_targets((hook,))
        assert r"lacks vllm_piece.S (No module named 'nothing_of_that_name')." in str(caught.value)

    def test_all_missing_ones_are_told_at_once(self) -> None:
        """What is there is not named, what is not is named in order."""
        with pytest.raises(UnsupportedEngineError) as caught:
            require_targets((core("First"), core("Scheduler"), core("Second")))
        assert f"lacks {SCHEDULER}.First; {SCHEDULER}.Second. " in str(caught.value)

    @pytest.mark.parametrize(("since", "is_missed"), [("0.1", True), ("99.0", False)])
    def test_one_that_came_later_may_be_missing_from_an_older_vllm(
        self, since: str, is_missed: bool
    ) -> None:
        """And only from an older one."""
        later = Hook(Part.CORE, SCHEDULER, "Scheduler.no_such_thing", since=since)
        assert is_missed is _is_expected(later)
        assert _is_expected(replace(later, target="Scheduler.schedule"))

    def test_what_moved_is_found_where_it_is(self) -> None:
        """In the place that this version has, whichever comes first."""
        from vllm.v1.core.sched.scheduler import Scheduler

        moved = Hook(Part.CORE, "vllm.nowhere", "S", elsewhere=((SCHEDULER, "Scheduler"),))
        assert Scheduler is target_of(moved)
        require_targets((moved,))

    def test_everything_imported_of_vllm_is_in_the_table(self) -> None:
        """In all of `engine_vllm`; offline engines, which only tests and experiments make, aside."""
        names = {name for hook in HOOKS for name in _names(hook)}
        imported = {
            f"{node.module}.{alias.name}"
            for path in SOURCES.rglob("*.py")
            if path.name != "offline.py"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm"
            for alias in node.names
        }
        assert set() == {name for name in imported if not _is_covered(name, names)}


def _names(hook: Hook) -> list[str]:
    return [
        f"{module}.{target}" for module, target in ((hook.module, hook.target), *hook.elsewhere)
    ]


def _is_covered(imported: str, names: set[str]) -> bool:
    """Also a class of which a row names an attribute, and a module."""
    return any(name == imported or name.startswith(f"{imported}.") for name in names)


@pytest.mark.usefixtures("hooked")
class TestInstalled:
    @pytest.mark.parametrize("serving", [OPEN, WITH_TENANTS, WITH_ADMIN])
    def test_every_hook_is_in_place(self, serving: ServingSettings) -> None:
        """Once the plugin is registered."""
        require_hooks(serving)

    def test_a_second_time_changes_nothing(self) -> None:
        """vLLM loads plugins several times."""
        wrapped = [hook for hook in HOOKS if is_installed_here(hook)]
        first = [target_of(hook) for hook in wrapped]
        install()
        assert first == [target_of(hook) for hook in wrapped]

    def test_tenants_are_kept_apart_outside_of_the_search_for_adapters(self) -> None:
        """Else a folder would be looked up for another tenant's name."""
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels
        from vllm.entrypoints.serve.engine.serving import BaseServing

        for method, expected in (
            (BaseServing._check_model, ["isolation.seeing", "serving.explaining"]),
            (OpenAIServingModels.resolve_lora, ["isolation.resolving", "serving.resolving"]),
            (OpenAIServingModels.load_lora_adapter, ["isolation.controlled", "serving.checking"]),
        ):
            layers, layer = [], method
            while hasattr(layer, "__wrapped__"):
                layers.append(vars(layer)["chameleon_hook"].removeprefix("api."))
                layer = layer.__wrapped__
            assert expected == layers

    def test_every_worker_inherits_what_was_wrapped(self) -> None:
        """CPU workers are those of this machine."""
        from vllm.v1.worker.cpu_worker import CPUWorker
        from vllm.v1.worker.gpu_worker import Worker

        assert Worker.execute_model is CPUWorker.execute_model
        assert Worker.sample_tokens is CPUWorker.sample_tokens

    def test_one_that_somebody_replaced_is_missed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A plugin loaded after ours, which does not call what it found there."""
        from vllm.v1.engine.async_llm import AsyncLLM

        async def add_request(_: Any, params: Any, lora_request: Any, priority: int) -> Any:
            return params, lora_request, priority

        monkeypatch.setattr(AsyncLLM, "add_request", add_request)
        for serving in (WITH_TENANTS, WITH_ADMIN):
            with pytest.raises(UnsupportedEngineError, match=r"not in place at .*add_request:"):
                require_hooks(serving)
        require_hooks(OPEN)

    def test_one_that_somebody_wrapped_is_still_there(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As those that measure do: ours is called."""
        from vllm.v1.engine.async_llm import AsyncLLM

        found = AsyncLLM.add_request

        @functools.wraps(found)
        async def measured(*args: Any, **kwargs: Any) -> Any:
            return await found(*args, **kwargs)

        monkeypatch.setattr(AsyncLLM, "add_request", measured)
        require_hooks(WITH_TENANTS)


def is_installed_here(hook: Hook) -> bool:
    """Whether the row has a wrapper, and it is in place."""
    return hook.wrapper is not None and is_installed(hook)


def test_a_target_that_is_gone_takes_no_other_with_it(
    hooked: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told by name as an error; tenants are kept apart; who asked for it gets no engine."""
    from vllm.v1.engine.core import EngineCore

    monkeypatch.delattr(EngineCore, "preprocess_add_request")
    with caplog.at_level(logging.ERROR):
        install()
    assert ["ERROR"] == [record.levelname for record in caplog.records]
    assert "EngineCore.preprocess_add_request" in caplog.text
    with pytest.raises(UnsupportedEngineError, match=r"lacks .*EngineCore\.preprocess_add_request"):
        require_hooks(WITH_TENANTS)


def test_what_only_the_step_log_needs_is_missed_by_nobody_else(
    hooked: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hooks were put in before anybody asked for the log: who asks gets no engine, others do."""
    require_hooks(WITH_TENANTS)
    monkeypatch.setenv("CHAMELEON_STEPS", "steps.jsonl")
    with pytest.raises(UnsupportedEngineError, match=r"not in place at .*Scheduler\.__init__"):
        require_hooks(WITH_TENANTS)


def test_a_vllm_that_cannot_keep_tenants_apart_serves_none(
    hooked: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message names what is missing; without keys nothing of it is needed."""
    from vllm.v1.engine.async_llm import AsyncLLM

    monkeypatch.delattr(AsyncLLM, "add_request")
    for serving in (WITH_TENANTS, WITH_ADMIN):
        with pytest.raises(UnsupportedEngineError, match=r"AsyncLLM\.add_request"):
            require_hooks(serving)
    require_hooks(OPEN)


def test_without_its_plugin_chameleon_does_not_start(
    hooked: None,  # noqa: ARG001  # as an engine in this process may have left it
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Plain `vllm serve` whose VLLM_PLUGINS names others: no key would be asked for."""
    monkeypatch.setenv("VLLM_PLUGINS", "lora_filesystem_resolver")
    config = SimpleNamespace(
        additional_config={"chameleon": {"serving": {"tenants": "tenants.toml"}}},
        scheduler_config=SimpleNamespace(async_scheduling=False),
    )
    not_loaded = r"plugin is not loaded \(VLLM_PLUGINS is 'lora_filesystem_resolver'\)"
    with vllm_unhooked(), pytest.raises(UnsupportedEngineError, match=not_loaded):
        scheduler(config)

"""Puts the hooks of `hook_table` into vLLM, and proves before an engine starts that they are there."""

import dis
import functools
import importlib
import inspect
import logging
import os
from collections.abc import Collection, Iterator
from typing import Any

from chameleon_lora.engine_vllm.event_log import STEPS_VARIABLE
from chameleon_lora.engine_vllm.hook_table import HOOKS, TESTED, Hook, Part
from chameleon_lora.errors import UnsupportedEngineError
from chameleon_lora.settings import ServingSettings

_MARK = "chameleon_hook"  # on each function of ours that vLLM calls: its row's wrapper
_OURS = "chameleon_lora.engine_vllm"
_logger = logging.getLogger(f"vllm.{__name__}")


def install(hooks: Collection[Hook] = HOOKS) -> None:
    """Afterwards vLLM calls ours at each row that has a wrapper. Idempotent; never raises.

    Rows that cannot be installed are named in the log and the others are: each of ours asks first whether
    the engine is Chameleon's, and an engine that is does not start without them (`require_hooks`).
    """
    failed = []
    for hook in hooks:
        if hook.wrapper is None or (hook.part is Part.STEP_LOG and not is_step_log_asked_for()):
            continue
        try:
            _install(hook)
        except Exception as error:  # noqa: BLE001  # vLLM's own engines must go on
            failed.append(f"{hook.name} ({error!r})")
    if failed:
        _logger.error("Chameleon cannot be put into this vLLM at %s", "; ".join(failed))


def require_hooks(serving: ServingSettings) -> None:
    """Nothing if every hook that an engine with these settings needs is there, and in place.

    Raises:
        UnsupportedEngineError: naming what vLLM lacks, or where Chameleon is not in place.
    """
    parts = {Part.API, Part.CORE, Part.WORKER}
    if serving.asks_for_keys:
        parts.add(Part.KEYS)
    if is_step_log_asked_for():
        parts.add(Part.STEP_LOG)
    needed = [hook for hook in HOOKS if hook.part in parts and _is_expected(hook)]
    require_targets(needed)
    wrapped = [hook for hook in needed if hook.wrapper is not None]
    lost = [hook.name for hook in wrapped if not is_installed(hook)]
    if len(lost) == len(wrapped):
        raise UnsupportedEngineError(
            f"Chameleon's plugin is not loaded (VLLM_PLUGINS is {os.environ.get('VLLM_PLUGINS')!r}): "
            "without it adapters are not loaded and no key is asked for; add `chameleon` to "
            "VLLM_PLUGINS, or unset it"
        )
    if lost:
        raise UnsupportedEngineError(
            f"Chameleon is not in place at {'; '.join(dict.fromkeys(lost))}: another plugin has "
            "replaced it, or it could not be put there (see the log); start vLLM without that plugin"
        )


def require_targets(hooks: Collection[Hook] = HOOKS) -> None:
    """Nothing if the installed vLLM has every target that its version should have.

    Raises:
        UnsupportedEngineError: naming vLLM's version and each missing one.
    """
    missing = [lack for hook in hooks if _is_expected(hook) and (lack := _lack(hook))]
    if missing:
        version = importlib.import_module("vllm").__version__
        raise UnsupportedEngineError(
            f"vLLM {version} lacks {'; '.join(missing)}. Chameleon is tested with vLLM "
            f"{' and '.join(TESTED)}: install one of them, or start vLLM without "
            f"--scheduler-cls {_OURS}.scheduler"
        )


def is_installed(hook: Hook) -> bool:
    """Whether vLLM would call ours there, whoever else has wrapped it since. Changes nothing."""
    try:
        found = target_of(hook)
    except LookupError:
        return False
    if hook.is_new:
        return found is _ours(hook)
    return any(vars(layer).get(_MARK) == hook.wrapper for layer in _layers(found))


def target_of(hook: Hook) -> Any:
    """The attribute, from the first place that has it.

    Raises:
        LookupError: no place has it, as with an attribute of instances, which no class shows. Its cause
            is a package that vLLM itself lacks, if that is why.
    """
    cause = None
    for module, target in ((hook.module, hook.target), *hook.elsewhere):
        try:
            owner, attribute = _owner(module, target)
            return getattr(owner, attribute)
        except (ImportError, AttributeError) as error:
            is_vllms = (error.name or "vllm").startswith("vllm")
            cause = cause if isinstance(error, AttributeError) or is_vllms else error
    raise LookupError(hook.name) from cause


def is_step_log_asked_for() -> bool:
    """Whether this process is to record its steps."""
    return bool(os.environ.get(STEPS_VARIABLE))


def _install(hook: Hook) -> None:
    if not _is_expected(hook) or is_installed(hook):
        return
    owner, attribute = _owner(hook.module, hook.target)
    ours = _ours(hook)
    if not hook.is_new:
        stock = getattr(owner, attribute)
        kept = () if inspect.isclass(stock) else functools.WRAPPER_UPDATES
        ours = functools.wraps(stock, updated=kept)(ours(stock))
        setattr(ours, _MARK, hook.wrapper)  # after `wraps`, which copies the mark of another layer
    setattr(owner, attribute, ours)


def _ours(hook: Hook) -> Any:
    module, _, function = f"{_OURS}.{hook.wrapper}".rpartition(".")
    return getattr(importlib.import_module(module), function)


def _owner(module: str, target: str) -> tuple[Any, str]:
    """The module, or the class in it, that has the target's last part."""
    *path, attribute = target.split(".")
    return functools.reduce(getattr, path, importlib.import_module(module)), attribute


def _layers(found: Any) -> Iterator[Any]:
    """A function and all that it wraps, the outermost first."""
    while found is not None and hasattr(found, "__dict__"):
        yield found
        found = vars(found).get("__wrapped__")


def _is_expected(hook: Hook) -> bool:
    """Whether this vLLM has it, or is no older than those that are known to."""
    if hook.since is None or _lack(hook) is None:
        return True
    version = importlib.import_module("vllm").__version__
    return _numbers(version) >= _numbers(hook.since)


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in version.split(".")[:2])


def _lack(hook: Hook) -> str | None:
    """What is missing of one target, or None."""
    if hook.is_new:
        return None
    try:
        found = target_of(hook)
    except LookupError as error:
        why = f" ({error.__cause__})" if error.__cause__ else ""
        return None if _is_of_instances(hook) else f"{hook.name}{why}"
    known = inspect.signature(found).parameters if hook.parameters else ()
    absent = [name for name in hook.parameters if name not in known]
    return f"parameter {', '.join(absent)} of {hook.name}" if absent else None


def _is_of_instances(hook: Hook) -> bool:
    """Whether a class declares the target, or one of its methods writes it on `self`."""
    try:
        owner, attribute = _owner(hook.module, hook.target)
    except (ImportError, AttributeError):
        return False
    return inspect.isclass(owner) and any(
        attribute in vars(base).get("__annotations__", ())
        or any(_writes(inspect.unwrap(method), attribute) for method in vars(base).values())
        for base in owner.__mro__
    )


def _writes(method: Any, attribute: str) -> bool:
    code = getattr(method, "__code__", None)
    if code is None or attribute not in code.co_names:
        return False
    return any(
        step.opname == "STORE_ATTR" and step.argval == attribute
        for step in dis.get_instructions(code)
    )

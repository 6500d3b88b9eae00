"""vLLM as it was before, after a test that installs hooks in its own process."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from chameleon_lora.engine_vllm.hook_table import HOOKS
from chameleon_lora.engine_vllm.hooks import _is_expected, _owner, is_installed


@contextmanager
def vllm_restored() -> Iterator[None]:
    """Afterwards every attribute that the table replaces is what it was before, or not there."""
    before: list[tuple[Any, str, list[Any]]] = []
    for hook in HOOKS:
        if hook.wrapper is not None and _is_expected(hook):  # an older vLLM lacks some modules
            owner, attribute = _owner(hook.module, hook.target)
            before.append(
                (owner, attribute, [vars(owner)[a] for a in vars(owner) if a == attribute])
            )
    try:
        yield
    finally:
        for owner, attribute, found in before:
            if found:
                setattr(owner, attribute, found[0])
            elif attribute in vars(owner):
                delattr(owner, attribute)


@contextmanager
def vllm_unhooked() -> Iterator[None]:
    """vLLM without Chameleon's hooks for a while, whatever an engine put there in this process."""
    with vllm_restored():
        for hook in HOOKS:
            if hook.wrapper is None or not _is_expected(hook):
                continue
            owner, attribute = _owner(hook.module, hook.target)
            while is_installed(hook):
                if hook.is_new:
                    delattr(owner, attribute)
                else:
                    setattr(owner, attribute, getattr(owner, attribute).__wrapped__)
        yield

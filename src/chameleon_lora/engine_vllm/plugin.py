"""vLLM's general plugin: called in every process of every vLLM in this environment."""

import multiprocessing
import signal

from chameleon_lora.engine_vllm import hooks


def register() -> None:
    """Afterwards this process can serve with Chameleon. Idempotent; changes nothing for others.

    Engines that did not choose Chameleon go on whatever their vLLM is; one that did is told what is
    missing (`hooks.require_hooks`).
    """
    hooks.install()


def leave_ctrl_c_to_server() -> None:
    """Ctrl-C at a terminal reaches every process of a server; in this one it has no effect from now on.

    The first process lets streams end and then ends the others in order. For an engine's main thread.
    """
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

"""vLLM's general plugin: called in every process of every vLLM in this environment."""

from chameleon_lora.engine_vllm import hooks


def register() -> None:
    """Afterwards this process can serve with Chameleon. Idempotent; changes nothing for others.

    Engines that did not choose Chameleon go on whatever their vLLM is; one that did is told what is
    missing (`hooks.require_hooks`).
    """
    hooks.install()

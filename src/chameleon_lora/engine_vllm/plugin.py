"""vLLM's general plugin: called in every process of every vLLM in this environment."""

import logging

from chameleon_lora.engine_vllm import api_patch, core_patch, probe, tenant_patch, worker_patch

_logger = logging.getLogger(__name__)


def register() -> None:
    """Afterwards this process can serve with Chameleon. Idempotent; changes nothing for others.

    On a vLLM whose pieces have moved it leaves everything as it is: engines that did not choose
    Chameleon go on, and one that did is told what is missing (`touchpoints.check_engine`).
    """
    try:
        worker_patch.install()
        core_patch.install()
        api_patch.install()
        probe.install()
        tenant_patch.install()
    except (ImportError, AttributeError) as error:
        _logger.debug("Chameleon does not know this vLLM: %s", error)

"""vLLM's general plugin: called in every process of every vLLM in this environment."""

import logging

from chameleon_lora.engine_vllm.api import isolation, server_patch
from chameleon_lora.engine_vllm.core import utilities
from chameleon_lora.engine_vllm.measure import step_log
from chameleon_lora.engine_vllm.worker import worker_patch

_logger = logging.getLogger(__name__)


def register() -> None:
    """Afterwards this process can serve with Chameleon. Idempotent; changes nothing for others.

    On a vLLM whose pieces have moved it leaves everything as it is: engines that did not choose
    Chameleon go on, and one that did is told what is missing (`touchpoints.check_engine`).
    """
    try:
        worker_patch.install()
        utilities.install()
        server_patch.install()
        step_log.install()
        isolation.install()
    except (ImportError, AttributeError) as error:
        _logger.debug("Chameleon does not know this vLLM: %s", error)

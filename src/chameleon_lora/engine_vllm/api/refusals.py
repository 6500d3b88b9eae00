"""Why adapters that are on disk are not served: for who asks, for pages, and for the log, which tells each once."""

import logging
from collections.abc import Mapping
from typing import Any

from chameleon_lora.errors import AdapterError, AdapterUnreadableError

_logger = logging.getLogger(f"vllm.{__name__}")


class Refusals:
    """Of one API server. Owner: its AdapterRegistry.

    Attributes:
        refused: name -> why an adapter that is on disk is not served, as a request for it is told.
        unfit: name -> why a folder there is no adapter that could be asked for.
        unread: of what is offered: why its changed files are not known.
    """

    def __init__(self, models: Any) -> None:
        self._models = models
        self._failed: dict[str, tuple[Any, str]] = {}  # with the LoRARequest that the engine failed
        self.refused: dict[str, str] = {}
        self.unfit: dict[str, str] = {}
        self.unread: dict[str, str] = {}

    def why(self, name: str) -> str | None:
        """Why no request for this adapter is let in; None if one is."""
        failed = self._failed.get(name)
        if failed is not None and self._models.lora_requests.get(name) is failed[0]:
            return failed[1]
        if name in self._models.lora_requests or self._models.is_base_model(name):
            return None
        return self.refused.get(name) or self.unfit.get(name)

    @property
    def failed(self) -> dict[str, str]:
        """Name -> why, for what is offered and was found unfit by the engine."""
        return {name: why for name in self._failed if (why := self.why(name))}

    @property
    def all(self) -> dict[str, str]:
        """Name -> why, for all that is meant for an adapter and has no request let in."""
        return {**self.unfit, **self.refused, **self.failed}

    def found_unfit(self, lora_request: Any, reason: str) -> None:
        """The engine found that what this request names can never be loaded, as long as it is served."""
        name = lora_request.lora_name
        if self._models.lora_requests.get(name) is lora_request:
            self._failed[name] = (lora_request, reason)

    def checked(self, found: Mapping[str, object]) -> None:
        """Keep of each why it is not served, or why what was offered before stays so; once in the log."""
        for name, it in found.items():
            before = self.refused.pop(name, None) or self.unread.pop(name, None)
            if not isinstance(it, AdapterError):
                continue
            stays = isinstance(it, AdapterUnreadableError) and name in self._models.lora_requests
            (self.unread if stays else self.refused)[name] = str(it)
            if before != str(it):
                effect = "Adapter stays what it was" if stays else "Adapter not served"
                _logger.warning("%s: %s", effect, it)

    def left_out(self, unfit: dict[str, str]) -> None:
        """Keep why these folders are no adapters, and others are; once in the log."""
        for name, why in unfit.items():
            if self.unfit.get(name) != why:
                _logger.warning("Adapter not served: adapter %r: %s", name, why)
        self.unfit = unfit

    def withdrawn(self, name: str) -> None:
        """It is offered no more, so nothing is wrong with what was."""
        self.unread.pop(name, None)
        self._failed.pop(name, None)

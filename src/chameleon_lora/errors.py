"""What a user can act on.

ChameleonError
├── ConfigError            a setting is unknown, of the wrong type or out of range
│   └── NoLoadError            no load meets the objective (`planning/planning.py`)
├── AdapterError           an adapter cannot be served
│   ├── AdapterNotFoundError
│   ├── AdapterInvalidError    its files are broken, incomplete or of an unsupported kind
│   ├── AdapterUnreadableError its files cannot be read now; what is in them is not known
│   │   └── AdapterTimeoutError    nor can it be told soon, as where a disk hangs
│   ├── AdapterUnfitError      its files are sound, but what is in them will not do for this model
│   ├── LoadFailedError        the engine tried to load it and could not (`engine_vllm/errors.py`)
│   ├── AdapterRequestsError   requests of vLLM's LLM class ended without an answer
│   └── AdapterTooLargeError   its rank or its bytes are above the limit
├── UnsupportedEngineError the installed vLLM lacks something Chameleon stands on
├── UnsupportedLayoutError this model's KV cache cannot hold adapters
├── EngineGoneError        the engine of a server ended by itself
└── BenchError             a server did not start, or answered what no OpenAI server answers
    └── UnreachableError       nobody answers there (`bench/discovery.py`)

Each message gives the value, the limit and the way out.
"""

from typing import Any


class ChameleonError(Exception):
    """Base of all errors a user can act on."""


class ConfigError(ChameleonError):
    """A setting is unknown, of the wrong type or out of range."""


class AdapterError(ChameleonError):
    """An adapter cannot be served; the message names it and the reason."""


class AdapterNotFoundError(AdapterError):
    """No adapter of that name or path exists."""


class AdapterInvalidError(AdapterError):
    """The adapter's files are broken, incomplete or of an unsupported kind."""


class AdapterUnreadableError(AdapterError):
    """The adapter's files cannot be read at the moment, by the fault of a disk, rights or limits."""


class AdapterTimeoutError(AdapterUnreadableError):
    """Nothing can be said about the adapter just now: its disk, or too many others, do not answer."""


class AdapterUnfitError(AdapterError):
    """The adapter's files are sound, but their content will not do for the model at hand, ever."""


class AdapterRequestsError(AdapterError):
    """Requests ended without an answer, because their adapters cannot be loaded; all others have one.

    Attributes:
        outputs: vLLM's, of all requests in order. One that failed has an `error_message` as well.
    """

    def __init__(self, message: str, outputs: list[Any]) -> None:
        super().__init__(message)
        self.outputs = outputs


class AdapterTooLargeError(AdapterError):
    """The adapter's rank or its bytes are above the engine's limit."""


class UnsupportedEngineError(ChameleonError):
    """The installed vLLM lacks something Chameleon stands on; the message names version and piece."""


class UnsupportedLayoutError(ChameleonError):
    """The engine's KV cache is laid out so that its blocks cannot hold adapters."""


class EngineGoneError(ChameleonError):
    """A server's engine ended by itself; the server ends with status 1."""


class BenchError(ChameleonError):
    """A server under test did not start, or answered what no OpenAI server answers."""

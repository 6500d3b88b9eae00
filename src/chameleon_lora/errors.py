"""What a user can act on.

ChameleonError
├── ConfigError            a setting is unknown, of the wrong type or out of range
├── AdapterError           an adapter cannot be served
│   ├── AdapterNotFoundError
│   ├── AdapterInvalidError    its files are broken, incomplete or of an unsupported kind
│   └── AdapterTooLargeError   its rank or its bytes are above the limit
├── UnsupportedEngineError the installed vLLM lacks something Chameleon stands on
├── UnsupportedLayoutError this model's KV cache cannot hold adapters
├── EngineGoneError        the engine of a server ended by itself
└── BenchError             a server did not start, or answered what no OpenAI server answers

Each message gives the value, the limit and the way out.
"""


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

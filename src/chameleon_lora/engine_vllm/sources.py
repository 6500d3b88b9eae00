"""Which folder the path of an adapter means, and what an adapter may be on this machine and engine."""

from pathlib import Path
from typing import Any

from chameleon_lora.adapters import AdapterLimits
from chameleon_lora.adapters.inspect import largest_bytes
from chameleon_lora.adapters.untrusted import is_folder, leads_nowhere, quoted, unreadable
from chameleon_lora.engine_vllm.config import settings_of
from chameleon_lora.errors import AdapterNotFoundError, AdapterUnreadableError

MAX_PATH_CHARS = 4096


def servable_limits(vllm_config: Any) -> AdapterLimits:
    """What an adapter may be to be served by an engine with LoRA."""
    return AdapterLimits(
        vllm_config.lora_config.max_lora_rank,
        largest_bytes(),
        has_head(vllm_config.model_config),
        converts_bin=settings_of(vllm_config).serving.converts_bin,
    )


def has_head(model_config: Any) -> bool:
    """Whether the model is a classifier, whose head an adapter may replace; as vLLM decides it."""
    score_type = getattr(model_config, "score_type", None)  # vLLM 0.26 replaces no heads
    return bool(model_config.runner_type == "pooling" and score_type == "cross-encoder")


def resolved(path: str, name: str) -> Path:
    """The folder a path means, or that of a hub's name, fetched if it is not there; for adapter `name`.

    Raises:
        AdapterNotFoundError: it cannot be fetched, or is no path at all.
        AdapterUnreadableError: the disk does not tell, or cannot hold what is fetched.
    """
    from vllm.lora.utils import get_adapter_absolute_path

    if not path.isprintable() or len(path) > MAX_PATH_CHARS:
        raise AdapterNotFoundError(
            f"adapter {name!r}: there is none at a path of {len(path)} characters that begins {path[:60]!r}; "
            f"way out: give a printable one of at most {MAX_PATH_CHARS} characters"
        )
    if "://" in path:
        raise AdapterNotFoundError(
            f"adapter {name!r}: {path!r} is no folder, and nothing is fetched from such an address; way "
            "out: mount it or copy it, and give the path of the adapter's folder"
        )
    try:
        is_folder(Path(path))  # vLLM takes what a disk fails to tell of for a hub's name
        return Path(get_adapter_absolute_path(path))
    except AdapterUnreadableError as error:
        raise AdapterUnreadableError(f"adapter {name!r}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno and not leads_nowhere(error):
            reason = unreadable(quoted(path), error)
            raise AdapterUnreadableError(f"adapter {name!r}: {reason}") from error
        raise AdapterNotFoundError(
            f"adapter {name!r}: there is no folder {path!r}, and no hub that could be asked for it "
            f"({type(error).__name__}); way out: give the path of the adapter's folder"
        ) from error

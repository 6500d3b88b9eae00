"""Which folder the path of an adapter means."""

from pathlib import Path

from chameleon_lora.errors import AdapterNotFoundError

MAX_PATH_CHARS = 4096


def resolved(path: str, name: str) -> Path:
    """The folder a path means, or that of a hub's name, fetched if it is not there; for adapter `name`.

    Raises:
        AdapterNotFoundError: it cannot be fetched, or is no path at all.
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
        return Path(get_adapter_absolute_path(path))
    except Exception as error:
        raise AdapterNotFoundError(
            f"adapter {name!r}: there is no folder {path!r}, and no hub that could be asked for it "
            f"({type(error).__name__}); way out: give the path of the adapter's folder"
        ) from error

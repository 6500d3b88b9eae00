"""Reads one pickled file of tensors and writes them as safetensors, in a process of its own.

    python -P -m chameleon_lora.adapters.unpickle SOURCE TARGET

Both are numbers of open files. torch reads with `weights_only`: no code of the file's is run, and what is
no tensor is refused. Before the first byte is read the process gives up whatever more it could do: memory
beyond some times the file, more than a minute of CPU, other files, children. `convert` starts it and tells
what came of it; REFUSED and FAILED have the reason on stderr.
"""

import errno
import os
import resource
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save

from chameleon_lora.adapters.convert import FAILED, REFUSED
from chameleon_lora.adapters.untrusted import quoted

CPU_SECONDS = 60
MOST_TIMES = 2  # the bytes of all tensors, in sizes of the file: two may share what is stored once
_ROOM_TIMES, _ROOM_BYTES = 8, 512 << 20  # the file, its tensors, and both as safetensors has them
_MOST_FILES = 24
_ONE_READ_BYTES = 1 << 20


def main() -> int:
    """Afterwards the target holds the tensors; a status other than 0 says that it does not."""
    source, target = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    file_bytes = os.fstat(source).st_size
    _give_up_rights(file_bytes)
    try:
        _read_all(source)
        raw = save(_tensors(f"/proc/self/fd/{source}", file_bytes), metadata={"format": "pt"})
        with os.fdopen(target, "wb") as file:
            file.write(raw)
    except Exception as error:  # noqa: BLE001  # whatever a hostile file can cause becomes an answer
        sys.stderr.write(_in_words(error) + "\n")
        # EINVAL: the file's own words led nowhere.
        is_of_machine = isinstance(error, OSError) and error.errno != errno.EINVAL
        return FAILED if is_of_machine else REFUSED
    return 0


def _read_all(source: int) -> None:
    """Nothing if the disk gives all of the file: what torch makes of a failing one looks like a broken file.

    Raises:
        OSError: it does not.
    """
    while os.read(source, _ONE_READ_BYTES):
        pass


def _give_up_rights(file_bytes: int) -> None:
    """No more memory, time, files or processes than reading a sound file of that size takes."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    limits = {
        resource.RLIMIT_AS: held + _ROOM_TIMES * file_bytes + _ROOM_BYTES,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_NOFILE: _MOST_FILES,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        _, most = resource.getrlimit(kind)
        lower = limit if most == resource.RLIM_INFINITY else min(limit, most)
        soft = lower - (kind == resource.RLIMIT_CPU)  # SIGXCPU, not SIGKILL as for want of memory
        resource.setrlimit(kind, (soft, lower))


def _tensors(path: str, file_bytes: int) -> dict[str, torch.Tensor]:
    """The file's tensors, each with bytes of its own.

    Raises:
        ValueError: it holds anything else, or claims more than it has.
        Exception: torch's, for what cannot be read without running code.
    """
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _require_stored(path, file_bytes)
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"it holds a {type(found).__name__}, not names with tensors")
    for name, value in found.items():
        if not isinstance(name, str) or not _is_plain(value):
            kind = type(value).__name__
            raise ValueError(
                f"under {quoted(name)} is a {kind} that is no plain tensor with a name"
            )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if claimed > MOST_TIMES * file_bytes:
        raise ValueError(f"its tensors claim {claimed} bytes, the file has {file_bytes}")
    return {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in found.items()
    }


def _require_stored(path: str, file_bytes: int) -> None:
    """Nothing if no part of the archive is larger than what lies there: torch compresses none."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    is_stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
    if not is_stored or sum(part.file_size for part in parts) > file_bytes:
        raise ValueError("it is compressed, or its parts overlap, which torch.save does not write")


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
        and not value.is_quantized
    )


def _in_words(error: Exception) -> str:
    """One line; of torch's page about `weights_only`, the sentence that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "nsupported" in line or "not an allowed" in line]
    return " ".join((telling or lines or [type(error).__name__])[0].split())[:300].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())

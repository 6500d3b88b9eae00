"""Other bytes in an adapter's files, of the same number and with the same time of change."""

import os
import shutil
from pathlib import Path

FILE_CHANGES = ("in place", "by cp -p", "by rename")


def rewrite(path: Path, way: str, place: int = -2) -> None:
    """Change the byte at that place, and put the time of change back, as that tool does."""
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    times = path.stat()
    if way == "in place":
        path.write_bytes(raw)
    else:
        other = path.with_name("other")
        other.write_bytes(raw)
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        if way == "by cp -p":
            shutil.copy2(other, path)
            other.unlink()
        else:
            other.replace(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def wait_for_tick(path: Path) -> None:
    """Until the file system's clock, which goes by some milliseconds, is past the file's last change."""
    probe = path.parent.parent / "tick"
    probe.touch()
    while probe.stat().st_ctime_ns <= path.stat().st_ctime_ns:
        probe.touch()
    probe.unlink()

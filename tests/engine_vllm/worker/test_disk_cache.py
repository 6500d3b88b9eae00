"""DiskCache: what was packed comes back, or nothing does, whatever the disk does."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.worker.disk_cache import DiskCache  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import (  # noqa: E402
    PackedAdapter,
    Piece,
    packed_over,
)

OLD, NEW = "1", "2"
IMAGE_BYTES = 512
ROOM_BYTES = 3 * IMAGE_BYTES


def image(adapter_id: int, value: int) -> PackedAdapter:
    """An image of two matrices, all of one byte value."""
    flat = torch.full((IMAGE_BYTES,), value, dtype=torch.uint8)
    pieces = (Piece("q", 0, "a", 2, 8, 0, 64), Piece("q", 0, "b", 8, 2, 256, 64))
    return packed_over(flat, adapter_id, 2, torch.float32, pieces)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[DiskCache]:
    """Room for three images."""
    file = DiskCache(tmp_path, ROOM_BYTES)
    yield file
    file.close()


def test_an_image_comes_back_byte_for_byte(images: DiskCache) -> None:
    """A saved image has the same bytes, matrices and rank when it is loaded."""
    saved = image(1, 7)
    images.save(saved, OLD)
    found = images.load(1, OLD)
    assert found is not None
    assert (saved.rank, saved.pieces) == (found.rank, found.pieces)
    assert saved.flat.equal(found.flat)
    assert all(a.equal(b) for a, b in zip(saved.views, found.views, strict=True))


def test_another_content_is_not_answered_from_the_file(images: DiskCache) -> None:
    """None for an id whose files were rewritten since: the old weights are never served."""
    images.save(image(1, 7), OLD)
    assert images.load(1, NEW) is None
    assert images.load(2, OLD) is None


def test_the_oldest_makes_room(images: DiskCache) -> None:
    """A fourth image in room for three replaces the first and no other."""
    for adapter_id in (1, 2, 3, 4):
        images.save(image(adapter_id, adapter_id), OLD)
    found = {i: images.load(i, OLD) for i in (1, 2, 3, 4)}
    assert found[1] is None
    for adapter_id in (2, 3, 4):
        kept = found[adapter_id]
        assert kept is not None
        assert kept.flat.equal(image(adapter_id, adapter_id).flat)


def test_a_new_content_replaces_the_old_one(images: DiskCache) -> None:
    """Saving an id again makes its latest bytes the ones that come back; the same content is kept."""
    images.save(image(1, 7), OLD)
    images.save(image(1, 9), OLD)
    first = images.load(1, OLD)
    assert first is not None
    assert first.flat.equal(image(1, 7).flat)
    images.save(image(1, 8), NEW)
    found = images.load(1, NEW)
    assert found is not None
    assert found.flat.equal(image(1, 8).flat)


@pytest.mark.parametrize(("limit_bytes", "workers"), [(IMAGE_BYTES - 1, 1), (3 * IMAGE_BYTES, 4)])
def test_an_image_above_the_limit_is_not_kept(
    tmp_path: Path, limit_bytes: int, workers: int
) -> None:
    """The limit is for all workers together, so one has its part of it."""
    file = DiskCache(tmp_path, limit_bytes, workers)
    file.save(image(1, 7), OLD)
    assert file.load(1, OLD) is None
    file.close()


def test_nothing_is_left_on_the_disk(images: DiskCache, tmp_path: Path) -> None:
    """The file has no name, so that a killed worker leaves nothing behind."""
    images.save(image(1, 7), OLD)
    assert [] == list(tmp_path.iterdir())


def test_what_is_done_is_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the file is, how large it may become, and by which setting."""
    caplog.set_level("INFO")
    file = DiskCache(tmp_path, ROOM_BYTES, 3)
    file.save(image(1, 7), OLD)
    file.close()
    (record,) = caplog.records
    for word in (str(tmp_path), str(IMAGE_BYTES), "3 workers", "serving.disk_cache_bytes"):
        assert word in record.getMessage()


def test_a_folder_that_is_not_there_costs_the_images_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, and nothing is kept; no load fails for it."""
    file = DiskCache(tmp_path / "nowhere", ROOM_BYTES)
    file.save(image(1, 7), OLD)
    assert file.load(1, OLD) is None
    file.close()
    assert ["nowhere" in record.getMessage() for record in caplog.records] == [True]


def test_a_folder_in_memory_is_not_taken_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system keeps temporary files in memory, copies there would save nothing."""
    shared_memory = Path("/dev/shm")  # a tmpfs on every Linux
    if not os.access(shared_memory, os.W_OK):
        pytest.skip("there is no file system in memory to write to")
    monkeypatch.setattr("tempfile.tempdir", str(shared_memory))
    file = DiskCache(None, ROOM_BYTES)
    file.save(image(1, 7), OLD)
    assert file.load(1, OLD) is None
    file.close()


@contextmanager
def full_disk(size_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond that meanwhile."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))  # "file too large"
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_the_image_only(
    images: DiskCache, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written is not kept, what was kept before still comes back; it is told once.

    Nothing of it stays on the disk: others need the space.
    """
    images.save(image(1, 7), OLD)
    with full_disk(IMAGE_BYTES * 3 // 2):
        images.save(image(2, 8), OLD)
        assert IMAGE_BYTES == os.fstat(images._descriptor).st_size
        assert images.load(1, OLD) is not None
        for _ in range(2):
            images.save(image(3, 9), OLD)  # the space there is goes to the newest
    assert [None, None] == [images.load(adapter_id, OLD) for adapter_id in (1, 2)]
    found = images.load(3, OLD)
    assert found is not None
    assert found.flat.equal(image(3, 9).flat)
    images.save(image(4, 1), OLD)
    assert images.load(4, OLD) is not None
    assert 1 == sum("disk cache failed" in record.getMessage() for record in caplog.records)


def test_a_disk_that_hangs_is_asked_no_more_until_it_answers(tmp_path: Path) -> None:
    """Whoever asks gives up after a while, the next at once; then it serves again."""
    go, is_hanging = threading.Event(), threading.Event()

    def hang() -> None:
        is_hanging.set()
        go.wait()

    file = DiskCache(tmp_path, ROOM_BYTES, prepare_thread=hang, patience_s=0.05)
    is_hanging.wait()
    file.save(image(1, 7), OLD)
    for _ in range(1000):  # each would wait for the patience alone
        file.save(image(1, 7), OLD)
    assert file.load(1, OLD) is None
    go.set()
    while file.load(1, OLD) is None:
        file.save(image(1, 7), OLD)
    file.close()

"""ImageFile: what was packed comes back, or nothing does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.worker.disk_cache import DiskCache, fingerprint_of  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import PackedAdapter, Piece, image_over  # noqa: E402

SOURCE = (("adapter_model.safetensors", 10, 1),)
IMAGE_BYTES = 512


def image(adapter_id: int, value: int) -> PackedAdapter:
    """An image of two matrices, all of one byte value."""
    flat = torch.full((IMAGE_BYTES,), value, dtype=torch.uint8)
    pieces = (Piece("q", 0, "a", 2, 8, 0, 64), Piece("q", 0, "b", 8, 2, 256, 64))
    return image_over(flat, adapter_id, 2, torch.float32, pieces)


@pytest.fixture
def images(tmp_path: Path) -> Iterator[DiskCache]:
    """Room for three images."""
    file = DiskCache(tmp_path, limit_bytes=3 * IMAGE_BYTES)
    yield file
    file.close()


def test_an_image_comes_back_byte_for_byte(images: DiskCache) -> None:
    """A saved image has the same bytes, matrices and rank when it is loaded."""
    saved = image(1, 7)
    assert images.save(saved, SOURCE)
    found = images.load(1, SOURCE)
    assert found is not None
    assert (saved.rank, saved.pieces) == (found.rank, found.pieces)
    assert saved.flat.equal(found.flat)
    assert all(a.equal(b) for a, b in zip(saved.views, found.views, strict=True))


def test_a_changed_source_is_not_answered_from_the_file(images: DiskCache) -> None:
    """None for an id whose files were rewritten since: the old weights are never served."""
    images.save(image(1, 7), SOURCE)
    assert images.load(1, (("adapter_model.safetensors", 10, 2),)) is None
    assert images.load(2, SOURCE) is None


def test_the_oldest_makes_room(images: DiskCache) -> None:
    """A fourth image in room for three replaces the first and no other."""
    for adapter_id in (1, 2, 3, 4):
        images.save(image(adapter_id, adapter_id), SOURCE)
    found = {i: images.load(i, SOURCE) for i in (1, 2, 3, 4)}
    assert found[1] is None
    for adapter_id in (2, 3, 4):
        kept = found[adapter_id]
        assert kept is not None
        assert kept.flat.equal(image(adapter_id, adapter_id).flat)


def test_a_new_version_replaces_the_old_one(images: DiskCache) -> None:
    """Saving an id again makes its latest bytes the ones that come back."""
    images.save(image(1, 7), SOURCE)
    newer = (("adapter_model.safetensors", 10, 2),)
    images.save_once(image(1, 8), newer)
    found = images.load(1, newer)
    assert found is not None
    assert found.flat.equal(image(1, 8).flat)


def test_an_image_above_the_limit_is_not_kept(tmp_path: Path) -> None:
    """False, and no disk is used."""
    file = DiskCache(tmp_path, limit_bytes=IMAGE_BYTES - 1)
    assert not file.save(image(1, 7), SOURCE)
    assert file.load(1, SOURCE) is None
    file.close()


def test_nothing_is_left_on_the_disk(images: DiskCache, tmp_path: Path) -> None:
    """The file has no name, so that a killed worker leaves nothing behind."""
    images.save(image(1, 7), SOURCE)
    assert [] == list(tmp_path.iterdir())


def test_a_fingerprint_tells_versions_apart(tmp_path: Path) -> None:
    """Rewriting the weights changes it; reading them does not."""
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"one")
    first = fingerprint_of(str(tmp_path))
    assert first == fingerprint_of(str(tmp_path))
    weights.write_bytes(b"three")
    assert first != fingerprint_of(str(tmp_path))

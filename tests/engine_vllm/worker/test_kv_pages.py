"""KvPages: adapters' bytes in KV-cache blocks of every layout, and no others' bytes touched."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.errors import UnsupportedLayoutError

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.worker.kv_pages import KvPages, kv_pages_of  # noqa: E402

BLOCKS = 10
LAYERS = 3
PAGE = 64  # bytes of one layer's page in the layouts below


def runner(caches: list[Any], specs: tuple[Any, ...] = (), blocks: int = BLOCKS) -> Any:
    """A model runner as far as its KV cache."""
    groups = [SimpleNamespace(kv_cache_spec=spec) for spec in specs]
    config = SimpleNamespace(num_blocks=blocks, kv_cache_groups=groups)
    return SimpleNamespace(kv_caches=caches, kv_cache_config=config)


def one_buffer(layer_stride: int, block_stride: int, dtype: Any = torch.float32) -> list[Any]:
    """Layers' views of one allocation, as vLLM 0.32 makes them: (blocks, heads, tokens, content)."""
    buffer = torch.zeros(LAYERS * BLOCKS * PAGE, dtype=torch.uint8)
    elements = buffer.view(dtype)
    size = dtype.itemsize
    shape = (BLOCKS, 2, 4, PAGE // 8 // size)
    strides = (block_stride // size, 4 * shape[3], shape[3], 1)
    return [
        elements.as_strided(shape, strides, layer * layer_stride // size) for layer in range(LAYERS)
    ]


def separate(dtype: Any = torch.float32) -> list[Any]:
    """A tensor per layer, as vLLM 0.26 makes them."""
    shape = (BLOCKS, 2, 4, PAGE // 8 // dtype.itemsize)
    return [torch.zeros(shape, dtype=dtype) for _ in range(LAYERS)]


LAYOUTS: dict[str, Callable[[], list[Any]]] = {
    "a tensor a layer": separate,
    "a tensor a layer, bf16": lambda: separate(torch.bfloat16),
    "lists of tensors": lambda: [[cache] for cache in separate()],
    "layers outermost": lambda: one_buffer(BLOCKS * PAGE, PAGE),
    "blocks outermost": lambda: one_buffer(PAGE, LAYERS * PAGE),
    "blocks outermost, bf16": lambda: one_buffer(PAGE, LAYERS * PAGE, torch.bfloat16),
    "tokens before heads": lambda: [cache.transpose(1, 2) for cache in separate()],
    "shared layers": lambda: [cache for cache in separate() for _ in range(2)],
    "kernel blocks": lambda: [cache.view(2 * BLOCKS, 1, 4, -1) for cache in separate()],
}


def memory(pages: KvPages) -> Any:
    """All bytes of the cache."""
    return torch.cat(pages.elements(torch.uint8))


def read(pages: KvPages, blocks: tuple[int, ...], nbytes: int) -> Any:
    """What lies in the runs, in the adapter's order."""
    storages = pages.elements(torch.uint8)
    runs = pages.runs(blocks, nbytes)
    found = [storages[run.storage][run.offset : run.offset + run.nbytes] for run in runs]
    return torch.cat(found)


def noise(nbytes: int) -> Any:
    """Random bytes without a zero."""
    generator = torch.Generator().manual_seed(nbytes)
    return torch.randint(1, 256, (nbytes,), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("blocks", [(1, 2, 3, 4), (7, 2, 9, 3), (4, 3, 2, 1), (5, 6, 1, 2)])
@pytest.mark.parametrize("nbytes", [8, 64, 4 * 64 + 24, 10 * 64 + 32, 12 * 64])
def test_what_is_stored_is_read_back_and_nothing_else_is_touched(
    layout: str, blocks: tuple[int, ...], nbytes: int
) -> None:
    """For partial last pages too, wherever the blocks are."""
    pages = kv_pages_of(runner(LAYOUTS[layout]()))
    data = noise(nbytes)
    pages.store(data, blocks)
    assert torch.equal(data, read(pages, blocks, nbytes))
    assert nbytes == int(memory(pages).count_nonzero())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_has_a_page_in_each_layer_once(layout: str) -> None:
    """Layers that share a cache count once; kernels' smaller blocks make one."""
    pages = kv_pages_of(runner(LAYOUTS[layout]()))
    assert (LAYERS * PAGE, BLOCKS) == (pages.block_bytes, pages.num_blocks)
    assert [0, 1, 1, 2] == [pages.blocks_for(n) for n in (0, 1, 192, 193)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adapter_lies_in_its_blocks_pages_alone(layout: str) -> None:
    """Through the caches' own tensors, exactly the blocks given are other than zero."""
    caches = LAYOUTS[layout]()
    kv_pages_of(runner(caches)).store(noise(2 * LAYERS * PAGE), (7, 3))
    for cache in caches:
        tensor = cache[0] if isinstance(cache, list) else cache
        bytes_of_blocks = tensor.contiguous().view(torch.uint8).reshape(BLOCKS, -1)
        assert [3, 7] == bytes_of_blocks.any(dim=1).nonzero().flatten().tolist()


def test_adjacent_blocks_make_one_run_where_pages_are_adjacent() -> None:
    """One per layer if blocks are in order, one per page if they are not."""
    layers_first = kv_pages_of(runner(LAYOUTS["layers outermost"]()))
    blocks_first = kv_pages_of(runner(LAYOUTS["blocks outermost"]()))
    everything = 4 * LAYERS * PAGE
    assert LAYERS == len(layers_first.runs((3, 4, 5, 6), everything))
    assert 4 * LAYERS == len(layers_first.runs((6, 5, 4, 3), everything))
    assert 4 * LAYERS == len(blocks_first.runs((3, 4, 5, 6), everything))
    assert 1 == len(layers_first.runs((3, 4, 5, 6), PAGE))


def test_pages_of_different_sizes_are_told_apart() -> None:
    """Layers may have pages of their own size."""
    caches = [torch.zeros(BLOCKS, 16), torch.zeros(BLOCKS, 4), torch.zeros(BLOCKS, 8)]
    pages = kv_pages_of(runner(caches))
    data = noise(3 * 112 - 8)
    pages.store(data, (8, 1, 5))
    assert torch.equal(data, read(pages, (8, 1, 5), data.numel()))


class MambaSpec:
    """Named as vLLM's."""


class KernelOwnSpec:
    """A spec whose memory the kernel lays out itself."""

    has_layer_views = False


def overlapping() -> list[Any]:
    """Two layers' pages that share half their bytes."""
    buffer = torch.zeros(BLOCKS * 24)
    return [buffer[: BLOCKS * 16].view(BLOCKS, 16), buffer[8 : BLOCKS * 16 + 8].view(BLOCKS, 16)]


@pytest.mark.parametrize(
    ("caches", "specs", "reason"),
    [
        ([], (), "no KV cache"),
        ([torch.zeros(BLOCKS + 1, 16)], (), r"shape \(11, 16\).* not divided into 10 blocks"),
        ([torch.zeros(2, BLOCKS, 16)], (), "not divided into 10 blocks"),
        ([torch.zeros(BLOCKS, 4, 8)[:, :, :4]], (), r"strides \(32, 8, 1\).* not compact"),
        ([torch.zeros(2 * BLOCKS, 32)[:, :16]], (), "not compact"),
        ([torch.zeros(1, 16).expand(BLOCKS, 16)], (), "not compact"),
        (overlapping(), (), "may overlap"),
        ([torch.zeros(BLOCKS, 16)], (MambaSpec(),), "MambaSpec layers keep states"),
        ([torch.zeros(BLOCKS, 16)], (KernelOwnSpec(),), "KernelOwnSpec layers keep states"),
        (
            [torch.zeros(BLOCKS, 16)],
            (SimpleNamespace(kv_cache_specs={"a": object(), "b": MambaSpec()}),),
            "MambaSpec",
        ),
    ],
)
def test_what_is_not_plain_pages_is_refused(
    caches: list[Any], specs: tuple[Any, ...], reason: str
) -> None:
    """With the reason, before anything is written."""
    with pytest.raises(UnsupportedLayoutError, match=reason):
        kv_pages_of(runner(caches, specs))


def test_groups_laid_over_one_another_count_once() -> None:
    """Layers of different groups in the same memory are one run of pages, and not refused."""
    cache = torch.zeros(BLOCKS, 16)
    pages = kv_pages_of(runner([cache, cache.view(torch.int32).view(BLOCKS, 4, 4)]))
    assert PAGE == pages.block_bytes


def test_pages_that_split_an_element_are_refused() -> None:
    """A page of 6 bytes holds no whole number of fp32 weights."""
    pages = kv_pages_of(runner([torch.zeros(BLOCKS, 3, dtype=torch.bfloat16)]))
    assert 1 == len(pages.elements(torch.bfloat16))
    with pytest.raises(UnsupportedLayoutError, match="units of 2 bytes"):
        pages.elements(torch.float32)

"""What does one layer's product for a batch of many adapters take? Run: `.venv/bin/python -m experiments.grouped_product`.

A packed layer (q, k and v: 576 -> 576 + 192 + 192) of float32, one thread. Three ways, which must agree: the compiled
loop of `serving.lora_backend = "paged"`; a call to torch for each group and factor; `cblas_sgemm_batch`, all groups in one
call for each factor, where torch's library has it (x86). For each number of adapters it prints the medians in
microseconds of --repeats calls of each. Options: --rows, --adapters, --ranks, --repeats.
"""

import argparse
import ctypes
from collections.abc import Callable, Sequence
from itertools import accumulate, cycle, islice, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import numpy as np
import torch

from chameleon_lora.engine_vllm.worker.grouped_product import compiled

INPUTS, WIDTHS = 576, (576, 192, 192)
BEGINS = (0, *accumulate(WIDTHS))
_TORCH = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
_BATCH = getattr(_TORCH, "cblas_sgemm_batch", None)
_ROW_MAJOR, _PLAIN, _TRANSPOSED = 101, 111, 112  # as in cblas.h
Way = Callable[[], object]


class Layer:
    """One batch on one layer; the groups have equal numbers of neighbouring rows, the largest rank comes first."""

    def __init__(self, rows: int, adapters: int, ranks: Sequence[int]) -> None:
        self.x, self.y = torch.randn(rows, INPUTS), torch.zeros(rows, BEGINS[-1])
        self.ranks = list(islice(cycle(sorted(ranks, reverse=True)), adapters))
        self.starts = [rows * g // adapters for g in range(adapters + 1)]
        self.a = [[torch.randn(rank, INPUTS) for rank in self.ranks] for _ in WIDTHS]
        self.b = [[torch.randn(width, rank) for rank in self.ranks] for width in WIDTHS]

    def by_loop(self) -> Way:
        """y += x @ A @ B by the product's own loop."""
        shape = np.array([len(WIDTHS), INPUTS, BEGINS[-1], *BEGINS[:-1], *WIDTHS], np.int64)
        places = [[_addresses(a), _addresses(b)] for a, b in zip(self.a, self.b, strict=True)]
        matrices = np.array([[*sides, self.ranks] for sides in places], np.int64)
        batch = np.array([len(self.ranks), *self.starts, *range(len(self.x))], np.int64)
        loop, x, y = compiled(torch.float32), self.x.data_ptr(), self.y.data_ptr()
        return lambda: loop(x, y, *(n.ctypes.data for n in (shape, matrices, batch)))

    def by_torch(self) -> None:
        """The same by two calls for each group and slice."""
        for a, b, begin, width in zip(self.a, self.b, BEGINS, WIDTHS, strict=False):
            part = self.y[:, begin : begin + width]
            for group, (first, last) in enumerate(pairwise(self.starts)):
                part[first:last].addmm_(self.x[first:last] @ a[group].T, b[group].T)

    def by_blas(self, batch: Callable[..., object]) -> Way:
        """The same by one call for each factor."""
        down, up = [], []
        for a, b, begin, width in zip(self.a, self.b, BEGINS, WIDTHS, strict=False):
            for group, (first, last) in enumerate(pairwise(self.starts)):
                low = torch.empty(last - first, self.ranks[group])
                down.append((self.x[first:last], a[group], low))
                up.append((low, b[group], self.y[first:last, begin : begin + width]))
        self.held = (down, up)  # the calls have their addresses only
        calls = [_batched(down, beta=0.0), _batched(up, beta=1.0)]
        return lambda: [batch(*call) for call in calls]


def _addresses(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _batched(products: Sequence[Sequence[torch.Tensor]], beta: float) -> list[object]:
    """Arguments of the call that makes c = beta c + a @ b.T of each; its integers have 32 bits."""
    n = len(products)
    ints, floats, pointers = ctypes.c_int * n, ctypes.c_float * n, ctypes.c_void_p * n
    sides = list(zip(*products, strict=True))
    a, b, c = ((pointers(*_addresses(s)), ints(*(t.stride(0) for t in s))) for s in sides)
    sizes = [
        ints(*size) for size in zip(*((*c.shape, a.shape[1]) for a, _, c in products), strict=True)
    ]
    kinds, alphas, betas = (ints(*[_PLAIN] * n), ints(*[_TRANSPOSED] * n)), [1.0] * n, [beta] * n
    middle = [*sizes, floats(*alphas), *a, *b, floats(*betas), *c]
    return [_ROW_MAJOR, *kinds, *middle, n, ints(*[1] * n)]


def times_us(layer: Layer, way: Way, repeats: int) -> tuple[float, torch.Tensor]:
    """The median of a way's calls, and what y then is."""
    times = []
    for _ in range(repeats):
        layer.y.zero_()
        begin = perf_counter_ns()
        way()
        times.append(perf_counter_ns() - begin)
    return median(times) / 1000, layer.y.clone()


def main() -> None:
    """Print a line for each number of adapters."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--adapters", type=int, nargs="+", default=[64, 16, 4, 1])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for adapters in options.adapters:
        layer = Layer(options.rows, adapters, options.ranks)
        ways: dict[str, Way] = {"loop": layer.by_loop(), "torch": layer.by_torch}
        ways |= {} if _BATCH is None else {"batch": layer.by_blas(_BATCH)}
        found = {name: times_us(layer, way, options.repeats) for name, way in ways.items()}
        for _, y in found.values():
            torch.testing.assert_close(y, found["loop"][1], rtol=1e-4, atol=1e-2)
        print(f"{adapters} adapters:", *(f"{name} {us:,.0f} us" for name, (us, _) in found.items()))


if __name__ == "__main__":
    main()

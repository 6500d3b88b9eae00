"""y += x @ A @ B for a batch whose rows belong to different adapters, at each adapter's own rank.

vLLM's own code for CPUs copies, for each row, a padded A and a padded B. Here each matrix is read where it
lies, once for each adapter of the batch. numba, which vLLM brings along, compiles the loop.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic

DTYPES = (torch.float32, torch.bfloat16)
"""Types of numbers that there is a loop for."""
_MATH = {"reassoc", "contract", "nsz"}  # sums in any order; infinities and nan stay what they are


def compiled(dtype: torch.dtype, threads: int = 1) -> Callable[[int, int, int, int, int], None]:
    """The loop for numbers of this type. The first call on a machine compiles it, which takes some seconds.

    It is called with addresses, `loop(x, y, layer, matrices, batch)`: x (rows, inputs) and y (rows, outputs) are of
    that type, without gaps; the others are runs of int64:

    - layer: slices S (q, k and v are three), inputs, outputs; where each slice's outputs begin; how many it has.
    - matrices: for each slice the addresses of A (rank, inputs) of each group, then those of B (width, rank), then the
      ranks, 0 where a group's adapter has nothing there.
    - batch: groups G; G + 1 numbers, where each group's rows begin among the numbers of rows that follow them.

    Args:
        dtype: one of DTYPES.
        threads: of this process's OpenMP, torch's own, which share the groups out among them.
    """
    is_spread = threads > 1
    if is_spread:
        numba.config.THREADING_LAYER = "omp"
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    loop = {
        (torch.float32, False): _float32,
        (torch.float32, True): _float32_spread,
        (torch.bfloat16, False): _bfloat16,
        (torch.bfloat16, True): _bfloat16_spread,
    }[dtype, is_spread]
    signature = types.void(*[types.int64] * 5)
    found: Callable[[int, int, int, int, int], None] = numba.cfunc(signature, cache=_CACHES)(
        loop
    ).ctypes
    return found


@intrinsic
def _floats(_context: Any, address: Any) -> Any:
    """The address as one of float32."""
    return types.CPointer(types.float32)(address), _to_pointer


@intrinsic
def _bfloats(_context: Any, address: Any) -> Any:
    """The address as one of bfloat16, which numba has not: of its bits."""
    return types.CPointer(types.uint16)(address), _to_pointer


@intrinsic
def _integers(_context: Any, address: Any) -> Any:
    """The address as one of int64."""
    return types.CPointer(types.int64)(address), _to_pointer


@intrinsic
def _alike(_context: Any, pointer: Any, address: Any) -> Any:
    """The address as one of what the pointer points to."""
    return pointer(pointer, address), _to_pointer


def _to_pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return builder.inttoptr(args[-1], context.get_value_type(signature.return_type))


@intrinsic
def _wide(_context: Any, number: Any) -> Any:
    """As float32; bfloat16 is the upper half of one."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if number == types.float32:
            return args[0]
        wide = context.get_value_type(types.uint32)
        raised = builder.shl(builder.zext(args[0], wide), wide(16))
        return builder.bitcast(raised, context.get_value_type(types.float32))

    return types.float32(number), generate


@intrinsic
def _narrow(_context: Any, number: Any, like: Any) -> Any:
    """A float32 as a number of the other's type: the nearest one, of two the even, as torch rounds."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        if like == types.float32:
            return args[0]
        wide = context.get_value_type(types.uint32)
        bits = builder.bitcast(args[0], wide)
        is_odd = builder.and_(builder.lshr(bits, wide(16)), wide(1))
        rounded = builder.add(bits, builder.add(is_odd, wide(0x7FFF)))
        half = builder.trunc(builder.lshr(rounded, wide(16)), context.get_value_type(types.uint16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.select(is_nan, half.type(0x7FC0), half)

    return like(number, like), generate


def _add(x: Any, y: Any, layer: Any, matrices: Any, batch: Any) -> None:
    head = numba.carray(_integers(layer), 3)
    slices, inputs, outputs = head[0], head[1], head[2]
    places = numba.carray(_integers(layer + 24), (2, slices))
    groups = numba.carray(_integers(batch), 1)[0]
    starts = numba.carray(_integers(batch + 8), groups + 1)
    rows = numba.carray(_integers(batch + 16 + 8 * groups), starts[groups])
    found = numba.carray(_integers(matrices), (slices, 3, groups))
    for item in numba.prange(slices * groups):
        s, g = item // groups, item % groups
        rank, begin, width = found[s, 2, g], places[0, s], places[1, s]
        if rank:
            a_side = numba.carray(_alike(x, found[s, 0, g]), (rank, inputs))
            b_side = numba.carray(_alike(x, found[s, 1, g]), (width, rank))
            low = np.empty(rank, np.float32)
            for at in range(starts[g], starts[g + 1]):
                row = rows[at]
                xs = numba.carray(x, (row + 1, inputs))
                ys = numba.carray(y, (row + 1, outputs))
                for j in range(rank):
                    total = np.float32(0)
                    for k in range(inputs):
                        total += _wide(a_side[j, k]) * _wide(xs[row, k])
                    low[j] = total
                for o in range(width):
                    total = np.float32(0)
                    for j in range(rank):
                        total += _wide(b_side[o, j]) * low[j]
                    former = ys[row, begin + o]
                    ys[row, begin + o] = _narrow(_wide(former) + total, former)


def _can_cache() -> bool:
    """Whether numba finds a folder for what it compiles; then no later process compiles it again."""
    try:
        numba.njit(cache=True)(_add)
    except RuntimeError:
        return False
    return True


_CACHES = _can_cache()
_add_alone = numba.njit(fastmath=_MATH, cache=_CACHES)(_add)
_add_spread = numba.njit(fastmath=_MATH, cache=_CACHES, parallel=True)(_add)


def _float32(x: int, y: int, layer: int, matrices: int, batch: int) -> None:
    _add_alone(_floats(x), _floats(y), layer, matrices, batch)


def _float32_spread(x: int, y: int, layer: int, matrices: int, batch: int) -> None:
    _add_spread(_floats(x), _floats(y), layer, matrices, batch)


def _bfloat16(x: int, y: int, layer: int, matrices: int, batch: int) -> None:
    _add_alone(_bfloats(x), _bfloats(y), layer, matrices, batch)


def _bfloat16_spread(x: int, y: int, layer: int, matrices: int, batch: int) -> None:
    _add_spread(_bfloats(x), _bfloats(y), layer, matrices, batch)

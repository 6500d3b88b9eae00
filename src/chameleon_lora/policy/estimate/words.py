"""What the words of prompts say about the length of answers, learned while serving.

A word is a number: a token id, or a hash of a written word. Each has a weight, and a prompt's weights
are added to the logarithm of the length that is usual for its adapter. Weights learn from every
finished request by AdaGrad (Duchi, Hazan and Singer, JMLR 2011). ADR 0018 says what was tried.
"""

import math
from array import array

from chameleon_lora.policy.estimate.quantiles import RunningQuantile
from chameleon_lora.policy.request import AdapterId, Request

OWN_AFTER = 256  # finished requests after which an adapter has weights of its own beside all's
LEARNING_RATE = 0.1
FIRST_SQUARE = 0.01  # of the gradients summed before any was seen: rare words step with care
LARGEST_ERROR = 1.0  # in logarithms, so that one run-away answer teaches as much as a threefold one
LARGEST_LOG = 30.0  # no answer has e^30 tokens

CELL_BITS = 16
WORD_MASK = (1 << 32) - 1
SPREAD = 0x9E3779B1  # 2^32 divided by the golden ratio, odd: Knuth's multiplicative hash
SALT = 0x85EBCA6B
BASE_SALT = 0xC2B2AE35  # the base model's


class WordLearner:
    """Expected output length of requests whose words are known. Lives with an engine.

    log(tokens) is expected to be the running median of what the words left unexplained lately for
    this adapter, plus the sum of the weights of the prompt's different words and of its length in
    half octaves, divided by the root of their number. From its 256th finished request on an adapter
    has weights of its own too.

    Memory: 2^16 cells of 16 bytes for all words of all adapters, a word's cell chosen by a hash;
    beside them one window an adapter. What a forgotten adapter left in the cells is not read again,
    since ids are not given twice, but words of others meet it where hashes do.
    """

    def __init__(self, window: int, prior_tokens: int, prior_weight: float) -> None:
        self._usual = RunningQuantile(0.5, window, math.log(prior_tokens), prior_weight)
        self._weights = array("d", [0.0]) * (1 << CELL_BITS)
        self._squares = array("d", [FIRST_SQUARE]) * (1 << CELL_BITS)
        self._finished: dict[AdapterId | None, int] = {}  # up to OWN_AFTER

    def predict(self, request: Request) -> float:
        """Expected output length in tokens, > 0. Changes nothing; O(words)."""
        expected = self._usual.expected(request.adapter_id) + self._explained(self._cells(request))
        return math.exp(min(expected, LARGEST_LOG))

    def observe(self, request: Request, output_tokens: int) -> None:
        """The request has ended after output_tokens: later predictions know it. O(words)."""
        adapter_id = request.adapter_id
        cells = self._cells(request)
        left = math.log(max(1, output_tokens)) - self._explained(cells)
        self._learn(cells, left - self._usual.expected(adapter_id))
        self._usual.observe(adapter_id, left)
        self._finished[adapter_id] = min(OWN_AFTER, self._finished.get(adapter_id, 0) + 1)

    def forget(self, adapter_id: AdapterId) -> None:
        """The adapter is like an unknown one; what it taught of words in general stays."""
        self._usual.forget(adapter_id)
        self._finished.pop(adapter_id, None)

    def _cells(self, request: Request) -> list[int]:
        """Where the weights of this prompt are; in a fixed order, some perhaps twice."""
        words = dict.fromkeys(request.words)
        words[~_half_octave(request.input_tokens)] = None  # words are no negative numbers
        shift = 32 - CELL_BITS
        cells = [(word * SPREAD & WORD_MASK) >> shift for word in words]
        adapter_id = request.adapter_id
        if self._finished.get(adapter_id) == OWN_AFTER:
            salt = BASE_SALT if adapter_id is None else (adapter_id + 1) * SALT & WORD_MASK
            cells += [((word ^ salt) * SPREAD & WORD_MASK) >> shift for word in words]
        return cells

    def _explained(self, cells: list[int]) -> float:
        weights = self._weights
        return sum([weights[cell] for cell in cells]) / math.sqrt(len(cells))

    def _learn(self, cells: list[int], error: float) -> None:
        """One step of AdaGrad on Huber's loss."""
        step = max(-LARGEST_ERROR, min(LARGEST_ERROR, error)) / math.sqrt(len(cells))
        square, step = step * step, step * LEARNING_RATE
        weights, squares, root = self._weights, self._squares, math.sqrt
        for cell in cells:
            total = squares[cell] + square
            squares[cell] = total
            weights[cell] += step / root(total)


def _half_octave(tokens: int) -> int:
    """Twice the binary logarithm, in whole numbers: 2 and 3 are apart, 8 and 11 are not."""
    length = tokens.bit_length()
    return 2 * length + (tokens >> (length - 2) & 1 if length > 1 else 0)

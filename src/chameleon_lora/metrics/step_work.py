"""What one engine step computes: measured in a live engine, foretold by the simulator."""

from dataclasses import dataclass


@dataclass(slots=True)
class StepWork:
    """One step's work; filled in by whoever counts it.

    Attributes:
        prefill_tokens: prompt tokens computed in it.
        attention_pairs: for each of them the tokens it attends to, summed.
        decode_requests: requests that get one more token.
        context_tokens: tokens in the KV cache that those read.
        lora_prefill_ranks: sum of ranks over the prompt tokens that have an adapter.
        lora_decode_ranks: sum of ranks over the decoding requests that have an adapter.
        adapters: distinct adapters in the batch.
        adapter_ranks: sum of their ranks, each counted once.
    """

    prefill_tokens: int = 0
    attention_pairs: float = 0.0
    decode_requests: int = 0
    context_tokens: int = 0
    lora_prefill_ranks: int = 0
    lora_decode_ranks: int = 0
    adapters: int = 0
    adapter_ranks: int = 0

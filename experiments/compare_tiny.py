"""`chameleon compare` on a tiny model on this machine's CPU: the figures that docs quote.

    .venv/bin/python experiments/compare_tiny.py --out runs/tiny [any option of chameleon compare]

It makes the model (random, 6 layers) and 32 adapters of ranks 4, 8, 16 once, gives every server 4
slots of rank 16, 32 seats and 1 GiB of KV cache, and leaves one core to the API server and the client.
"""

import os
import sys

from chameleon_lora.cli.main import main
from chameleon_lora.compare.demo_adapters import ensure_adapters
from chameleon_lora.compare.demo_servers import ServerSetup, served
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model

ADAPTERS, SLOTS, SEATS, LAYERS = 32, 4, 32, 6
CONTEXT_TOKENS = 2048
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
TRAFFIC = (
    *("--length-factor", "0.0625", "--max-input-tokens", "192", "--max-output-tokens", "96"),
    *("--popularity", "1.0"),
)


def run(options: list[str]) -> int:
    """The comparison's exit code."""
    os.environ.update(ENVIRONMENT)
    cache = default_cache_dir()
    model = ensure_tiny_model(cache, LAYERS)
    adapters = ensure_adapters(model, cache, ADAPTERS)
    flags = served(
        ServerSetup(model, adapters, slots=SLOTS, seats=SEATS, context_tokens=CONTEXT_TOKENS)
    ).flags
    arguments = ["compare", str(model), "--adapters", str(adapters), *TRAFFIC, *options, *flags]
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

"""`chameleon compare` on a tiny model on this machine's CPU: the figures that docs quote.

    .venv/bin/python -m experiments.compare_tiny --out runs/tiny [any option of chameleon compare]

It makes the model (random, 6 layers) and 32 adapters of ranks 4, 8, 16 once, gives every server 4
slots of rank 16, 32 seats and 1 GiB of KV cache, and leaves one core to the API server and the client.
"""

import os
import sys

from chameleon_lora.cli.main import main
from chameleon_lora.servers.launching import CPU_ENVIRONMENT, EngineShape
from chameleon_lora.servers.tiny_model import TARGET_MODULES
from experiments.two_servers import served_model

ADAPTERS, LAYERS = 32, 6
SHAPE = EngineShape(seats=32, context_tokens=2048, target_modules=TARGET_MODULES)
TRAFFIC = (
    *("--length-factor", "0.0625", "--max-input-tokens", "192", "--max-output-tokens", "96"),
    *("--popularity", "1.0"),
)


def run(options: list[str]) -> int:
    """The comparison's exit code."""
    os.environ.update(CPU_ENVIRONMENT)
    served = served_model(LAYERS, ADAPTERS, SHAPE)
    words = ["compare", served.model, "--adapters", str(served.adapters_dir), *TRAFFIC, *options]
    return main([*words, *served.flags])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

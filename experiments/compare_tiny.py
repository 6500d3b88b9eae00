"""`chameleon compare` on a tiny model on this machine's CPU: the figures that docs quote.

    .venv/bin/python -m experiments.compare_tiny [--ranks 8 16 32 64] [any option of chameleon compare]

It makes the model (random, 6 layers) and 32 adapters of ranks 4, 8, 16 once, gives every server 4
slots of the largest rank, 32 seats and 1 GiB of KV cache, and leaves one core to the API server and the client.
"""

import argparse
import os
import sys

from chameleon_lora.cli.main import main
from chameleon_lora.servers.launching import CPU_ENVIRONMENT, EngineShape
from chameleon_lora.servers.tiny_model import RANKS, TARGET_MODULES
from experiments.two_servers import served_model

ADAPTERS, LAYERS = 32, 6
TRAFFIC = (
    *("--length-factor", "0.0625", "--max-input-tokens", "192", "--max-output-tokens", "96"),
    *("--popularity", "1.0"),
)


def run(words: list[str]) -> int:
    """The comparison's exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    given, options = parser.parse_known_args(words)
    os.environ.update(CPU_ENVIRONMENT)
    shape = EngineShape(
        seats=32, context_tokens=2048, max_rank=max(given.ranks), target_modules=TARGET_MODULES
    )
    served = served_model(LAYERS, ADAPTERS, shape, given.ranks)
    compare = ["compare", served.model, "--adapters", str(served.adapters_dir), *TRAFFIC]
    return main([*compare, *options, *served.flags])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

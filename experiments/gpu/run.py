"""Chameleon on a GPU: `python experiments/gpu/run.py --out DIR`; docs/gpu.md explains it.

`--dry-run` does the same with tiny models on a CPU.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the folder that holds `experiments`

from experiments.gpu.main import main  # found by the line above

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The benchmarks that stand beside the package can be imported by their tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # the folder that holds `experiments`

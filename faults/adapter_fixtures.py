"""Adapters to serve and to break: random ones for one model, known by the number of their weights."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter

RANKS = (4, 8, 16)
MAX_RANK = max(RANKS)
ADAPTERS = "adapters"
SERVED = {f"a{number}": number for number in range(8)}
"""Adapters that every server has from its start: name -> weights."""


@dataclass(frozen=True, slots=True)
class AdapterFixtures:
    """Adapter folders to copy from.

    Attributes:
        model: the base model's folder.
        root: holds w0, w1, ...: weights n are those that seed n makes. Not to be served.
    """

    model: Path
    root: Path

    @classmethod
    def make(cls, model: Path, root: Path, count: int) -> "AdapterFixtures":
        """Writes so many weights; those of one rank have the same adapter_config.json."""
        dims = ModelDims.from_model(model)
        for number in range(count):
            make_adapter(root / f"w{number}", dims, rank_of(number), seed=number, scale=1.0)
        return cls(model, root)

    def path(self, number: int) -> Path:
        """The folder to copy from."""
        return self.root / f"w{number}"

    def place(self, number: int, target: Path) -> Path:
        """Copies weights to a folder that appears whole."""
        staged = target.with_name(f".{target.name}-staged")
        shutil.copytree(self.path(number), staged)
        return staged.rename(target)

    def served_below(self, home: Path) -> Path:
        """A new folder of the adapters that every server has."""
        adapters = home / ADAPTERS
        adapters.mkdir(parents=True)
        for name, number in SERVED.items():
            self.place(number, adapters / name)
        return adapters

    def replace_weights(self, number: int, target: Path) -> None:
        """Puts other weights of the same rank into a folder, in one step."""
        staged = target / f".{WEIGHTS_NAME}"
        shutil.copyfile(self.path(number) / WEIGHTS_NAME, staged)
        staged.replace(target / WEIGHTS_NAME)


def rank_of(number: int) -> int:
    """The rank of weights n."""
    return RANKS[number % len(RANKS)]

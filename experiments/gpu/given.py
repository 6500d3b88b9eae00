"""What the user asked for, as every stage's process reads it from the output folder."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chameleon_lora.errors import ConfigError
from experiments.gpu.scale import DRY, ON_GPU, Scale

GIVEN = "given.json"


@dataclass(frozen=True, slots=True)
class Given:
    """One run.

    Attributes:
        out: where results go.
        work: where models and adapters are made; may be deleted afterwards.
        is_dry: tiny models on a CPU.
        backend: vLLM's attention backend; None leaves it to vLLM.
        compiles: torch.compile for the served model's engines.
        duration_s, repeats: of the comparisons; None for the scale's own.
        capacity: of stock in requests/s, "slo" for the highest load that meets the objective, None for
            what it completes at most; the last two are measured.
        slo_s: the objective; None for the scale's own.
    """

    out: Path
    work: Path
    is_dry: bool = False
    backend: str | None = None
    compiles: bool = True
    duration_s: float | None = None
    repeats: int = 1
    capacity: str | None = None
    slo_s: float | None = None

    @property
    def scale(self) -> Scale:
        """The sizes."""
        return DRY if self.is_dry else ON_GPU

    @property
    def run_s(self) -> float:
        """What each run of a comparison lasts, its last answers not counted."""
        return self.duration_s or self.scale.serving.duration_s


def write_given(given: Given) -> None:
    """Makes the output folder and leaves what was asked for in it.

    Raises:
        ConfigError: the folder holds the results of the other kind of run.
    """
    path = given.out / GIVEN
    if path.exists() and read_given(given.out).is_dry != given.is_dry:
        kinds = ("a dry run", "a GPU") if given.is_dry else ("a GPU", "a dry run")
        raise ConfigError(
            f"--out {given.out} holds the results of {kinds[1]}, this is {kinds[0]}: name another "
            "folder"
        )
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(given), indent=1, default=str) + "\n", encoding="utf-8")


def read_given(out: Path) -> Given:
    """What was asked for.

    Raises:
        ConfigError: the folder has no such file, or another program's.
    """
    try:
        fields: dict[str, Any] = json.loads((out / GIVEN).read_text(encoding="utf-8"))
        return Given(**{**fields, "out": out, "work": Path(fields["work"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{out / GIVEN} cannot be read ({error}): name an empty folder"
        ) from error

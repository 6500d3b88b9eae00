"""How servers are started."""

from pathlib import Path

import pytest

from chameleon_lora.servers.launching import (
    CPU_ENVIRONMENT,
    RUNTIME_LOADING,
    EngineShape,
    ServedModel,
    chameleon_command,
    cpu_server,
    on_port,
    stock_command,
)
from chameleon_lora.servers.tiny_model import RANKS, ensure_adapters
from tests.servers.made_model import MODEL_CONFIG


@pytest.fixture
def served(tmp_path: Path) -> ServedModel:
    """A model of which only the sizes exist, and four adapters."""
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    (model_dir / "config.json").write_text(MODEL_CONFIG, "utf8")
    adapters_dir = ensure_adapters(model_dir, tmp_path / "cache", 4)
    return ServedModel.of(model_dir, adapters_dir, EngineShape(target_modules=("q_proj", "v_proj")))


def test_adapters_take_the_ranks_in_turn(served: ServedModel) -> None:
    """Four adapters of ranks 4, 8, 16, 4, in the order of their names."""
    expected = [f"adapter-{i:03d}-r{(*RANKS, RANKS[0])[i]}" for i in range(4)]
    assert expected == list(served.adapters)


def test_adapters_are_made_once(served: ServedModel, tmp_path: Path) -> None:
    """The second call leaves the files of the first as they are."""
    weights = served.adapters_dir / served.adapters[0] / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert ensure_adapters(Path(served.model), tmp_path / "cache", 4) == served.adapters_dir
    assert before == weights.stat().st_mtime_ns


def test_stock_names_every_adapter(served: ServedModel) -> None:
    """Each is given as name=path after --lora-modules, which comes last, and fits in host memory."""
    command = stock_command(served)
    modules = command[command.index("--lora-modules") + 1 :]
    assert tuple(f"{n}={served.adapters_dir / n}" for n in served.adapters) == modules
    assert "4" == command[command.index("--max-cpu-loras") + 1]


def test_both_servers_get_the_same_engine_flags(served: ServedModel) -> None:
    """What follows --host is the same, more flags included, up to stock's list of adapters."""
    stock, chameleon = (
        make(served, ("--seed", "7")) for make in (stock_command, chameleon_command)
    )
    flags = stock[stock.index("--host") : stock.index("--lora-modules")]
    assert flags == chameleon[chameleon.index("--host") :]
    at = flags.index("--lora-target-modules")
    assert ("q_proj", "v_proj") == flags[at + 1 : at + 3]
    assert ("--seed", "7") == flags[-2:]


def test_the_port_is_put_in_last(served: ServedModel) -> None:
    """Everywhere it stands, in words too."""
    assert ["a", "1234", "http://h:1234"] == on_port(["a", "{port}", "http://h:{port}"], 1234)
    spec = cpu_server(chameleon_command(served), Path("log"), RUNTIME_LOADING)
    assert str(spec.port) == spec.command[spec.command.index("--port") + 1]
    assert {**CPU_ENVIRONMENT, **RUNTIME_LOADING} == spec.environment


def test_a_stock_server_is_given_what_chameleon_finds(tmp_path: Path) -> None:
    """Hidden folders, and links that lead out of the folder, are no adapters."""
    for name in ("inside/seen", "inside/.hidden", "outside"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text("{}")
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "outside")
    served = ServedModel.of(tmp_path, tmp_path / "inside", EngineShape())
    assert ("seen",) == served.adapters

"""How the demo starts its two servers."""

from pathlib import Path

import pytest

from chameleon_lora.compare.demo_adapters import RANKS, adapter_names, ensure_adapters
from chameleon_lora.compare.demo_servers import ServerSetup, chameleon_command, stock_command

MODEL_CONFIG = """{"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
"num_attention_heads": 2, "num_key_value_heads": 1}"""


@pytest.fixture
def setup(tmp_path: Path) -> ServerSetup:
    """A model of which only the sizes exist, and four adapters."""
    model_dir = tmp_path / "model"
    model_dir.mkdir()
    (model_dir / "config.json").write_text(MODEL_CONFIG, "utf8")
    return ServerSetup(model_dir, ensure_adapters(model_dir, tmp_path / "cache", 4))


def test_adapters_take_the_ranks_in_turn(setup: ServerSetup) -> None:
    """Four adapters of ranks 4, 8, 16, 4, in the order of their names."""
    expected = [f"adapter-{i:03d}-r{(*RANKS, RANKS[0])[i]}" for i in range(4)]
    assert expected == list(adapter_names(setup.adapters_dir))


def test_adapters_are_made_once(setup: ServerSetup, tmp_path: Path) -> None:
    """The second call leaves the files of the first as they are."""
    weights = (
        setup.adapters_dir / adapter_names(setup.adapters_dir)[0] / "adapter_model.safetensors"
    )
    before = weights.stat().st_mtime_ns
    assert ensure_adapters(setup.model_dir, tmp_path / "cache", 4) == setup.adapters_dir
    assert weights.stat().st_mtime_ns == before


def test_no_adapter_exceeds_the_servers_rank() -> None:
    """Both servers are started for the largest rank that the demo makes."""
    assert max(RANKS) == ServerSetup(Path(), Path()).max_rank


def test_stock_names_every_adapter(setup: ServerSetup) -> None:
    """Each is given as name=path after --lora-modules, which comes last."""
    command = stock_command(setup, 1234)
    modules = command[command.index("--lora-modules") + 1 :]
    assert modules == [f"{n}={setup.adapters_dir / n}" for n in adapter_names(setup.adapters_dir)]


def test_both_servers_get_the_same_engine_flags(setup: ServerSetup) -> None:
    """What follows --host is the same, up to stock's list of adapters."""
    stock, chameleon = stock_command(setup, 1234), chameleon_command(setup, 1234)
    flags = stock[stock.index("--host") : stock.index("--lora-modules")]
    assert flags == chameleon[chameleon.index("--host") :]

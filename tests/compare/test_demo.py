"""The demo from end to end, with small servers of our own in place of vLLM."""

import json
import sys
from pathlib import Path

import pytest

from chameleon_lora.bench.run_folder import read_records
from chameleon_lora.compare.demo import LOAD, DemoModel, DemoOptions, run_demo
from chameleon_lora.compare.demo_servers import ServerSetup
from chameleon_lora.errors import BenchError
from tests.bench import fake_openai
from tests.compare.test_demo_servers import MODEL_CONFIG


def fake_command(_: ServerSetup, port: int) -> list[str]:
    """A server that answers at once."""
    return [sys.executable, fake_openai.__file__, str(port)]


def broken_command(_: ServerSetup, port: int) -> list[str]:
    """A server that does not start."""
    return [sys.executable, "-c", f"raise SystemExit('port {port} is not for me')"]


@pytest.fixture
def options(tmp_path: Path) -> DemoOptions:
    """A second of traffic for a model of which only the sizes exist."""
    model_dir = tmp_path / "cache/tiny-llama-512"
    model_dir.mkdir(parents=True)
    (model_dir / "config.json").write_text(MODEL_CONFIG, "utf8")
    return DemoOptions(
        tmp_path / "out", tmp_path / "cache", DemoModel.TINY, seconds=1.0, rate_per_s=20.0
    )


@pytest.mark.slow
def test_both_servers_get_the_same_requests(options: DemoOptions) -> None:
    """Equal indices, adapters, arrivals and lengths in both runs' files, and none failed."""
    said: list[str] = []
    result = run_demo(
        options, said.append, stock_command=fake_command, chameleon_command=fake_command
    )
    sent = [
        [(r.index, r.adapter, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in records]
        for records in (read_records(arm.folder) for arm in (result.stock, result.chameleon))
    ]
    assert sent[0] == sent[1]
    assert len(sent[0]) > 5
    assert (0, 0) == (result.stock.summary.failed, result.chameleon.summary.failed)
    assert "starting stock" in said


@pytest.mark.slow
def test_the_folder_says_how_to_run_it_again(options: DemoOptions) -> None:
    """Seed, rate and command are in each config, and the table lies beside the runs."""
    result = run_demo(
        options, lambda _: None, stock_command=fake_command, chameleon_command=fake_command
    )
    config = json.loads((options.out_dir / "chameleon/config.json").read_text("utf8"))
    assert ("chameleon", 0, 20.0) == (config["server"], config["seed"], config["rate_per_s"])
    assert config["command"][0] == sys.executable
    assert (options.out_dir / "table.txt").read_text("utf8") == result.table + "\n"


@pytest.mark.slow
def test_an_automatic_rate_is_a_share_of_the_measured_capacity(
    options: DemoOptions, tmp_path: Path
) -> None:
    """Without a rate the stock server is probed first, and the load is 95 % of its capacity."""
    automatic = DemoOptions(tmp_path / "auto", options.cache_dir, DemoModel.TINY, seconds=0.05)
    result = run_demo(
        automatic, lambda _: None, stock_command=fake_command, chameleon_command=fake_command
    )
    assert result.capacity_per_s is not None
    assert LOAD * result.capacity_per_s == pytest.approx(result.rate_per_s)


@pytest.mark.slow
def test_a_server_that_does_not_start_ends_the_demo(options: DemoOptions) -> None:
    """The error carries what the server said."""
    with pytest.raises(BenchError, match="is not for me"):
        run_demo(
            options, lambda _: None, stock_command=broken_command, chameleon_command=fake_command
        )

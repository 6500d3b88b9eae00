"""The demo's comparison, with small servers of our own in place of vLLM."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lora.bench.run_folder import read_records
from chameleon_lora.compare.comparison import Comparison
from chameleon_lora.compare.comparison_file import COMPARISON, ComparisonFile
from chameleon_lora.compare.demo import LOAD, SHAPE, DemoModel, DemoOptions, demo_plan
from chameleon_lora.errors import BenchError
from chameleon_lora.servers.tiny_model import RANKS
from tests.bench import fake_openai
from tests.servers.made_model import MODEL_CONFIG

FAKE = f"{sys.executable} {Path(fake_openai.__file__)} {{port}}"
COMMAND = "chameleon demo --seconds 1"


@pytest.fixture
def options(tmp_path: Path) -> DemoOptions:
    """A second of traffic for a model of which only the sizes exist, on two servers that answer at once."""
    model_dir = tmp_path / "cache/tiny-llama-512"
    model_dir.mkdir(parents=True)
    (model_dir / "config.json").write_text(MODEL_CONFIG, "utf8")
    return DemoOptions(
        tmp_path / "out",
        tmp_path / "cache",
        DemoModel.TINY,
        seconds=1.0,
        rate_per_s=20.0,
        adapters=6,
        arms=(f"stock={FAKE}", f"chameleon={FAKE} --tokens-per-s 5000"),
    )


def run(options: DemoOptions) -> ComparisonFile:
    """What such a demo finds."""
    return Comparison(demo_plan(options, COMMAND), lambda: 0.0, lambda _: None).run()


def test_stock_and_chameleon_serve_the_same_adapters_with_the_same_engine(
    options: DemoOptions,
) -> None:
    """No adapter exceeds a slot's rank; stock comes first, and is what Chameleon is compared with."""
    plan = demo_plan(replace(options, arms=("stock", "chameleon")), COMMAND)
    stock, chameleon = (arm.on(1234) for arm in plan.arms)
    assert ["stock", "chameleon"] == [arm.label for arm in plan.arms]
    flags = stock[stock.index("--host") : stock.index("--lora-modules")]
    assert flags == chameleon[chameleon.index("--host") :]
    assert max(RANKS) == SHAPE.max_rank
    assert 6 == len(stock[stock.index("--lora-modules") + 1 :]) == len(plan.traffic.adapters)


@pytest.mark.slow
def test_both_servers_get_the_same_requests(options: DemoOptions) -> None:
    """Equal indices, adapters, arrivals and lengths in both runs' files, and none failed."""
    result = run(options)
    sent = [
        [(r.index, r.adapter, r.arrival_s, r.prompt_tokens, r.output_tokens) for r in records]
        for records in (
            read_records(options.out_dir / arm / "0-load-1") for arm in ("stock", "chameleon")
        )
    ]
    assert sent[0] == sent[1]
    assert len(sent[0]) > 5
    assert (0, ()) == (result.failed, result.troubles)
    assert {"ttft_p50", "ttft_p99", "output_throughput"} <= {
        ratio.figure for ratio in result.ratios
    }


@pytest.mark.slow
def test_the_folder_says_how_to_run_it_again(options: DemoOptions) -> None:
    """Seed, rate and command are in each config, and the ratios lie beside the runs."""
    run(options)
    config = json.loads((options.out_dir / "chameleon/0-load-1/config.json").read_text("utf8"))
    assert ("chameleon", 0, 20.0) == (config["label"], config["seed"], config["rate_per_s"])
    assert COMMAND == config["command"]
    assert json.loads((options.out_dir / COMPARISON).read_text("utf8"))["ratios"]


@pytest.mark.slow
def test_an_automatic_rate_is_a_share_of_the_measured_capacity(options: DemoOptions) -> None:
    """Without a rate the stock server is probed first, and the load is 95 % of its capacity."""
    result = run(replace(options, rate_per_s=None, seconds=0.05))
    (folder,) = (options.out_dir / "stock").glob("0-load-*")
    config = json.loads((folder / "config.json").read_text("utf8"))
    assert LOAD * result.capacity_per_s == pytest.approx(config["rate_per_s"])


@pytest.mark.slow
def test_repeats_change_the_order_of_the_servers(options: DemoOptions) -> None:
    """Stock, Chameleon, Chameleon, stock."""
    said: list[str] = []
    plan = demo_plan(replace(options, repeats=2), COMMAND)
    Comparison(replace(plan, width=1e-9), lambda: 0.0, said.append).run()
    starts = [line.partition(",")[0] for line in said if line.endswith(": starting")]
    assert ["stock", "chameleon", "chameleon", "stock"] == starts


@pytest.mark.slow
def test_a_server_that_does_not_start_ends_the_demo(options: DemoOptions) -> None:
    """The error carries what the server said."""
    broken = f"stock={sys.executable} -c \"raise SystemExit('port {{port}} is not for me')\""
    with pytest.raises(BenchError, match="is not for me"):
        run(replace(options, arms=(broken, options.arms[1])))

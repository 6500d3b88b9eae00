"""`chameleon bench` against a real server."""

import json
from pathlib import Path

import pytest

from chameleon_lora.bench.run_folder import read_config, read_records, read_samples
from chameleon_lora.cli.main import main
from chameleon_lora.metrics.record import RESIDENCIES
from faults.adapter_fixtures import SERVED, rank_of
from tests.live.servers import SHARED, Server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]


def test_a_run_tells_what_the_server_told(server: Server, tmp_path: Path) -> None:
    """Adapters with their ranks are found; answers are as long as asked; each request's tier is told."""
    out = tmp_path / "run"
    lengths = ["--random-input-len", "12", "--random-output-len", "6"]
    code = main(
        ["bench", "--base-url", server.url, "--request-rate", "4", "--duration", "4", "--warmup", "1",
         "--dataset-name", "random", *lengths, "--slo-ttft", "60", "--out", str(out)]
    )  # fmt: skip
    records = read_records(out)
    assert [] == [record.error for record in records if record.error is not None]
    assert {(12, 6)} == {(record.prompt_tokens, record.output_tokens) for record in records}
    assert {record.residency for record in records} <= set(RESIDENCIES)
    known = {card["name"]: card["rank"] for card in read_config(out)["adapters"]}
    assert {name: rank_of(number) for name, number in SERVED.items()}.items() <= known.items()
    assert any(sample.lanes for sample in read_samples(out))
    summary = json.loads((out / "summary.json").read_text("utf8"))
    assert (1.0, 0) == (summary["slo"]["share"], summary["failed"])
    assert code == (1 if summary["lateness"]["has_fallen_behind"] else 0)

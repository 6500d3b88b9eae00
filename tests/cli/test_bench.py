"""`chameleon bench` over real HTTP: folders, figures, exit codes and messages."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from chameleon_lora.bench.run_folder import read_config, read_records
from chameleon_lora.cli.main import main
from tests.bench.fake_process import fake_process

pytestmark = pytest.mark.slow  # a server's start takes a second

BRISK = ("--warmup=0.1", "--request-rate=30", "--length-factor=0.005", "--patience=0.5")
SHORT = (*BRISK, "--duration=0.5")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A fake server with two adapters and some models that answer badly."""
    adapters = "a,b,html,breaking,silent"
    with fake_process(tmp_path_factory.mktemp("fake"), "--adapters", adapters) as base_url:
        yield base_url


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the files go."""
    return tmp_path / "out"


def bench(server: str, out: Path, *words: str) -> int:
    """The exit code of a short run."""
    return main(["bench", "--base-url", server, "--out", str(out), *SHORT, *words])


def summary_of(folder: Path) -> dict[str, Any]:
    """What its summary.json holds."""
    return dict(json.loads((folder / "summary.json").read_text()))


def in_time(*folders: Path) -> bool:
    """Did the load generator keep up? Not so on a machine that is busy with other tests."""
    return not any(summary_of(folder)["lateness"]["has_fallen_behind"] for folder in folders)


def test_a_run_prints_and_writes_its_figures(
    server: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """vLLM's block on standard output, the folder in words on standard error."""
    code = bench(server, out, "--lora-modules", "a", "b", "--goodput", "ttft:5000", "e2el:9000")
    assert (not in_time(out)) == code
    printed = capsys.readouterr()
    assert printed.out.startswith("============ Serving Benchmark Result ============\n")
    assert "Objectives (ms):                         ttft 5000, e2el 9000" in printed.out
    assert f"files: {out}" in printed.err
    summary, config = summary_of(out), read_config(out)
    records = read_records(out)
    counted = [record for record in records if record.arrival_s >= 0.1]
    assert (len(counted), 0) == (summary["completed"], summary["failed"])
    assert {"a", "b"} == {record.adapter for record in records}
    assert (30.0, 0.5, 0.1, 5.0) == tuple(
        config[key] for key in ("rate_per_s", "duration_s", "warmup_s", "slo_ttft_s")
    )
    assert [{"name": "a", "rank": None}, {"name": "b", "rank": None}] == config["adapters"]
    assert (False, "run", 2) == tuple(
        config[key] for key in ("is_partial", "purpose", "active_adapters")
    )


def test_the_servers_own_list_names_whom_to_ask(server: str, out: Path) -> None:
    """Its base model and all its adapters, of which some fail here."""
    assert 1 == bench(server, out)
    config = read_config(out)
    assert ["a", "b", "html", "breaking", "silent"] == [row["name"] for row in config["adapters"]]
    assert "base" == config["server"]["model"] == summary_of(out)["model_id"]


def test_several_rates_have_a_folder_each_and_a_table(
    server: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rates, the same requests but for their times."""
    words = ("--lora-modules", "a", "--slo-ttft", "5", "--request-rate", "10", "40")
    code = bench(server, out, *words)
    folders = [out / "rate-10", out / "rate-40"]
    assert (not in_time(*folders)) == code
    table = capsys.readouterr().out.partition("Sweep")[2].splitlines()
    assert ["10", "40"] == [line.split()[0] for line in table[2:4]]
    slow, fast = map(read_records, folders)
    assert len(slow) < len(fast)
    assert [r.prompt_tokens for r in slow] == [r.prompt_tokens for r in fast[: len(slow)]]


def test_a_number_of_prompts_may_be_given(server: str, out: Path) -> None:
    """Seven after the warm-up, whatever came before."""
    words = ("--lora-modules", "a", "--num-prompts", "7")
    main(["bench", "--base-url", server, "--out", str(out), *BRISK, *words])
    summary = summary_of(out)
    assert (7, 7) == (summary["completed"], summary["num_prompts"])


def test_json_is_a_line_a_run(server: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them what summary.json holds."""
    bench(server, out, "--lora-modules", "a", "--json", "--request-rate", "10", "30")
    lines = capsys.readouterr().out.splitlines()
    assert [summary_of(out / "rate-10"), summary_of(out / "rate-30")] == list(
        map(json.loads, lines)
    )


@pytest.mark.parametrize(
    ("adapter", "cause", "example"),
    [
        ("zzz", "HTTP 404", "no such model"),
        ("html", "not OpenAI", "an HTML page"),
        ("breaking", "stream broken off", "engine died"),
        ("silent", "given up", "no whole answer"),
    ],
)
def test_each_kind_of_failure_is_counted_and_named(
    server: str, out: Path, adapter: str, cause: str, example: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """An unknown adapter, a page, a broken stream, no answer: the others' requests are completed."""
    assert 1 == bench(server, out, "--lora-modules", "a", adapter, "--popularity=0")
    printed = capsys.readouterr().out
    assert f"adapters: {adapter}\n" in printed
    assert example in printed
    summary = summary_of(out)
    assert {cause: summary["failed"]} == summary["errors"]
    assert summary["completed"] == summary["per_adapter"]["a"]["completed"] > 0
    failed = [record for record in read_records(out) if record.error is not None]
    assert {adapter} == {record.adapter for record in failed}


def test_an_adapter_the_server_does_not_list_is_told_before(
    server: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked for all the same."""
    bench(server, out, "--lora-modules", "a", "zzz")
    assert "the server does not list 1 of 2 adapters, such as 'zzz'" in capsys.readouterr().err


def test_a_server_that_dies_ends_the_sweep(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first rate's folder is whole to read and says it is partial; the second has none."""
    with fake_process(tmp_path, "--adapters", "a,deadly") as server:
        assert 1 == bench(server, out, "--popularity=0", "--request-rate", "30", "40")
    assert ["rate-30"] == [path.name for path in out.iterdir()]
    folder = out / "rate-30"
    assert read_config(folder)["is_partial"]
    assert read_records(folder)
    assert {"connection lost", "connection refused"} >= set(summary_of(folder)["errors"])
    assert f"nobody answers at {server} any more" in capsys.readouterr().err


def test_nobody_there_ends_with_two(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The address, the way out, and no folder."""
    assert 2 == bench("http://127.0.0.1:9", out)
    error = capsys.readouterr().err
    assert "chameleon bench: http://127.0.0.1:9/v1/models cannot be reached" in error
    assert "correct --base-url" in error
    assert not out.exists()


class Greeter(http.server.BaseHTTPRequestHandler):
    """Any web server; keeps the keys that it was shown."""

    keys: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.keys.append(self.headers["Authorization"])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def do_POST(self) -> None:
        self.do_GET()


@pytest.fixture
def greeter() -> Iterator[str]:
    """The address of a web server that is no OpenAI server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeter) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_another_kind_of_server_ends_with_two(
    greeter: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What came is shown."""
    assert 2 == bench(greeter, out)
    assert "answered '<html>hello</html>', which is no OpenAI server's" in capsys.readouterr().err


def test_names_given_make_a_list_needless(
    greeter: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gateways may have none: every request is sent, and here each fails as what it is."""
    assert 1 == bench(greeter, out, "--model", "base", "--lora-modules", "a")
    assert "going on with the names given" in capsys.readouterr().err
    assert ["not OpenAI"] == list(summary_of(out)["errors"])


def test_a_key_is_shown_with_each_request_and_never_written(
    greeter: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the environment; also when the server is asked for its list."""
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    Greeter.keys.clear()
    bench(greeter, out, "--model", "base", "--lora-modules", "a")
    assert {"Bearer secret"} == set(Greeter.keys)
    assert not any("secret" in path.read_text() for path in out.iterdir())


def test_a_server_that_is_not_vllm_can_be_asked_in_its_way(server: str, out: Path) -> None:
    """Chat, prompts of words, answers that end when they like."""
    words = ("--endpoint=/v1/chat/completions", "--prompts=text", "--no-ignore-eos")
    code = bench(server, out, "--lora-modules", "a", *words)
    assert (not in_time(out)) == code
    asked = read_config(out)["server"]
    assert ("/v1/chat/completions", "text", False) == tuple(
        asked[key] for key in ("endpoint", "prompts", "ignore_eos")
    )
    assert 0 == summary_of(out)["failed"]


def test_a_server_without_adapters_needs_a_word(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two ways out: name some, or measure the base model alone."""
    with fake_process(tmp_path) as server:
        assert 2 == bench(server, out)
        assert "lists 0 adapters" in capsys.readouterr().err
        code = bench(server, out, "--base-share", "1")
    assert (not in_time(out)) == code
    assert {None} == {record.adapter for record in read_records(out)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--warmup", "9"), "a warm-up of 9 s leaves nothing of 0.5 s"),
        (("--request-rate", "1e-6"), "no request arrives in 0.1 to 0.5 s"),
        (("--request-rate", "5", "5"), "names a rate twice"),
        (("--goodput", "ttft:5", "--slo-ttft", "1"), "2 limits on ttft"),
        (("--goodput", "ttft:5", "ttft:6"), "2 limits on ttft"),
        (("--arrivals", "recorded"), "needs --dataset-path"),
        (("--adapters", "/nowhere"), "cannot be listed"),
        (("--rank-alpha", "0"), "has no rank to share by"),
    ],
)
def test_what_cannot_be_meant_ends_with_two(
    server: str, out: Path, words: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One line that says why, and no folder."""
    assert 2 == bench(server, out, *words)
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_holds_something_is_not_written_to(
    server: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and nothing more in it."""
    out.mkdir()
    mine = out / "mine"
    mine.touch()
    assert 2 == bench(server, out)
    assert "name a folder that is new or empty" in capsys.readouterr().err
    assert [mine] == list(out.iterdir())

"""How a tenant's requests are held against its limits at the door of an API server."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine_vllm.asgi_client import AppAnswer
from tests.engine_vllm.tenant_settings import (
    ACME,
    BOB,
    CONTEXT_TOKENS,
    LIMITS,
    GuardedApp,
    tenants_text,
)

OK, BAD_REQUEST, TOO_MANY = 200, 400, 429


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of tenants, to be written."""
    return tmp_path / "tenants.toml"


def error_of(answer: AppAnswer) -> dict[str, Any]:
    """The error of a refusal."""
    return dict(json.loads(answer.text)["error"])


def test_too_many_requests_are_told_when_to_come_again(file: Path) -> None:
    """429 with Retry-After in whole seconds, naming the limit; then it goes on, and others always."""
    file.write_text(tenants_text(LIMITS))
    app = GuardedApp.build(file)
    assert [OK, OK] == [app.complete(ACME).status for _ in range(2)]
    answer = app.complete(ACME)
    assert (TOO_MANY, "1") == (answer.status, answer.headers["retry-after"])
    error = error_of(answer)
    assert "RateLimitError" == error["type"]
    assert "1 requests a second, 2 at once" in error["message"]
    assert OK == app.complete(BOB).status
    app.now_s = 1.0
    assert OK == app.complete(ACME).status


def test_tokens_are_charged_before_and_settled_after(file: Path) -> None:
    """What was asked for is taken first; in the end it counts with what it used."""
    file.write_text(tenants_text("output_tokens_per_minute = 600"))
    app = GuardedApp.build(file)
    app.behind.uses = (5, 100)
    assert OK == app.complete(ACME, max_tokens=600).status
    answer = app.complete(ACME, max_tokens=501)
    assert (TOO_MANY, "1") == (answer.status, answer.headers["retry-after"])
    assert "600 output tokens a minute; this request asks for 501, 500 are left" in answer.text
    assert OK == app.complete(ACME, max_tokens=500).status


def test_an_answer_broken_off_counts_as_written(file: Path) -> None:
    """Its tokens are known, whoever read them; of its prompt no less is counted than was charged."""
    file.write_text(tenants_text("input_tokens_per_minute = 5\noutput_tokens_per_minute = 600"))
    app = GuardedApp.build(file)
    app.behind.unfinished, app.behind.uses = 1, (0, 350)
    assert OK == app.complete(ACME, max_tokens=600).status
    assert "asks for 5, 0 are left" in app.complete(ACME, max_tokens=1).text
    file.write_text(tenants_text("output_tokens_per_minute = 600"))
    app.now_s = 30.0
    assert "asks for 600, 550 are left" in app.complete(ACME, max_tokens=600).text


def test_an_answer_without_a_limit_may_fill_the_context(file: Path) -> None:
    """So it is charged as one that does, though never kept out for ever."""
    file.write_text(tenants_text("output_tokens_per_minute = 700"))
    app = GuardedApp.build(file)
    app.behind.uses = (1, 300)
    asked = {"model": "acme-1"}
    assert OK == app.ask("POST", "/v1/chat/completions", ACME, asked).status
    told = app.ask("POST", "/v1/chat/completions", ACME, asked).text
    assert f"asks for {CONTEXT_TOKENS}, 400 are left" in told
    app.now_s = 60.0
    assert OK == app.ask("POST", "/v1/chat/completions", ACME, {**asked, "n": 100}).status


def test_what_never_fits_is_a_bad_request(file: Path) -> None:
    """400 without Retry-After: to come again would not help."""
    file.write_text(tenants_text(LIMITS))
    answer = GuardedApp.build(file).complete(ACME, max_tokens=601)
    assert BAD_REQUEST == answer.status
    assert "retry-after" not in answer.headers
    assert "601" in answer.text

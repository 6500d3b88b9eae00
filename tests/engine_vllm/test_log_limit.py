"""No client fills the log, by whatever of it vLLM and its HTTP server write down."""

import io
import logging
from collections.abc import Iterator

import pytest

from chameleon_lora.engine_vllm.log_limit import TEXT_LIMIT, TRACE_LIMIT, cut, limit_log_records

LONG = "x" * 1_000_000


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a handler writes while records are limited."""
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    monkeypatch.setattr(
        logging.getLogger("vllm"), "propagate", True
    )  # vLLM ends it when it sets up
    limit_log_records()
    written, root = io.StringIO(), logging.getLogger()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root.addHandler(handler)
    yield written
    root.removeHandler(handler)


@pytest.mark.parametrize("args", [(LONG,), ([LONG, LONG],), (ValueError(LONG),)])
def test_a_long_value_is_cut(log: io.StringIO, args: tuple[object, ...]) -> None:
    """Of whatever type; its ends stay, and how much is missing is said."""
    logging.getLogger("vllm.any").error("Bad value %s.", *args)
    assert len(log.getvalue()) < TEXT_LIMIT + 20
    assert log.getvalue().startswith("ERROR Bad value ")
    assert "characters cut ...] " in log.getvalue()
    assert log.getvalue().endswith(".\n")


def test_text_in_the_message_itself_is_cut(log: io.StringIO) -> None:
    """Also if it looks like a form to be filled in."""
    logging.getLogger("any.other").warning("%s" * 10_000)
    assert len(log.getvalue()) < TEXT_LIMIT + 20


def test_short_records_stay_as_they_are(log: io.StringIO) -> None:
    """With their arguments apart, as some formatters need them."""
    record = logging.getLogger("vllm.any").makeRecord("n", 20, "f", 1, "a %s", ("b",), None)
    assert ("a %s", ("b",)) == (record.msg, record.args)
    assert not log.getvalue()


def test_a_long_path_is_cut_where_the_servers_formatter_reads_it(log: io.StringIO) -> None:
    """Uvicorn's takes the five arguments, not the message."""
    logging.getLogger("uvicorn.access").setLevel("INFO")
    args = ("1.2.3.4:5", "GET", f"/{LONG}", "1.1", 404)
    record = logging.getLogger("uvicorn.access").makeRecord("uvicorn.access", 20, "f", 1, "%s", args, None)  # fmt: skip
    assert isinstance(record.args, tuple)
    assert ("1.2.3.4:5", "GET", "1.1", 404) == (*record.args[:2], *record.args[3:])
    assert len(str(record.args[2])) <= TEXT_LIMIT
    assert not log.getvalue()


def test_what_an_exception_says_is_cut(log: io.StringIO) -> None:
    """Its traceback stays, as far as it is of a traceback's length."""
    for text in ("short", LONG):
        try:
            raise ValueError(text)
        except ValueError:
            logging.getLogger("vllm.any").exception("Refused")
    short, _, long = log.getvalue().partition("ValueError: short\n")
    assert "raise ValueError(text)" in short
    assert "raise ValueError(text)" in long
    assert len(long) < TRACE_LIMIT + 100


def test_what_an_operator_asked_for_has_its_own_limit(log: io.StringIO) -> None:
    """--max-log-len is that of requests."""
    logging.getLogger("vllm.entrypoints.serve.utils.request_logger").error("%s", LONG)
    assert len(LONG) < len(log.getvalue())


def test_a_broken_record_is_told_by_logging_itself(log: io.StringIO) -> None:
    """When it is written, as ever: whoever makes it goes on."""
    record = logging.getLogger("vllm.any").makeRecord("n", 20, "f", 1, "%d", ("x",), None)
    assert ("%d", ("x",)) == (record.msg, record.args)
    assert not log.getvalue()


def test_once_is_enough(log: io.StringIO) -> None:
    """Twice changes nothing."""
    before = logging.getLogRecordFactory()
    limit_log_records()
    assert before is logging.getLogRecordFactory()
    assert cut(LONG) == cut(cut(LONG))
    assert not log.getvalue()


@pytest.mark.vllm
def test_vllm_may_set_up_its_log_anew(log: io.StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    """As it does when it has read its arguments: its handlers, our records."""
    logger = pytest.importorskip("vllm.logger")
    logger._configure_vllm_root_logger()
    try:
        logging.getLogger("vllm.entrypoints.any").error("Bad value %s", LONG)
    finally:
        logging.getLogger("vllm").propagate = True
    told = "".join(capfd.readouterr())
    assert "characters cut" in told
    assert len(told) < TEXT_LIMIT + 500
    assert not log.getvalue()

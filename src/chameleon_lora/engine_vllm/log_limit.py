"""No client fills the log: a record is cut, whichever of a process' loggers makes it.

vLLM and its HTTP server write down what clients sent: values that do not do, paths, ids. Filters of
handlers would be lost whenever vLLM sets up its handlers anew, so records are cut as they are made.
"""

import logging
import traceback
from collections.abc import Callable
from typing import Any

TEXT_LIMIT, TRACE_LIMIT = 4096, 16384  # characters of a message; of a traceback
ACCESS = "uvicorn.access"  # whose formatter takes the arguments, not the message
# What --enable-log-requests asks for has a limit of its own, --max-log-len.
ASKED_FOR = frozenset({"vllm.entrypoints.logger", "vllm.entrypoints.serve.utils.request_logger"})
_MARK_ROOM = 60
UNCUT_ARGS = "chameleon_args"  # of a record that was cut


def limit_log_records() -> None:
    """Afterwards this process makes no long records. Idempotent."""
    make = logging.getLogRecordFactory()
    if not isinstance(make, _CuttingFactory):
        logging.setLogRecordFactory(_CuttingFactory(make))


def cut(text: str, limit: int = TEXT_LIMIT) -> str:
    """A text's two ends and how much is missing between them, if it is longer than so many characters."""
    if len(text) <= limit:
        return text
    kept = (limit - _MARK_ROOM) // 2
    return f"{text[:kept]} [... {len(text) - 2 * kept:,} characters cut ...] {text[-kept:]}"


class _CuttingFactory:
    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._make(*args, **kwargs)
        if record.name == ACCESS and isinstance(record.args, tuple):
            record.args = tuple(cut(arg) if isinstance(arg, str) else arg for arg in record.args)
        elif record.name not in ASKED_FOR:
            _cut(record)
        return record


def _cut(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except Exception:  # noqa: BLE001  # logging tells it when the record is written
        return
    if len(message) > TEXT_LIMIT:
        setattr(record, UNCUT_ARGS, record.args)
        record.msg, record.args = cut(message), None
    if record.exc_info and record.exc_info[0] is not None:
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        if len(trace) > TRACE_LIMIT:
            record.exc_text = cut(trace, TRACE_LIMIT)  # what formatters take if it is there

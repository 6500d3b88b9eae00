"""How a request that cannot run tells its client why, across vLLM's process border.

vLLM's outputs carry a finish reason and a stop reason, and its API server answers every error with
the same words. The reason travels as the stop reason, marked, and is raised where the client waits.
"""

import logging
import re
from http import HTTPStatus
from typing import Any

from chameleon_lora.engine_vllm.hook_table import ERROR_INFO, ERROR_RESPONSE
from chameleon_lora.engine_vllm.hooks import target_of
from chameleon_lora.engine_vllm.log_limit import UNCUT_ARGS
from chameleon_lora.errors import (
    AdapterError,
    AdapterNotFoundError,
    AdapterTimeoutError,
    AdapterUnreadableError,
)
from chameleon_lora.policy.plan import Failure, Fault

STATUS = {
    Fault.CONTENT: HTTPStatus.BAD_REQUEST,
    Fault.FILES: HTTPStatus.CONFLICT,  # OpenAI's clients ask again by themselves
    Fault.SERVER: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_MARKED = re.compile(rf"chameleon ({'|'.join(f.value for f in Fault)}): (.*)", re.DOTALL)
_OURS = "chameleon_error"


class LoadFailedError(AdapterError):
    """The engine tried to load an adapter and could not."""

    def __init__(self, reason: str, fault: Fault) -> None:
        super().__init__(reason)
        self.fault = fault


def failure_output(request: Any, failure: Failure) -> Any:
    """The engine's last output for a request that failed."""
    from vllm.v1.engine import EngineCoreOutput, FinishReason

    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ERROR,
        stop_reason=f"chameleon {failure.fault.value}: {failure.reason}",
    )


def failure_in(output: Any) -> tuple[str, Fault] | None:
    """The reason in an engine output, and whose fault it is; None if it is no failure of ours."""
    reason = output.stop_reason
    found = _MARKED.fullmatch(reason) if isinstance(reason, str) and output.finished else None
    return None if found is None else (found[2], Fault(found[1]))


def http_error(reason: str, status: HTTPStatus) -> Exception:
    """The exception that vLLM's API server turns into an HTTP error with this message."""
    from vllm import exceptions

    error: Exception
    if status is HTTPStatus.BAD_REQUEST:
        error = getattr(exceptions, "VLLMClientError", ValueError)(reason)
    elif hasattr(exceptions, "GracefulHTTPError"):
        error = exceptions.GracefulHTTPError(reason, status)
    else:  # vLLM 0.26
        from vllm.entrypoints.openai.engine.protocol import GenerationError

        generation: Any = GenerationError(reason)
        generation.status_code = status
        error = generation
    setattr(error, _OURS, status)
    return error


def client_error(reason: str, status: HTTPStatus, *, is_pooling: bool) -> Exception:
    """What `http_error` makes, in a form that vLLM's client of the engine lets through."""
    from vllm import exceptions

    error = http_error(reason, status)
    if hasattr(exceptions, "GracefulHTTPError") or isinstance(error, ValueError):
        return error
    from vllm.v1.engine.async_llm import InputStreamError

    wrapped: Exception = InputStreamError(error)  # vLLM 0.26 rewords all else, and this in pooling
    return ValueError(reason) if is_pooling else wrapped


def is_ours_error(error: Exception) -> bool:
    """Whether `http_error` made it."""
    return hasattr(error, _OURS)


def leave_out_of_log() -> None:
    """From now on vLLM's log has no line and no traceback for an error that is the client's own.

    The client is told; the operator's log is not for clients to write. Nor for one that is told to ask again:
    why a server ends, or a disk fails, is in the log already.
    """
    for logger in (logging.getLogger("vllm"), logging.getLogger()):
        for handler in logger.handlers:
            handler.addFilter(_is_for_operator)


def _is_for_operator(record: logging.LogRecord) -> bool:
    if not record.name.startswith("vllm"):
        return True
    error = record.exc_info[1] if record.exc_info else None
    args = getattr(record, UNCUT_ARGS, record.args)
    refusals = [getattr(given, "error", None) for given in args or ()]  # ErrorResponses
    codes = [code for refusal in refusals if (code := getattr(refusal, "code", None))]
    return not any(map(_is_clients, codes)) and not (error and _is_of_client(error))


def _is_clients(code: int) -> bool:
    return code < HTTPStatus.INTERNAL_SERVER_ERROR or code == HTTPStatus.SERVICE_UNAVAILABLE


def _is_of_client(error: BaseException) -> bool:
    """Whether a client gets a 4xx for it, or is told by us to ask again."""
    from vllm import exceptions

    names = (
        *("VLLMClientError", "VLLMValidationError", "VLLMNotFoundError"),
        "VLLMUnprocessableEntityError",  # vLLM 0.26 has no name for all of them
    )
    kinds = tuple(getattr(exceptions, name) for name in names if hasattr(exceptions, name))
    if hasattr(error, _OURS):
        return _is_clients(getattr(error, _OURS))
    status = getattr(error, "http_status", HTTPStatus.INTERNAL_SERVER_ERROR)
    return isinstance(error, kinds) or status < HTTPStatus.INTERNAL_SERVER_ERROR


def refusal_of(error: AdapterError) -> Any:
    """An ErrorResponse that says why an adapter is not served."""
    status = HTTPStatus.BAD_REQUEST
    if isinstance(error, AdapterNotFoundError):
        status = HTTPStatus.NOT_FOUND
    elif isinstance(error, AdapterTimeoutError):
        status = HTTPStatus.SERVICE_UNAVAILABLE
    elif isinstance(error, AdapterUnreadableError):
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    elif isinstance(error, LoadFailedError):
        status = STATUS[error.fault]
    kind = status.phrase.replace(" ", "").removesuffix("Error")
    return openai_error(str(error), f"{kind}Error", status)


def openai_error(message: str, kind: str, status: HTTPStatus, /, **more: Any) -> Any:
    """An ErrorResponse about the request's model, with more fields beside the error."""
    make_response, make_info = target_of(ERROR_RESPONSE), target_of(ERROR_INFO)
    return make_response(
        error=make_info(message=message, type=kind, code=status.value, param="model"), **more
    )

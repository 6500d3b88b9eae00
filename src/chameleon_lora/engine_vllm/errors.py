"""How a request that cannot run tells its client why, across vLLM's process border.

vLLM's outputs carry a finish reason and a stop reason, and its API server answers every error with
the same words. The reason travels as the stop reason, marked, and is raised where the client waits.
"""

from http import HTTPStatus
from typing import Any

from chameleon_lora.engine_vllm.hook_table import ERROR_INFO, ERROR_RESPONSE
from chameleon_lora.engine_vllm.hooks import target_of

MARK = "chameleon: "


def failure_output(request: Any, reason: str) -> Any:
    """The engine's last output for a request that failed."""
    from vllm.v1.engine import EngineCoreOutput, FinishReason

    return EngineCoreOutput(
        request_id=request.request_id,
        new_token_ids=[],
        finish_reason=FinishReason.ERROR,
        stop_reason=MARK + reason,
    )


def failure_reason(output: Any) -> str | None:
    """The reason in an engine output, or None if it is not a failure of ours."""
    reason = output.stop_reason
    if isinstance(reason, str) and reason.startswith(MARK) and output.finished:
        return reason.removeprefix(MARK)
    return None


def client_error(reason: str) -> Exception:
    """The exception that vLLM's API server turns into an HTTP error with this message."""
    from vllm import exceptions

    error: Exception
    if hasattr(exceptions, "GracefulHTTPError"):
        error = exceptions.GracefulHTTPError(reason, HTTPStatus.INTERNAL_SERVER_ERROR)
    else:  # vLLM 0.26 passes on what is in an InputStreamError, and rewords other server errors
        from vllm.entrypoints.openai.engine.protocol import GenerationError
        from vllm.v1.engine.async_llm import InputStreamError

        error = InputStreamError(GenerationError(reason))
    return error


def openai_error(message: str, kind: str, status: HTTPStatus) -> Any:
    """An ErrorResponse about the request's model."""
    make_response, make_info = target_of(ERROR_RESPONSE), target_of(ERROR_INFO)
    return make_response(
        error=make_info(message=message, type=kind, code=status.value, param="model")
    )

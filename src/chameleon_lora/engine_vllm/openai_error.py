"""An error as vLLM's handlers answer it, in OpenAI's form."""

from http import HTTPStatus
from typing import Any


def openai_error(message: str, kind: str, status: HTTPStatus) -> Any:
    """An ErrorResponse about the request's model."""
    try:
        from vllm.entrypoints.serve.engine.protocol import ErrorInfo, ErrorResponse
    except ImportError:  # vLLM 0.26
        from vllm.entrypoints.openai.engine.protocol import ErrorInfo, ErrorResponse

    return ErrorResponse(
        error=ErrorInfo(message=message, type=kind, code=status.value, param="model")
    )

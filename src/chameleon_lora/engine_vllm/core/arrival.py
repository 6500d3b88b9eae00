"""A request as vLLM has it, told to the policy: what it may know of a request that arrives."""

from typing import Any

from chameleon_lora.engine_vllm.messages import HINT, SHARE
from chameleon_lora.policy.request import AdapterId, Request, RequestId, Share, excerpt
from chameleon_lora.settings import ServingSettings

# Whose the requests are that no tenant asks for, on a server with tenants; no tenant has this name.
OTHERS = Share("*")


def arrival_of(request: Any, serving: ServingSettings, *, reads_prompt: bool) -> Request:
    """The fact that this request of vLLM's arrived, with its words if the policy reads prompts."""
    adapter, token_ids = request.lora_request, request.prompt_token_ids if reads_prompt else None
    return Request(
        id=RequestId(request.request_id),
        adapter_id=None if adapter is None else AdapterId(adapter.lora_int_id),
        input_tokens=max(1, request.num_prompt_tokens),
        max_output_tokens=max(1, request.max_tokens),
        output_hint_tokens=_hint(request, serving),
        words=excerpt(token_ids or ()),  # a prompt given as embeddings has none
        share=_share(request, serving),
    )


def trial_of(adapter_id: AdapterId, serving: ServingSettings) -> Request:
    """The fact that somebody waits for this adapter to be read, and for nothing else."""
    share = OTHERS if serving.tenants else None
    return Request(RequestId(f"trial of {adapter_id}"), adapter_id, 1, 1, share=share)


def _hint(request: Any, serving: ServingSettings) -> int | None:
    params = request.sampling_params
    if not serving.trusts_hints or params is None or not params.extra_args:
        return None
    hint = params.extra_args.get(HINT)
    is_count = isinstance(hint, int) and not isinstance(hint, bool) and hint > 0
    return hint if is_count else None


def _share(request: Any, serving: ServingSettings) -> Share | None:
    """Whose request it is, on a server with tenants."""
    if not serving.tenants:
        return None
    params = request.sampling_params
    extra = request.pooling_params.extra_kwargs if params is None else params.extra_args
    return Share(*extra[SHARE]) if extra and SHARE in extra else OTHERS

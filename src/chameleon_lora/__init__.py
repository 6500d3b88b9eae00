"""Serve hundreds of LoRA adapters on one base model, on top of vLLM.

Chameleon keeps adapters in memory that would otherwise lie idle, lets small requests pass large
ones without starving any, and brings an adapter in before its request is due. All that decides is
in `chameleon_lora.policy`: it is told facts and the time, and answers each engine step with a plan.
`chameleon_lora.engine_vllm` carries the plans out inside vLLM; `chameleon_lora.bench` replays a
workload against any OpenAI-compatible server; the command `chameleon` puts the pieces together.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"

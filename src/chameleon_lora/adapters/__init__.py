"""PEFT LoRA adapters as folders on disk.

    untrusted   bytes and JSON from files nobody vouches for, within caps
    config      adapter_config.json -> what it promises, and what vLLM would refuse
    header      a safetensors header -> the tensors it lists, proved against the file's size
    content     whether files may have changed (stamp), and which bytes they hold (fingerprint)
    patterns    which key of rank_pattern and alpha_pattern means a module, in bounded time
    pairs       do the listed tensors make LoRA pairs of the promised rank?
    inspect     all of it for one folder: AdapterInfo, or an error a user can act on
    looks       what a look at a folder means: changed, gone, or away for a moment
    folder      a folder of adapters, served under their folder names
    watching    which of them may have changed, told by the system where it can tell
    make        random adapters for tests and measurements (needs numpy)

`make` and `watching` are not imported here: reading adapters needs the standard library and RE2 alone.
"""

from chameleon_lora.adapters.content import read_fingerprint
from chameleon_lora.adapters.folder import AdapterFolder, is_name, leads_on, require_name
from chameleon_lora.adapters.inspect import (
    AdapterInfo,
    AdapterLimits,
    inspect_adapter,
    require_servable,
)

__all__ = [
    "AdapterFolder",
    "AdapterInfo",
    "AdapterLimits",
    "inspect_adapter",
    "is_name",
    "leads_on",
    "read_fingerprint",
    "require_name",
    "require_servable",
]

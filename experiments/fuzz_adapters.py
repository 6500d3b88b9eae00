"""How many broken adapters does the validator take without a wrong word?

Five kinds of input, made by Hypothesis from one seed:

    bytes     anything at all as the weights file
    mutated   a sound adapter's weights with bytes changed, cut, doubled or moved
    headers   safetensors headers of sound parts, of which some are wrong
    settings  adapter_config.json of known fields with values of any type
    configs   anything at all as adapter_config.json

A finding is: another exception than AdapterError, an adapter that one call takes and the other
refuses, an input that costs more time or memory than its limits, and an accepted adapter that the
reference reader reads otherwise or that vLLM's own reader refuses. The first of each sort is kept.

    .venv/bin/python -m experiments.fuzz_adapters --inputs 20000 --seed 0
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME, parse_header, read_header_bytes
from chameleon_lora.adapters.inspect import AdapterLimits, inspect_adapter, require_servable
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.adapters.untrusted import open_regular
from chameleon_lora.engine_vllm.worker.sealed_copy import sealed_copy
from chameleon_lora.errors import AdapterError

LIMIT_S = 1.0  # of processor time, for inputs of some kilobytes
LIMIT_BYTES = 4 << 20  # of memory beyond what was there
LIMITS = AdapterLimits(max_rank=64, max_bytes=1 << 30)
DIMS = ModelDims(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=2,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
)
MODULES = ("q_proj", "v_proj", "o_proj")
STEM = "base_model.model.model.layers.0.self_attn"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1}
WRONG_NUMBERS = st.sampled_from(
    [0, 1, -1, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | WRONG_NUMBERS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=10,
)


@dataclass(frozen=True, slots=True)
class Case:
    """The two files of one adapter."""

    config: bytes
    weights: bytes


@dataclass(slots=True)
class Tally:
    """What became of one kind's inputs."""

    tried: int = 0
    accepted: int = 0
    most_s: float = 0.0
    most_bytes: int = 0
    findings: Counter[str] = field(default_factory=Counter)


def sound() -> Case:
    """A sound adapter of rank 4."""
    with tempfile.TemporaryDirectory() as home:
        made = make_adapter(Path(home) / "a", DIMS, 4, seed=0, target_modules=MODULES[:2])
        return Case((made / CONFIG_NAME).read_bytes(), (made / WEIGHTS_NAME).read_bytes())


SOUND = sound()
SOUND_FIELDS: dict[str, Any] = json.loads(SOUND.config)


@st.composite
def mutated(draw: st.DrawFn) -> Case:
    """A sound file with one to four changes."""
    content = bytearray(SOUND.weights)
    header_bytes = 8 + int.from_bytes(SOUND.weights[:8], "little")
    for _ in range(draw(st.integers(1, 4))):
        reach = header_bytes if draw(st.booleans()) else len(content)
        place = draw(st.integers(0, max(0, min(reach, len(content)) - 1)))
        length = draw(st.integers(0, 16))
        match draw(st.sampled_from(["set", "cut", "insert", "double", "end"])):
            case "set":
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del content[place : place + length]
            case "insert":
                content[place:place] = draw(st.binary(max_size=16))
            case "double":
                content[place:place] = content[place : place + length]
            case _:
                del content[place:]
    return Case(SOUND.config, bytes(content))


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    """A header's entries for some pairs, tiled as they should be."""
    rank, end, entries = draw(st.integers(1, 6)), 0, {}
    usual = draw(st.sampled_from(list(ITEM_BYTES)))
    for module in draw(st.lists(st.sampled_from(MODULES), min_size=1, max_size=3, unique=True)):
        for side, shape in (("A", [rank, 8]), ("B", [8, rank])):
            code = draw(st.just(usual) | st.sampled_from(list(ITEM_BYTES)))
            nbytes = shape[0] * shape[1] * ITEM_BYTES[code]
            offsets = [end, end + nbytes]
            name = f"{STEM}.{module}.lora_{side}.weight"
            entries[name] = {"dtype": code, "shape": shape, "data_offsets": offsets}
            end += nbytes
    return entries


@st.composite
def headers(draw: st.DrawFn) -> Case:
    """Entries of which up to two are spoilt, over as many bytes as the last one needs, or others."""
    entries = draw(tensors())
    first = next(iter(entries.values()))
    rank = first["shape"][0]
    nbytes = max(entry["data_offsets"][1] for entry in entries.values())
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(entries)))
        keys = ["dtype", "shape", "data_offsets", "name", "all", "place", "move"]
        match draw(st.sampled_from(keys)):
            case "name":
                entries[draw(st.text(max_size=20))] = entries.pop(name)
            case "all":
                entries[name] = draw(ANY_JSON)
            case "place" if isinstance(entries[name], dict):
                value = entries[name].get(draw(st.sampled_from(["shape", "data_offsets"])))
                if isinstance(value, list) and value:
                    value[draw(st.integers(0, len(value) - 1))] = draw(WRONG_NUMBERS | ANY_JSON)
            case "move" if isinstance(entries[name], dict):
                other = draw(st.sampled_from(sorted(entries)))
                if isinstance(entries[other], dict):  # the one lies where the other does
                    entries[name]["data_offsets"] = entries[other].get("data_offsets")
            case "dtype" | "shape" | "data_offsets" as key if isinstance(entries[name], dict):
                entries[name][key] = draw(ANY_JSON)
            case _:
                pass
    if draw(st.booleans()):
        entries["__metadata__"] = draw(st.just({"format": "pt"}) | ANY_JSON)
    raw = json.dumps(entries).encode()
    nbytes += draw(st.sampled_from([0, 0, 0, 0, 0, -1, 1, 8]))
    config = json.dumps({**SOUND_FIELDS, "r": rank}).encode()
    return Case(config, len(raw).to_bytes(8, "little") + raw + b"\0" * max(0, nbytes))


FIELDS = st.sampled_from(
    [
        *SOUND_FIELDS,
        *(
            "rank_pattern",
            "alpha_pattern",
            "use_rslora",
            "use_dora",
            "lora_bias",
            "init_lora_weights",
        ),
        *("layer_replication", "use_bdlora", "use_qalora", "alora_invocation_tokens"),
        *("vllm_lora_scaling_factor", "vllm_max_position_embeddings"),
    ]
)
KEYS = st.sampled_from(
    ["q_proj", "v_proj", r".*\.(q|k)_proj", "self_attn", r"((\w|\.)+)+!", "x" * 600, "\n"]
)
PATTERNS = st.dictionaries(KEYS | st.text(max_size=6), st.integers(-1, 9) | st.floats() | ANY_JSON)
CASES: dict[str, st.SearchStrategy[Case]] = {
    "bytes": st.binary(max_size=300).map(lambda raw: Case(SOUND.config, raw)),
    "mutated": mutated(),
    "headers": headers(),
    "settings": st.dictionaries(FIELDS, ANY_JSON | PATTERNS, max_size=3).map(
        lambda fields: Case(json.dumps({**SOUND_FIELDS, **fields}).encode(), SOUND.weights)
    ),
    "configs": (
        st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode())
    ).map(lambda raw: Case(raw, SOUND.weights)),
}


def main() -> int:
    """Print the table; 1 if there is a finding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=2000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz-adapters"))
    args = parser.parse_args()
    tallies = {
        kind: fuzzed(kind, cases, args.inputs // len(CASES), args.seed, args.keep)
        for kind, cases in CASES.items()
    }
    print(f"{'kind':10}{'tried':>8}{'accepted':>10}{'findings':>10}{'most ms':>9}{'most KiB':>10}")
    for kind, tally in tallies.items():
        print(
            f"{kind:10}{tally.tried:8}{tally.accepted:10}{tally.findings.total():10}"
            f"{1000 * tally.most_s:9.1f}{tally.most_bytes / 1024:10.0f}"
        )
    for kind, tally in tallies.items():
        for text, count in tally.findings.most_common():
            print(f"  {kind}: {count} times {text}")
    tried = sum(tally.tried for tally in tallies.values())
    findings = sum(tally.findings.total() for tally in tallies.values())
    print(f"{tried} inputs, {findings} findings, seed {args.seed}")
    return 1 if findings else 0


def fuzzed(kind: str, cases: st.SearchStrategy[Case], count: int, number: int, keep: Path) -> Tally:
    """What became of so many inputs of one kind; the first of each sort of finding is kept."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "adapter"
        folder.mkdir()

        @seed(number)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def one(case: Case) -> None:
            (folder / CONFIG_NAME).write_bytes(case.config)
            (folder / WEIGHTS_NAME).write_bytes(case.weights)
            for text in found_in(folder, tally):
                if not tally.findings[text]:
                    kept = keep / f"{kind}-{len(tally.findings)}"
                    shutil.copytree(folder, kept, dirs_exist_ok=True)
                tally.findings[text] += 1

        one()
    return tally


def found_in(folder: Path, tally: Tally) -> list[str]:
    """The findings of one input."""
    tally.tried += 1
    tracemalloc.start()
    started_s = time.process_time()
    found = judged(folder)
    cost_s = time.process_time() - started_s
    cost_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    tally.most_s, tally.most_bytes = max(tally.most_s, cost_s), max(tally.most_bytes, cost_bytes)
    if cost_s > LIMIT_S:
        found.append("takes too long")
    if cost_bytes > LIMIT_BYTES:
        found.append("takes too much memory")
    if not found and not inspect_adapter(folder, LIMITS).problems:
        tally.accepted += 1
        found += [*differences(folder), *refusals(folder)]
    return found


def judged(folder: Path) -> list[str]:
    """What both calls make of the adapter, if they do not agree or raise what they must not."""
    try:
        info = inspect_adapter(folder, LIMITS)
    except Exception as error:  # noqa: BLE001  # a finding, whatever it is
        return [f"inspect_adapter raises {type(error).__name__}"]
    try:
        required = require_servable(folder, LIMITS)
    except AdapterError:
        return [] if info.problems else ["require_servable refuses what inspect_adapter takes"]
    except Exception as error:  # noqa: BLE001  # a finding, whatever it is
        return [f"require_servable raises {type(error).__name__}"]
    if info.problems:
        return ["require_servable takes what inspect_adapter refuses"]
    return [] if info == required else ["the two describe it differently"]


def differences(folder: Path) -> list[str]:
    """Where the reference reader sees another file than we do."""
    path = folder / WEIGHTS_NAME
    with open_regular(path) as file:
        raw = read_header_bytes(file)
    ours = {e.name: e for e in parse_header(raw, path.stat().st_size - 8 - len(raw))}
    try:
        theirs = load_file(path)
    except Exception as error:  # noqa: BLE001  # a finding, whatever it is
        return [f"safetensors raises {type(error).__name__}"]
    if ours.keys() != theirs.keys():
        return ["safetensors sees other tensors"]
    sizes = {name: (tuple(tensor.shape), tensor.nbytes) for name, tensor in theirs.items()}
    if sizes != {name: (entry.shape, entry.nbytes) for name, entry in ours.items()}:
        return ["safetensors sees another shape or size"]
    return []


def refusals(folder: Path) -> list[str]:
    """Why vLLM's own code between the folder and its tensors does not take the accepted adapter."""
    try:
        with sealed_copy(folder, None, LIMITS) as copy:  # as loads do
            path = str(copy.folder)
            helper = PEFTHelper.from_local_dir(path, None)
            LoRAModel.from_local_checkpoint(
                path, set(MODULES), peft_helper=helper, lora_model_id=1, device="cpu"
            )
    except Exception as error:  # noqa: BLE001  # a finding, whatever it is
        return [f"vLLM raises {type(error).__name__}: {str(error)[:60]}"]
    return []


if __name__ == "__main__":
    sys.exit(main())

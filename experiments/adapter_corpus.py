"""Adapters as trainers write them, made with PEFT: which are served as PEFT answers, and which are refused.

    .venv/bin/python -m experiments.adapter_corpus DIR

writes DIR/adapters/NAME, and DIR/corpus.jsonl, where a line has an adapter's configuration, the tensors' names, types and
shapes, and PEFT's own tokens. tests/data/adapter_corpus.jsonl is such a file without the tokens; PEFT is in group `dev`.

Shapes of files are those of PEFT, axolotl, unsloth, LLaMA-Factory, TRL, ms-swift and torchtune as known in November 2026.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model

PROMPT, TOKENS = [17, 301, 44, 250, 9, 123, 77], 12
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
LAYERS = 2
Edit = Callable[[Path], None]


@dataclass(frozen=True)
class Variant:
    """One way to train or write an adapter.

    Attributes:
        lora: of PEFT's LoraConfig, beside what all have.
        edits: what that trainer writes otherwise than PEFT, done to the folder in turn.
        check: words with which `adapters inspect` refuses it, as for a server that generates.
        engine: words with which the engine refuses it, where the files alone do not tell.
    """

    lora: dict[str, Any] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    check: str | None = None
    engine: str | None = None


def config(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Edit:
    """Another configuration."""

    def edit(folder: Path) -> None:
        path = folder / CONFIG_NAME
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return edit


def only(*names: str) -> Edit:
    """A configuration of these fields alone."""
    return config(lambda fields: {name: fields[name] for name in names})


def tensors(change: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> Edit:
    """Other names or types in the file of weights."""

    def edit(folder: Path) -> None:
        made = dict(change(*item) for item in load_file(folder / WEIGHTS_NAME).items())
        save_file(made, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    return edit


def renamed(*words: tuple[str, str]) -> Edit:
    """Words in the tensors' names replaced, in turn."""

    def change(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        for old, new in words:
            name = name.replace(old, new)
        return name, tensor

    return tensors(change)


def beside(**files: str) -> Edit:
    """More files in the folder; `__` in a name is a dot."""

    def edit(folder: Path) -> None:
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    return edit


def pickled(folder: Path) -> None:
    """The weights as adapter_model.bin alone."""
    torch.save(load_file(folder / WEIGHTS_NAME), folder / "adapter_model.bin")
    (folder / WEIGHTS_NAME).unlink()


UNSLOTH_TARGETS = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj|v_proj"
    r"|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp"
    r"|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)))"
)
AXOLOTL_KEY = r".*\.layers\.1\..*(q_proj|k_proj|v_proj|o_proj)$"
TUNE_NAMES = (
    ("base_model.model.model.", ""),
    ("self_attn.", "attn."),
    ("o_proj", "output_proj"),
    ("lora_A", "lora_a"),
    ("lora_B", "lora_b"),
)
SWIFT_FILES = {
    "additional_config__json": '{"lora_dtype": null, "lorap_lr_ratio": null, "lorap_emb_lr": 1e-06}',
    "args__json": "{}",
}
OLD_FIELDS = (
    "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
    "lora_dropout", "modules_to_save", "peft_type", "r", "target_modules", "task_type",
)  # fmt: skip
TUNE_FIELDS = ("r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path")
UNSLOTH = {
    "auto_mapping": {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
        "unsloth_fixed": True,
    },
    "base_model_name_or_path": "unsloth/llama-bnb-4bit",
}

VARIANTS = {
    "peft": Variant(),
    "peft-all-linear": Variant({"target_modules": "all-linear", "r": 7}),
    "peft-rslora": Variant({"use_rslora": True, "r": 12}),
    "peft-patterns": Variant(
        {
            "rank_pattern": {"k_proj": 4, "model.layers.1.self_attn.q_proj": 12},
            "alpha_pattern": {"v_proj": 64, "layers.0.self_attn.o_proj": 3},
        }
    ),
    "peft-layers": Variant({"layers_to_transform": [1], "layers_pattern": "layers"}),
    "peft-excluded": Variant({"target_modules": ALL, "exclude_modules": r".*\.0\.mlp\..*"}),
    "peft-embeddings": Variant({"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "peft-bias-all": Variant({"bias": "all"}),
    "peft-gaussian": Variant({"init_lora_weights": "gaussian", "target_modules": ["gate_proj"]}),
    "peft-old": Variant(edits=(only(*OLD_FIELDS),)),
    "peft-without-prefix": Variant(edits=(renamed(("base_model.model.", "")),)),
    "axolotl-patterns": Variant(
        {"rank_pattern": {AXOLOTL_KEY: 4}, "alpha_pattern": {AXOLOTL_KEY: 32}},
        (beside(README__md="---\n", config__json="{}", tokenizer__json="{}"),),
    ),
    "unsloth": Variant(
        {"target_modules": UNSLOTH_TARGETS}, (config(lambda fields: fields | UNSLOTH),)
    ),
    "llama-factory": Variant(
        {"target_modules": ALL},
        (beside(training_args__bin="", trainer_log__jsonl="", all_results__json="{}"),),
    ),
    "trl-half": Variant(
        edits=(tensors(lambda n, t: (n, t.half())), beside(training_args__bin=""))
    ),
    "ms-swift": Variant(
        {"target_modules": r"^(model(?=\.).*\.(q_proj|v_proj|down_proj))$"},
        (tensors(lambda n, t: (n, t.bfloat16())), beside(**SWIFT_FILES)),
    ),
    "torchtune-peft": Variant(edits=(only(*TUNE_FIELDS),)),
    "torchtune-bin": Variant(edits=(only(*TUNE_FIELDS), pickled), check="adapters convert"),
    "torchtune-own": Variant(edits=(renamed(*TUNE_NAMES),), check="under names as PEFT writes them"),
    "ms-swift-default": Variant(
        edits=(renamed(("lora_A.", "lora_A.default."), ("lora_B.", "lora_B.default.")),),
        check="has an adapter's name in its own",
    ),
    "peft-dora": Variant({"use_dora": True}, check="refuses DoRA"),
    "peft-lora-bias": Variant({"lora_bias": True}, check="refuses LoRA bias"),
    "peft-pissa": Variant({"init_lora_weights": "pissa"}, check="change the base weights"),
    "peft-tokens": Variant({"trainable_token_indices": [5, 6]}, check="no LoRA weight that vLLM"),
    "llama-factory-additional": Variant(
        {"modules_to_save": ["embed_tokens", "lm_head"]}, check="takes whole modules for"
    ),
    "trl-classifier": Variant({"task_type": "SEQ_CLS"}, check="is the head of a classifier"),
    "other-kind": Variant(edits=(renamed(("o_proj", "halfmlp")),), engine="are of a kind that"),
    "other-wrapper": Variant(
        edits=(renamed(("model.layers", "model.language_model.layers")),),
        engine="none of its weights is for a layer of this model",
    ),
}  # fmt: skip


def main() -> None:
    """Write all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write adapters/ and corpus.jsonl")
    root: Path = parser.parse_args().folder
    model = ensure_tiny_model(default_cache_dir(), LAYERS)
    lines = [make(root / "adapters" / name, model, name) for name in VARIANTS]
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (root / "corpus.jsonl").write_text(text)


def make(folder: Path, model: Path, name: str) -> dict[str, Any]:
    """Write one; its line, with the tokens that PEFT answers with what it wrote before edits."""
    variant = VARIANTS[name]
    torch.manual_seed(list(VARIANTS).index(name))
    given: dict[str, Any] = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": ATTENTION,
        "task_type": "CAUSAL_LM",
    }
    lora = peft.LoraConfig(**(given | variant.lora))
    kind: Any = transformers.AutoModelForCausalLM
    more = {}
    if lora.task_type == "SEQ_CLS":
        kind, more = transformers.AutoModelForSequenceClassification, {"num_labels": 3}
    base = kind.from_pretrained(model, dtype=torch.float32, **more).eval()
    tuned = peft.get_peft_model(base, lora).eval()
    with torch.no_grad():
        for parameter, values in tuned.named_parameters():
            if "lora_" in parameter:
                values.normal_(0, 0.2).copy_(values.half().bfloat16())
    tuned.save_pretrained(folder)
    tokens = None
    if lora.task_type == "CAUSAL_LM" and not (variant.check and name != "torchtune-bin"):
        tokens = _tokens(tuned)
    for edit in (config(_anywhere), *variant.edits):
        edit(folder)
    return {
        "name": name,
        "check": variant.check,
        "engine": variant.engine,
        "config": json.loads((folder / CONFIG_NAME).read_text()),
        "tensors": _listed(folder / WEIGHTS_NAME),
        "tokens": tokens,
    }


def _anywhere(fields: dict[str, Any]) -> dict[str, Any]:
    """The same wherever and whenever it is made: PEFT keeps modules in a set."""
    targets = fields["target_modules"]
    ordered = targets if isinstance(targets, str) else sorted(targets)
    return fields | {"base_model_name_or_path": "tiny-llama", "target_modules": ordered}


def _tokens(model: Any) -> list[int]:
    asked = torch.tensor([PROMPT])
    made = model.generate(
        input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=TOKENS, do_sample=False,
        pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    found: list[int] = made[0, len(PROMPT) :].tolist()
    return found


def _listed(weights: Path) -> dict[str, tuple[str, list[int]]] | None:
    """Name -> type and shape, as the header has them; None for a pickle."""
    if not weights.exists():
        return None
    raw = weights.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}


if __name__ == "__main__":
    main()

"""Writes a small Llama directory; run as a program, because it imports torch and transformers.

python -m chameleon_lora.servers.model_builder smollm2 OUT_DIR GGUF_FILE
python -m chameleon_lora.servers.model_builder tiny OUT_DIR LAYERS
"""

import sys
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

TINY_VOCABULARY = 512
TINY_MAX_TOKENS = 2048
TINY_SEED = 20251018
TINY_SPECIALS = ("<|pad|>", "<|bos|>", "<|eos|>")


def build_smollm2(out_dir: Path, gguf_file: Path) -> None:
    """Dequantises the GGUF to float32 and saves it as a Llama directory with its tokenizer."""
    folder, name = str(gguf_file.parent), gguf_file.name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    # The weights are plain floats now: left in place, these three make the saved copy claim a
    # GGUF quantisation that no loader of a Llama directory accepts.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out_dir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    tokenizer.save_pretrained(out_dir)


def build_tiny(out_dir: Path, layers: int) -> None:
    """Saves a random narrow Llama whose weights are the same at each call, and a byte tokenizer."""
    torch.manual_seed(TINY_SEED)
    config = transformers.LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TINY_MAX_TOKENS,
        initializer_range=0.1,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float32)
    model.save_pretrained(out_dir)
    _byte_tokenizer().save_pretrained(out_dir)


def _byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a byte, after three special ones; the ids above them decode to " 259" and so on.

    So every id the random model can choose is readable text.
    """
    names = [*TINY_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"Ġ{index}" for index in range(len(names), TINY_VOCABULARY)]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in TINY_SPECIALS])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        model_max_length=TINY_MAX_TOKENS,
    )


def main(argv: list[str]) -> int:
    """Builds the model that the first argument names."""
    torch.set_num_threads(1)
    match argv:
        case ["smollm2", out_dir, gguf_file]:
            build_smollm2(Path(out_dir), Path(gguf_file))
        case ["tiny", out_dir, layers]:
            build_tiny(Path(out_dir), int(layers))
        case _:
            print(__doc__, file=sys.stderr)  # noqa: T201 - this file is a program
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

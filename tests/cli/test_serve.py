"""`chameleon serve`: the arguments vLLM gets, and what is refused before anything starts."""

import argparse
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.cli.main import main
from chameleon_lora.cli.option_types import RANKS
from chameleon_lora.cli.serve import PLUGIN, add_parser, allow_plugin, vllm_arguments
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.errors import AdapterNotFoundError, ConfigError
from chameleon_lora.tenants import hash_key

DIMS = ModelDims(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
)


def arguments(*words: str | Path) -> list[str]:
    """What `chameleon serve MODEL words...` hands to `vllm serve`."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args, rest = parser.parse_known_args(["serve", "model", *map(str, words)])
    args.rest = rest
    return vllm_arguments(args)


def config(given: list[str]) -> dict[str, Any]:
    """The one --additional-config among vLLM's arguments."""
    assert 1 == given.count("--additional-config")
    parsed = json.loads(given[given.index("--additional-config") + 1])
    assert isinstance(parsed, dict)
    return parsed


def value_of(flag: str, given: list[str]) -> str | None:
    """The value behind a flag, or None if the flag is not there."""
    return given[given.index(flag) + 1] if flag in given else None


def refusal(*words: str | Path) -> str:
    """The words in which these arguments are refused."""
    with pytest.raises(ConfigError) as caught:
        arguments(*words)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of adapters of ranks 4 and 24."""
    for rank in (4, 24):
        make_adapter(
            tmp_path / "adapters" / f"r{rank}", DIMS, rank, seed=rank, target_modules=["q_proj"]
        )
    return tmp_path / "adapters"


def test_chameleons_scheduler_and_settings_are_added() -> None:
    """Model first, then the scheduler and the settings; without adapters no LoRA flags."""
    given = arguments("--set", "cache.keep=lru")
    expected = ["model", "--scheduler-cls", SCHEDULER, "--additional-config"]
    assert expected == given[:4]
    assert {"chameleon": {"cache": {"keep": "lru"}}} == config(given)
    assert 5 == len(given)


def test_vllms_own_flags_follow_in_order() -> None:
    """Flags that Chameleon does not know reach vLLM as they were given, values too."""
    own = ["--port", "8001", "--max-model-len=2048", "-tp", "2", "--hf-overrides", '{"a": [1]}']
    given = arguments("--port", "8001", "--max-model-len=2048", "--set", "seed=1", *own[3:])
    assert own == given[5:]


@pytest.mark.parametrize(
    "words",
    [
        ("--additional-config", '{"other": {"a": 1}}'),
        ('--additional-config={"other": {"a": 1}}',),
        ("--additional_config", '{"other": {"a": 1}}'),
    ],
    ids=["two words", "one word", "underscore"],
)
def test_the_users_additional_config_is_kept(words: tuple[str, ...]) -> None:
    """Chameleon's settings join the user's own object; the flag is given once."""
    given = arguments("--set", "seed=3", *words, "--port", "1")
    assert {"other": {"a": 1}, "chameleon": {"seed": 3}} == config(given)
    assert ["--port", "1"] == given[5:]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--additional-config", "{"), "is not JSON"),
        (("--additional-config",), "is not JSON"),
        (("--additional-config", "[1]"), "takes a JSON object"),
        (("--additional-config", '{"chameleon": {}}'), "--chameleon-config and --set"),
        (("--additional-config.other", "1"), "one JSON object"),
        (("--additional_config.other=1",), "one JSON object"),
    ],
)
def test_an_additional_config_that_cannot_be_joined_is_refused(
    words: tuple[str, ...], reason: str
) -> None:
    """No JSON, no object, Chameleon's own key, or a dotted form that would replace the whole."""
    assert reason in refusal(*words)


@pytest.mark.parametrize("flag", ["--scheduler-cls", "--scheduler_cls", "--scheduler-cls=x"])
def test_another_scheduler_is_refused(flag: str) -> None:
    """--scheduler-cls in any spelling is Chameleon's own here; the way out is `vllm serve`."""
    assert "`vllm serve`" in refusal(flag, "x")


def test_adapters_turn_lora_on_wide_enough_for_the_largest(folder: Path) -> None:
    """With ranks 4 and 24 the slots get the next width vLLM knows; the folder goes by full path."""
    given = arguments("--adapters", folder)
    assert "--enable-lora" in given
    assert "32" == value_of("--max-lora-rank", given)
    assert str(folder.absolute()) == config(given)["chameleon"]["serving"]["adapters"]


def test_a_folder_named_relative_is_passed_on_in_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the engine starts does not matter."""
    monkeypatch.chdir(folder.parent)
    given = arguments("--adapters", folder.name)
    assert str(folder) == config(given)["chameleon"]["serving"]["adapters"]


def test_the_users_rank_and_lora_flag_stand(folder: Path) -> None:
    """--max-lora-rank in either spelling, and --enable-lora, are not given twice."""
    given = arguments("--adapters", folder, "--enable-lora", "--max_lora_rank=64")
    assert ["--enable-lora", "--max_lora_rank=64"] == given[5:]


def test_an_empty_folder_gets_vllms_usual_width(tmp_path: Path) -> None:
    """Adapters may come later: without any, slots are 16 wide."""
    assert "16" == value_of("--max-lora-rank", arguments("--adapters", tmp_path))


def test_a_broken_adapter_does_not_count_for_the_width(folder: Path) -> None:
    """An adapter that cannot be served does not widen the slots."""
    (folder / "r24" / CONFIG_NAME).write_text("{")
    assert "16" == value_of("--max-lora-rank", arguments("--adapters", folder))


def test_the_widest_slots_are_vllms_widest(tmp_path: Path) -> None:
    """An adapter of the largest rank vLLM takes gets slots of that width."""
    make_adapter(tmp_path / "wide", DIMS, RANKS[-1], seed=0, target_modules=["q_proj"])
    assert "512" == value_of("--max-lora-rank", arguments("--adapters", tmp_path))


def test_adapters_may_be_named_in_the_settings(folder: Path) -> None:
    """serving.adapters turns LoRA on as --adapters does."""
    given = arguments("--set", f"serving.adapters={folder}")
    assert arguments("--adapters", folder) == given


def test_the_flag_goes_before_the_setting(folder: Path, tmp_path: Path) -> None:
    """--adapters replaces serving.adapters."""
    given = arguments("--adapters", folder, "--set", f"serving.adapters={tmp_path}")
    assert str(folder) == config(given)["chameleon"]["serving"]["adapters"]


@pytest.mark.parametrize("form", ["--adapters={}", "--set=serving.adapters={}"])
def test_a_place_that_is_no_folder_is_refused(tmp_path: Path, form: str) -> None:
    """A missing folder is named, however it was given."""
    place = tmp_path / "none"
    assert f"{str(place)!r} is not a folder" in refusal(form.format(place))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_refused(folder: Path) -> None:
    """Rights that are missing are told before anything starts."""
    folder.chmod(0)
    try:
        with pytest.raises(AdapterNotFoundError, match="cannot be listed"):
            arguments("--adapters", folder)
    finally:
        folder.chmod(stat.S_IRWXU)


def test_a_value_in_place_of_a_table_is_refused(folder: Path) -> None:
    """`serving` given as a number is told as such, adapters or not."""
    assert "setting 'serving' is 3" in refusal("--adapters", folder, "--set", "serving=3")


def test_settings_are_checked_before_adapters_are_looked_at(tmp_path: Path) -> None:
    """A wrong setting is told first."""
    text = refusal("--adapters", tmp_path / "none", "--set", "cache.keep=fifo")
    assert text.startswith("setting 'cache.keep' is 'fifo'")


def test_a_settings_file_is_laid_under_the_overrides(tmp_path: Path) -> None:
    """--chameleon-config and --set make one mapping for the engine."""
    path = tmp_path / "c.toml"
    path.write_text('preset = "paper"\n[cache]\nkeep = "lru"\n')
    given = arguments("--chameleon-config", path, "--set", "cache.host_bytes=5")
    expected = {"preset": "paper", "cache": {"keep": "lru", "host_bytes": 5}}
    assert expected == config(given)["chameleon"]


def test_a_wrong_setting_ends_the_command_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason goes to stderr, nothing starts."""
    assert 2 == main(["serve", "model", "--set", "admission.bypass=always"])
    assert "chameleon serve: setting 'admission.bypass' is 'always'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [(None, None), ("", PLUGIN), ("other", f"other,{PLUGIN}"), (f"{PLUGIN},a", f"{PLUGIN},a")],
)
def test_the_plugin_is_allowed_beside_others(
    allowed: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM_PLUGINS, if it is set, names Chameleon once and keeps the rest."""
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    allow_plugin()
    assert expected == os.environ.get("VLLM_PLUGINS")


ADMIN_KEY = "an-admin-key-0123"
TENANTS = f'[tenants.acme]\nkeys = ["{hash_key("acme-key-01234567")}"]\n'


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    """A file of one tenant."""
    path = tmp_path / "tenants.toml"
    path.write_text(TENANTS)
    return path


def serving_of(given: list[str]) -> Any:
    """Chameleon's settings of serving among vLLM's arguments."""
    return config(given)["chameleon"]["serving"]


def test_tenants_are_passed_on_in_full(tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server starts does not matter."""
    monkeypatch.chdir(tenants.parent)
    assert str(tenants) == serving_of(arguments("--tenants", tenants.name))["tenants"]


def test_an_admin_key_is_passed_on_as_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file or the environment; the file goes before. The key itself is nowhere."""
    monkeypatch.setenv("CHAMELEON_ADMIN_KEY", ADMIN_KEY)
    given = arguments()
    assert {"admin_key_hash": hash_key(ADMIN_KEY)} == serving_of(given)
    assert not [word for word in given if ADMIN_KEY in word]
    (tmp_path / "key").write_text(ADMIN_KEY[::-1] + "\n")
    given = arguments("--admin-key-file", tmp_path / "key")
    assert {"admin_key_hash": hash_key(ADMIN_KEY[::-1])} == serving_of(given)


def test_an_admin_key_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A missing file, and a key that can be guessed."""
    assert "cannot be read" in refusal("--admin-key-file", tmp_path / "none")
    (tmp_path / "key").write_text("short")
    assert "16" in refusal("--admin-key-file", tmp_path / "key")


@pytest.mark.parametrize("words", [("--api-key", "k"), ("--api-key=k",)], ids=str)
def test_vllms_key_is_refused_beside_tenants(tenants: Path, words: tuple[str, ...]) -> None:
    """Before the engine starts."""
    assert "tenants have keys of their own" in refusal("--tenants", tenants, *words)


def test_vllms_key_in_the_environment_is_refused_too(
    tenants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would shut every tenant out."""
    monkeypatch.setenv("VLLM_API_KEY", "k")
    assert "VLLM_API_KEY" in refusal("--tenants", tenants)


def test_a_bad_tenants_file_is_refused(tenants: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and one line that names file, tenant and key."""
    tenants.write_text(TENANTS + "weight = 0\n")
    assert 2 == main(["serve", "model", "--tenants", str(tenants)])
    error = capsys.readouterr().err
    assert f"tenants file {tenants}: tenant 'acme': weight is 0; use 0.001 to 1000" in error

"""`chameleon serve`: what vLLM is told beside what the user said, and what is refused."""

import argparse
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import RANKS, fitting_rank
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.cli.main import main
from chameleon_lora.cli.serve import PLUGIN, add_parser, allow_plugin, lay_over, server_settings
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.errors import AdapterNotFoundError, ConfigError
from chameleon_lora.tenants import hash_key
from tests.engine_vllm.served_folder import opened_by

DIMS = ModelDims(8, 8, 1, 1, 1, 8)


def read(*words: str | Path) -> argparse.Namespace:
    """What `chameleon serve model words...` takes for itself; the rest is vLLM's."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers(required=True))
    args, rest = parser.parse_known_args(["serve", "model", *map(str, words)])
    args.rest = rest
    return args


def laid(*words: str | Path, **said: Any) -> argparse.Namespace:
    """What vLLM is told, if its own arguments said this; None is what nobody said anything of."""
    told = argparse.Namespace(
        scheduler_cls=None,
        additional_config={},
        api_key=None,
        enable_lora=None,
        max_lora_rank=None,
    )
    vars(told).update(said)
    args = read(*words)
    lay_over(told, args, server_settings(args))
    return told


def config(*words: str | Path) -> Any:
    """Chameleon's settings among what vLLM is told."""
    return laid(*words).additional_config["chameleon"]


def refusal(*words: str | Path, **said: Any) -> str:
    """The words in which this is refused."""
    with pytest.raises(ConfigError) as caught:
        laid(*words, **said)
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
    """Without adapters nothing is said of LoRA."""
    told = laid("--set", "cache.keep=lru")
    expected = (SCHEDULER, {"chameleon": {"cache": {"keep": "lru"}}}, None, None)
    assert expected == (
        told.scheduler_cls, told.additional_config, told.enable_lora, told.max_lora_rank
    )  # fmt: skip


def test_vllms_own_words_follow_in_order() -> None:
    """The model, and flags that Chameleon does not know, reach vLLM as they were given, values too."""
    own = ["--port", "8001", "--max-model-len=2048", "-tp", "2", "--hf-overrides", '{"a": [1]}']
    given = read(*own[:3], "--set", "seed=1", *own[3:])
    assert ["model", *own] == given.rest


def test_the_users_additional_config_is_kept() -> None:
    """Chameleon's settings join the user's own object, or stand where it has none."""
    for own in ({"other": {"a": 1}}, {}, None):
        told = laid("--set", "seed=3", additional_config=own)
        assert {**(own or {}), "chameleon": {"seed": 3}} == told.additional_config


@pytest.mark.parametrize(
    ("given", "reason"),
    [([1], "takes a JSON object"), ({"chameleon": {}}, "--chameleon-config and --set")],
)
def test_an_additional_config_that_cannot_be_joined_is_refused(given: Any, reason: str) -> None:
    """No object, or Chameleon's own key in it."""
    assert reason in refusal(additional_config=given)


def test_another_scheduler_is_refused() -> None:
    """The way out is `vllm serve`; Chameleon's own may be named."""
    assert "'x.Y'" in refusal(scheduler_cls="x.Y")
    assert "`vllm serve`" in refusal(scheduler_cls="x.Y")
    assert SCHEDULER == laid(scheduler_cls=SCHEDULER).scheduler_cls


def test_adapters_turn_lora_on_wide_enough_for_the_largest(folder: Path) -> None:
    """With ranks 4 and 24 the slots get the next width vLLM knows; the folder goes by full path."""
    told = laid("--adapters", folder)
    assert (True, 32) == (told.enable_lora, told.max_lora_rank)
    assert str(folder.absolute()) == told.additional_config["chameleon"]["serving"]["adapters"]


def test_a_folder_named_relative_is_passed_on_in_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the engine starts does not matter."""
    monkeypatch.chdir(folder.parent)
    assert str(folder) == config("--adapters", folder.name)["serving"]["adapters"]


def test_the_users_rank_and_lora_flag_stand(folder: Path) -> None:
    """Also a rank that the folder's adapters do not need, or are too large for."""
    for rank in (8, 64):
        told = laid("--adapters", folder, enable_lora=True, max_lora_rank=rank)
        assert (True, rank) == (told.enable_lora, told.max_lora_rank)


def test_adapters_without_lora_are_refused(folder: Path) -> None:
    """They could not be served."""
    assert "leave --no-enable-lora out" in refusal("--adapters", folder, enable_lora=False)
    assert laid(enable_lora=False).enable_lora is False


def test_an_empty_folder_gets_vllms_usual_width(tmp_path: Path) -> None:
    """Adapters may come later: without any, slots are 16 wide."""
    assert 16 == laid("--adapters", tmp_path).max_lora_rank


def test_of_most_adapters_no_weights_are_looked_at(folder: Path) -> None:
    """There may be thousands, and only the widest counts."""
    opened = opened_by(lambda: laid("--adapters", folder))
    assert ["r24"] == [Path(path).parent.name for path in opened if path.endswith(WEIGHTS_NAME)]


def test_a_broken_adapter_does_not_count_for_the_width(folder: Path) -> None:
    """An adapter that cannot be served does not widen the slots."""
    (folder / "r24" / CONFIG_NAME).write_text("{")
    assert 16 == laid("--adapters", folder).max_lora_rank


def test_the_widest_slots_are_vllms_widest(tmp_path: Path) -> None:
    """An adapter of the largest rank vLLM takes gets slots of that width."""
    make_adapter(tmp_path / "wide", DIMS, RANKS[-1], seed=0, target_modules=["q_proj"])
    assert 512 == laid("--adapters", tmp_path).max_lora_rank


def test_adapters_may_be_named_in_the_settings(folder: Path) -> None:
    """serving.adapters turns LoRA on as --adapters does."""
    assert laid("--adapters", folder) == laid("--set", f"serving.adapters={folder}")


def test_the_flag_goes_before_the_setting(folder: Path, tmp_path: Path) -> None:
    """--adapters replaces serving.adapters."""
    given = config("--adapters", folder, "--set", f"serving.adapters={tmp_path}")
    assert str(folder) == given["serving"]["adapters"]


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
            laid("--adapters", folder)
    finally:
        folder.chmod(stat.S_IRWXU)


def test_chameleons_own_may_stand_in_vllms_file(folder: Path, tmp_path: Path) -> None:
    """They count as on the command line, which goes before; vLLM is told none of them."""
    file = {"adapters": folder, "overrides": ["cache.keep=lru", "length.prior_tokens=7"]}
    told = laid("--set", "cache.keep=density", **file)
    settings = told.additional_config["chameleon"]
    assert {"keep": "density"} == settings["cache"]
    assert (str(folder), 7) == (settings["serving"]["adapters"], settings["length"]["prior_tokens"])
    assert told.enable_lora
    assert file.keys().isdisjoint(vars(told))
    other = tmp_path / "other"
    other.mkdir()
    settings = laid("--adapters", other, adapters=folder).additional_config["chameleon"]
    assert str(other) == settings["serving"]["adapters"]


def test_the_tenants_file_is_read_once(tenants: Path) -> None:
    """Before vLLM is asked for anything, and not again."""
    assert 1 == opened_by(lambda: laid("--tenants", tenants)).count(str(tenants))


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
    expected = {"preset": "paper", "cache": {"keep": "lru", "host_bytes": 5}}
    assert expected == config("--chameleon-config", path, "--set", "cache.host_bytes=5")


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


def test_tenants_are_passed_on_in_full(tenants: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server starts does not matter."""
    monkeypatch.chdir(tenants.parent)
    assert str(tenants) == config("--tenants", tenants.name)["serving"]["tenants"]


def test_no_admin_key_is_passed_on_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment its hash is, of a file the path, so that it is followed; the file goes before."""
    monkeypatch.setenv("CHAMELEON_ADMIN_KEY", ADMIN_KEY)
    assert {"serving": {"admin_key_hash": hash_key(ADMIN_KEY)}} == config()
    assert ADMIN_KEY not in str(laid())
    (tmp_path / "key").write_text(ADMIN_KEY[::-1] + "\n")
    expected = {"serving": {"admin_key_file": str(tmp_path / "key")}}
    assert expected == config("--admin-key-file", tmp_path / "key")


def test_an_admin_key_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A missing file, and a key that can be guessed."""
    assert "cannot be read" in refusal("--admin-key-file", tmp_path / "none")
    (tmp_path / "key").write_text("short")
    assert "16" in refusal("--admin-key-file", tmp_path / "key")


def test_vllms_key_is_refused_beside_tenants(tenants: Path) -> None:
    """Before the engine starts."""
    assert "tenants have keys of their own" in refusal("--tenants", tenants, api_key=["k"])


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


@pytest.mark.parametrize(("rank", "told"), [(2, 16), (24, 32), (300, 320)])
def test_the_way_out_of_a_large_rank_is_one_that_vllm_takes(rank: int, told: int) -> None:
    """It takes some only for --max-lora-rank."""
    assert told == fitting_rank(rank)

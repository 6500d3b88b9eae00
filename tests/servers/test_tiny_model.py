"""The models made for demos and tests."""

import importlib.util
import json
from pathlib import Path

import pytest

from chameleon_lora.servers.tiny_model import (
    default_cache_dir,
    ensure_demo_model,
    ensure_tiny_model,
)

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the tests of this file: building takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.slow
@needs_transformers
def test_the_tiny_model_is_a_small_float32_llama(cache_dir: Path) -> None:
    """Four layers, hidden 128, vocabulary 512, under 10 MB, with a tokenizer."""
    model_dir = ensure_tiny_model(cache_dir)
    config = json.loads((model_dir / "config.json").read_text("utf8"))
    assert ("llama", 4, 128, 512) == (
        config["model_type"],
        config["num_hidden_layers"],
        config["hidden_size"],
        config["vocab_size"],
    )
    assert config["dtype"] == "float32"
    assert (model_dir / "model.safetensors").stat().st_size < 10_000_000
    assert (model_dir / "tokenizer.json").exists()


@pytest.mark.slow
@needs_transformers
def test_a_model_is_built_once_and_leaves_nothing_behind(cache_dir: Path) -> None:
    """The second call returns the same files, and no scratch folder lies beside them."""
    model_dir = ensure_tiny_model(cache_dir)
    before = (model_dir / "model.safetensors").stat().st_mtime_ns
    assert ensure_tiny_model(cache_dir) == model_dir
    assert (model_dir / "model.safetensors").stat().st_mtime_ns == before
    assert [model_dir] == list(cache_dir.iterdir())


def test_a_model_that_is_there_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    """With the directory in the cache, the package it came from is not needed."""
    model_dir = tmp_path / "smollm2-135m-instruct-f32"
    model_dir.mkdir()
    assert ensure_demo_model(tmp_path) == model_dir


def test_the_cache_follows_the_users_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """XDG_CACHE_HOME where it is set, ~/.cache where not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "chameleon-lora"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache/chameleon-lora"

"""What is loaded is what was checked, whatever becomes of the files, and nothing is ever unpickled."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from chameleon_lora.adapters import AdapterLimits, read_fingerprint, require_servable
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm.messages import LoadAdapter
from chameleon_lora.engine_vllm.worker.sealed_copy import sealed_copy
from chameleon_lora.errors import AdapterError, AdapterInvalidError, AdapterTooLargeError
from tests.engine_vllm.worker.watched_files import Watch

DIMS = ModelDims(8, 8, 1, 1, 1, 8)
ANY = AdapterLimits()


WATCH: list[Watch] = []  # at most one: an audit hook lasts as long as the process


@pytest.fixture
def watch() -> Iterator[Watch]:
    """It notes while the test runs."""
    if not WATCH:
        WATCH.append(Watch())
    (made,) = WATCH
    made.opened.clear()
    made.unpickled.clear()
    made.is_on = True
    yield made
    made.is_on = False
    made.due.clear()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter of rank 2."""
    return make_adapter(tmp_path / "root" / "a", DIMS, 2, seed=1, target_modules=["q_proj"])


def content(folder: Path) -> tuple[bytes, bytes]:
    """Configuration and weights."""
    return (folder / CONFIG_NAME).read_bytes(), (folder / WEIGHTS_NAME).read_bytes()


def open_files() -> int:
    """Descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def rewrite_last_bytes(weights: Path) -> None:
    """Other weights in the same file, of the same size, with the times they had."""
    status = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\1\1\1")
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_the_copy_is_the_adapter_and_goes(adapter: Path) -> None:
    """Two files of the same bytes under the adapter's own name; afterwards neither folder nor file."""
    before = open_files()
    with sealed_copy(adapter, read_fingerprint(adapter), ANY) as sealed:
        copy = sealed.folder
        assert content(adapter) == content(copy)
        assert {CONFIG_NAME, WEIGHTS_NAME} == {path.name for path in copy.iterdir()}
        assert adapter.name == copy.name
    assert not copy.exists()
    assert before == open_files()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no file system is in memory")
def test_a_copy_takes_no_disk(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one for temporary files may be full or gone."""
    monkeypatch.setattr("tempfile.tempdir", str(adapter / "nowhere"))
    with sealed_copy(adapter, None, ANY) as sealed:
        assert content(adapter) == content(sealed.folder)
        assert all(path.is_symlink() for path in sealed.folder.iterdir())


def test_the_engine_is_handed_names_for_expressions(adapter: Path) -> None:
    """vLLM's own reader finds the same rank and scaling, and has no expression of the file to run."""
    helper = pytest.importorskip("vllm.lora.peft_helper").PEFTHelper
    if not hasattr(helper, "get_rank_and_scaling"):
        pytest.skip("this vLLM reads no patterns")
    fields = json.loads((adapter / CONFIG_NAME).read_bytes())
    hostile = r"((\w|\.)+)+!"
    fields["rank_pattern"] = {hostile: 4, r".*\.layers\.(0|3)\..*(q_proj|k_proj)$": 2} | {
        f"layers.{n}.q_proj": 4 for n in range(600)
    }
    fields["alpha_pattern"] = {r"(?:layers\.\d{1,2}\.).*": 6.5}
    fields["r"] = 4
    (adapter / CONFIG_NAME).write_text(json.dumps(fields))
    with sealed_copy(adapter, read_fingerprint(adapter), ANY) as sealed:
        read = helper.from_local_dir(str(sealed.folder), 64)
    assert 1 == len(read.rank_pattern) == len(read.alpha_pattern)
    assert (2, 6.5 / 2) == read.get_rank_and_scaling("model.layers.0.self_attn.q_proj")


def test_the_copy_survives_what_happens_to_the_files(adapter: Path) -> None:
    """Cut to nothing and deleted while mapped: the tensors stay, where a mapped file would end us."""
    expected = {name: values.copy() for name, values in load_file(adapter / WEIGHTS_NAME).items()}
    with sealed_copy(adapter, None, ANY) as sealed:
        copy = sealed.folder
        os.truncate(adapter / WEIGHTS_NAME, 0)
        (adapter / CONFIG_NAME).unlink()
        found = load_file(copy / WEIGHTS_NAME)
        assert () == require_servable(copy).problems
    assert expected.keys() == found.keys()
    assert all((values == found[name]).all() for name, values in expected.items())


def test_nobody_can_write_to_the_copy(adapter: Path) -> None:
    """Not even this process, by the copy's own name."""
    with sealed_copy(adapter, None, ANY) as sealed:
        copy = sealed.folder
        descriptor = os.open(copy / WEIGHTS_NAME, os.O_RDWR)
        try:
            for change in (lambda: os.write(descriptor, b"x"), lambda: os.ftruncate(descriptor, 0)):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(descriptor)


def fail() -> None:
    """What must not happen happened."""
    raise AssertionError("the copy began")


@pytest.mark.parametrize("change", ["config", "weights", "other adapter"])
def test_files_other_than_announced_are_refused(adapter: Path, change: str) -> None:
    """Changed since the check, they are not loaded under the name they were announced by.

    Also if they have the size and the time of change that they had before.
    """
    fingerprint = read_fingerprint(adapter)
    match change:
        case "config":
            (adapter / CONFIG_NAME).write_bytes(content(adapter)[0] + b" ")
        case "weights":
            rewrite_last_bytes(adapter / WEIGHTS_NAME)
        case _:
            other = make_adapter(adapter.parent / "b", DIMS, 2, seed=2, target_modules=["q_proj"])
            (other / WEIGHTS_NAME).replace(adapter / WEIGHTS_NAME)
    with (
        pytest.raises(AdapterInvalidError, match="changed after it was announced"),
        sealed_copy(adapter, fingerprint, ANY),
    ):
        pass


@pytest.mark.parametrize("is_hidden", [False, True])
def test_weights_that_change_during_the_copy_are_refused(
    adapter: Path, watch: Watch, is_hidden: bool
) -> None:
    """Also if the writer puts size and time of change back: the kernel keeps a time of its own."""
    weights = adapter / WEIGHTS_NAME
    status = weights.stat()
    os.utime(weights, ns=(0, 10**18))

    def rewrite() -> None:
        rewrite_last_bytes(weights)
        if not is_hidden:
            os.utime(weights)

    watch.do_at_copy(rewrite)
    before = open_files()
    with pytest.raises(AdapterInvalidError, match="changed"), sealed_copy(adapter, None, ANY):
        pass
    assert {} == watch.due
    assert status.st_size == weights.stat().st_size
    assert before == open_files()


def test_bytes_that_were_announced_are_loaded_whatever_their_files_went_through(
    adapter: Path, watch: Watch
) -> None:
    """Copied elsewhere, given other rights and times, even during the copy: they are what is meant."""
    fingerprint = read_fingerprint(adapter)
    moved = adapter.parent / "moved"
    shutil.copytree(adapter, moved, copy_function=shutil.copyfile)
    watch.do_at_copy(lambda: (moved / WEIGHTS_NAME).chmod(0o600))
    with sealed_copy(moved, fingerprint, ANY) as sealed:
        assert fingerprint == sealed.fingerprint
    assert {} == watch.due


@pytest.mark.parametrize("fault", ["configuration", "rank"])
def test_what_nobody_announced_is_checked_before_it_is_shown(adapter: Path, fault: str) -> None:
    """vLLM's own classes may load a folder unannounced: it is refused as any other."""
    limits = ANY
    if fault == "rank":
        limits = AdapterLimits(max_rank=1)
    else:
        (adapter / CONFIG_NAME).write_text("{}")
    with pytest.raises(AdapterError, match="way out: "), sealed_copy(adapter, None, limits):
        pass


def test_weights_cut_during_the_copy_are_refused(adapter: Path, watch: Watch) -> None:
    """Half a file is an answer, not a wait and not the end of the process."""
    watch.do_at_copy(lambda: os.truncate(adapter / WEIGHTS_NAME, 20))
    with pytest.raises(AdapterInvalidError), sealed_copy(adapter, None, ANY):
        pass


def test_what_claims_more_than_the_limit_is_not_copied(adapter: Path, watch: Watch) -> None:
    """A sparse file of four TiB costs nothing but its header."""
    watch.do_at_copy(fail)
    rows = 1 << 40
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora"
    header = (
        f'{{"{name}_A.weight":{{"dtype":"F16","shape":[2,{rows}],"data_offsets":[0,{4 * rows}]}},'
        f'"{name}_B.weight":{{"dtype":"F16","shape":[8,2],'
        f'"data_offsets":[{4 * rows},{4 * rows + 32}]}}}}'
    ).encode()
    weights = adapter / WEIGHTS_NAME
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    watch.is_on = False
    os.truncate(weights, 8 + len(header) + 4 * rows + 32)
    watch.is_on = True
    limits = AdapterLimits(max_bytes=1024)
    with (
        pytest.raises(AdapterTooLargeError, match=f"{4 * rows + 32} bytes, the limit is 1024"),
        sealed_copy(adapter, None, limits),
    ):
        pass


def test_what_was_too_large_when_it_was_opened_is_not_copied(adapter: Path, watch: Watch) -> None:
    """Though by the time it is judged a sound file has its name."""
    weights = adapter / WEIGHTS_NAME
    small = weights.rename(adapter / "small")
    limits = AdapterLimits(max_bytes=small.stat().st_size)
    watch.is_on = False
    weights.touch()
    os.truncate(weights, 1 << 42)
    watch.is_on = True
    watch.do_at_open(CONFIG_NAME, lambda: small.replace(weights))
    watch.do_at_copy(fail)
    with pytest.raises(AdapterInvalidError, match="changed"), sealed_copy(adapter, None, limits):
        pass
    assert not small.exists()


def test_a_device_in_place_of_the_weights_is_not_opened(adapter: Path, watch: Watch) -> None:
    """Not even if it came there after the announcement."""
    fingerprint = read_fingerprint(adapter)
    (adapter / WEIGHTS_NAME).unlink()
    (adapter / WEIGHTS_NAME).symlink_to("/dev/zero")
    watch.opened.clear()
    with (
        pytest.raises(AdapterInvalidError, match="is not a regular file"),
        sealed_copy(adapter, fingerprint, ANY),
    ):
        pass
    assert [] == [path for path in watch.opened if path.endswith(WEIGHTS_NAME)]


def test_a_pipe_that_comes_just_before_the_opening_is_refused(adapter: Path, watch: Watch) -> None:
    """What was opened is looked at, not only what had the name before; nobody waits for a writer."""
    weights = adapter / WEIGHTS_NAME

    def swap() -> None:
        weights.unlink()
        os.mkfifo(weights)

    before = open_files()
    watch.do_at_open(WEIGHTS_NAME, swap)
    with (
        pytest.raises(AdapterInvalidError, match="is not a regular file"),
        sealed_copy(adapter, None, ANY),
    ):
        pass
    assert {} == watch.due
    assert before == open_files()


def test_what_lies_beside_the_files_is_neither_opened_nor_shown(
    adapter: Path, watch: Watch
) -> None:
    """Pipes and devices would hold the loading thread for ever, pickles would run."""
    for name in ("adapter_model.bin", "adapter_model.pt"):
        (adapter / name).write_bytes(b"")
    watch.opened.clear()
    os.mkfifo(adapter / "adapter_model.fifo")
    (adapter / "adapter_model.zero").symlink_to("/dev/zero")
    (adapter / "adapter_gone").symlink_to("nowhere")
    with sealed_copy(adapter, None, ANY) as sealed:
        copy = sealed.folder
        assert {CONFIG_NAME, WEIGHTS_NAME} == {path.name for path in copy.iterdir()}
    beside = (".bin", ".pt", ".fifo", ".zero", "gone")
    assert [] == [path for path in watch.opened if path.endswith(beside)]


def bomb(marker: Path) -> bytes:
    """A pickle that leaves a folder behind where it is read: it calls os.mkdir."""
    return f"cos\nmkdir\n(V{marker}\ntR.".encode()


class FilesOnly:
    """Of vLLM's worker manager, what reads files: its own code, without a model around it."""

    def __init__(self) -> None:
        self._adapter_manager = self
        self.modules: dict[str, Any] = {}
        self.packed_modules = self.packed_modules_mapping = self.modules
        self.is_pooling_model = False
        self.model = self

    def named_modules(self, **_: bool) -> list[tuple[str, Any]]:
        """None."""
        return []

    def _load_adapter(self, request: Any) -> Any:
        from vllm.lora.lora_model import LoRAModel
        from vllm.lora.peft_helper import PEFTHelper

        helper = PEFTHelper.from_local_dir(request.lora_path, None)
        return LoRAModel.from_local_checkpoint(
            request.lora_path, {"q_proj"}, peft_helper=helper, lora_model_id=1, device="cpu"
        )

    def _create_merged_loras_inplace(self, lora_model: Any) -> None:
        self.names = sorted(lora_model.loras)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["alone", "beside", "swapped during the copy"])
def test_no_pickle_is_opened_on_any_path(
    adapter: Path, watch: Watch, tmp_path: Path, moment: str
) -> None:
    """Neither our code nor vLLM's opens a .bin or .pt, whenever it appears; nothing of it runs."""
    pytest.importorskip("vllm")
    from chameleon_lora.engine_vllm.worker.loader import VllmReader

    fingerprint = read_fingerprint(adapter)
    marker = tmp_path / "it ran"

    def plant() -> None:
        for name in ("adapter_model.bin", "adapter_model.pt"):
            (adapter / name).write_bytes(bomb(marker))
        if moment != "beside":
            (adapter / WEIGHTS_NAME).unlink()

    manager = FilesOnly()
    command = LoadAdapter(1, "a", str(adapter), False, fingerprint)
    if moment == "swapped during the copy":
        watch.do_at_copy(plant)
    else:
        plant()
    watch.opened.clear()
    with pytest.raises(AdapterError):  # sound weights end where no layer of the model is found
        VllmReader(manager, None, serves_partial=True).read_files(command)
    assert [] == watch.unpickled
    planted = {str(adapter / name) for name in ("adapter_model.bin", "adapter_model.pt")}
    written = planted if moment == "swapped during the copy" else set()
    assert written == {path for path in watch.opened if path.endswith((".bin", ".pt"))}
    assert not marker.exists()
    assert (moment != "alone") is hasattr(manager, "names")


def test_no_code_of_ours_unpickles() -> None:
    """No module of the package imports what runs code that a file brings."""
    source = Path(__file__).resolve().parents[3] / "src"
    forbidden = re.compile(r"^\s*(import|from) (pickle|shelve|marshal|dill|cloudpickle)\b", re.M)
    assert [] == [path for path in source.rglob("*.py") if forbidden.search(path.read_text())]


def test_the_bomb_is_real(tmp_path: Path, watch: Watch) -> None:
    """Unpickled, it leaves its mark and is noted: what the tests above look for can be seen."""
    pickle.loads(bomb(tmp_path / "it ran"))
    assert (tmp_path / "it ran").exists()
    assert watch.unpickled

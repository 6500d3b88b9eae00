"""What stands in place of an adapter's file and is none: pipes, devices, links to elsewhere."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.folder import AdapterFolder
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import inspect_adapter, require_servable
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.errors import AdapterInvalidError

DIMS = ModelDims(8, 8, 1, 1, 1, 8)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter named 'good'."""
    return make_adapter(tmp_path / "good", DIMS, 2, seed=1, target_modules=["q_proj"])


def the_problem(adapter: Path) -> str:
    """The one problem that inspection lists and for which the adapter is refused."""
    (problem,) = inspect_adapter(adapter).problems
    with pytest.raises(AdapterInvalidError, match="way out: "):
        require_servable(adapter)
    return problem


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_pipe_in_place_of_a_file_does_not_block(adapter: Path, name: str) -> None:
    """A named pipe nobody writes to is a problem at once, not a wait for ever."""
    (adapter / name).unlink()
    os.mkfifo(adapter / name)
    assert f"{name} is not a regular file" in the_problem(adapter)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("special", ["folder", "device", "device link", "socket"])
def test_what_is_no_file_is_not_opened(adapter: Path, name: str, special: str) -> None:
    """A folder, a device or a socket in place of a file is a problem at once."""
    (adapter / name).unlink()
    match special:
        case "folder":
            (adapter / name).mkdir()
        case "device":
            try:
                os.mknod(adapter / name, 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # zeros for ever
            except PermissionError:
                pytest.skip("making a device takes root")
        case "socket":
            os.mknod(adapter / name, 0o600 | stat.S_IFSOCK)
        case _:
            (adapter / name).symlink_to("/dev/zero")
    assert f"{name} is not a regular file" in the_problem(adapter)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("is_whole_folder", [False, True])
def test_a_link_out_of_the_root_is_not_followed(
    adapter: Path, name: str, is_whole_folder: bool
) -> None:
    """With a root, a file that really lies elsewhere is a problem; without one it is read."""
    root = adapter.parent / "root"
    root.mkdir()
    inside = root / "good"
    if is_whole_folder:
        inside.symlink_to(adapter)
    else:
        shutil.copytree(adapter, inside)
        (inside / name).unlink()
        (inside / name).symlink_to(adapter / name)
    assert () == inspect_adapter(inside).problems
    with pytest.raises(AdapterInvalidError, match=f"{name} leads out of the folder of adapters"):
        require_servable(inside, roots=[root])


def test_a_file_in_any_of_the_roots_is_read(adapter: Path, tmp_path: Path) -> None:
    """One is enough, for each of the files."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (adapter / WEIGHTS_NAME).rename(elsewhere / "1")
    (adapter / WEIGHTS_NAME).symlink_to(elsewhere / "1")
    root = adapter.parent.resolve() / adapter.name
    assert () == require_servable(adapter, roots=[root, elsewhere.resolve()]).problems
    with pytest.raises(AdapterInvalidError, match=r"or name .* in serving\.trusted_roots"):
        require_servable(adapter, roots=[root])


def test_a_link_within_the_root_is_followed(adapter: Path) -> None:
    """As a hub's cache has them: snapshots of links to files kept once."""
    root = adapter.parent.resolve()
    blobs = root / ".blobs"
    blobs.mkdir()
    (adapter / WEIGHTS_NAME).rename(blobs / "1")
    (adapter / WEIGHTS_NAME).symlink_to("../.blobs/1")
    assert () == require_servable(adapter, roots=[root]).problems


def test_a_trusted_root_in_a_circle_trusts_nothing(adapter: Path, tmp_path: Path) -> None:
    """A file elsewhere is refused as where there is no such root."""
    (adapter / WEIGHTS_NAME).rename(tmp_path / "1")
    (adapter / WEIGHTS_NAME).symlink_to("../1")
    (tmp_path / "circle").symlink_to("circle")
    roots = AdapterFolder(adapter, [str(tmp_path / "circle")]).real_roots
    with pytest.raises(AdapterInvalidError, match=r"serving\.trusted_roots"):
        require_servable(adapter, roots=roots)


def test_a_link_in_a_circle_cannot_be_opened(adapter: Path) -> None:
    """A file that links to itself is a problem, not an exception."""
    (adapter / WEIGHTS_NAME).unlink()
    (adapter / WEIGHTS_NAME).symlink_to(WEIGHTS_NAME)
    assert "cannot be opened" in the_problem(adapter)

"""A folder of adapters: what is served, what is not, and that no name leads out."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.folder import AdapterFolder, leads_on
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.watching import FolderWatch
from chameleon_lora.errors import AdapterNotFoundError


def write(folder: Path, *files: str) -> Path:
    """A folder with these files in it."""
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text("{}")
    return folder


def scan(folder: AdapterFolder) -> dict[str, str | None]:
    """The stamps that a first look finds."""
    watch = FolderWatch(folder, 0.0)
    for name in watch.due(0.0):
        watch.look_at(name)
    return watch.look().stamps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with adapters b and a, and one adapter beside the root."""
    write(tmp_path / "outside", CONFIG_NAME, WEIGHTS_NAME)
    write(tmp_path / "root" / "b", CONFIG_NAME, WEIGHTS_NAME)
    write(tmp_path / "root" / "a", CONFIG_NAME, WEIGHTS_NAME)
    return tmp_path / "root"


def test_names_are_the_sub_folders_with_a_configuration(root: Path) -> None:
    """Sorted; hidden folders, files and folders without a configuration are not adapters."""
    write(root / ".making-x", CONFIG_NAME, WEIGHTS_NAME)
    write(root / "empty")
    write(root / "line\nend", CONFIG_NAME)
    (root / "file").write_text("x")
    (root / CONFIG_NAME).write_text("{}")
    assert ("a", "b") == AdapterFolder(root).names()


def test_an_adapter_has_the_path_of_its_name(root: Path) -> None:
    """The answer is the folder below the root."""
    assert root / "a" == AdapterFolder(root).try_path("a")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../outside",
        "a/../../outside",
        "a/",
        "/a",
        "a\\b",
        "a\0",
        "a\n",
        ".a",
        "~",
        "x" * 256,
        "é" * 128,
        "\ud800",
        "missing",
        "x" * 10_000,
        "a\r\nINFO: all is well",
        "a\x1b[2J",
        "a\u200b",
        "\u202ea",
        "\N{CYRILLIC SMALL LETTER A}",
        "\N{FULLWIDTH LATIN SMALL LETTER A}",
        "%61",
        "..%2foutside",
        "*",
        "a:b",
        "A",
    ],
)
def test_a_name_that_is_not_allowed_has_no_path(root: Path, name: str) -> None:
    """Separators, dots, control signs, broken Unicode and overlong names are answered None."""
    for odd in ("a\\b", "a\n", ".a", "~"):
        write(root / odd, *([] if odd == "~" else [CONFIG_NAME]))
    assert AdapterFolder(root).try_path(name) is None


def test_names_that_look_alike_are_different_adapters(root: Path) -> None:
    """Composed and decomposed letters, and Cyrillic ones, each have the folder of just that name."""
    composed, decomposed = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")
    assert composed != decomposed
    write(root / decomposed, CONFIG_NAME, WEIGHTS_NAME)
    folder = AdapterFolder(root)
    assert (None, root / decomposed) == (folder.try_path(composed), folder.try_path(decomposed))
    write(root / composed, CONFIG_NAME, WEIGHTS_NAME)
    assert root / composed == folder.try_path(composed)
    assert {"a", "b", composed, decomposed} == scan(folder).keys()


@pytest.mark.parametrize(
    "name", ["a:b", "*", "%61", "it's", 'a"b', "a b", "<a>", "$(a)", "-r", "é"]
)
def test_signs_that_mean_something_elsewhere_are_plain_in_names(root: Path, name: str) -> None:
    """What a shell, a page or a URL would read differently names the folder of just that name."""
    path = write(root / name, CONFIG_NAME, WEIGHTS_NAME)
    assert path == AdapterFolder(root).try_path(name)
    assert name in scan(AdapterFolder(root))


def test_one_stamp_is_that_of_a_scan(root: Path) -> None:
    """Asked for one name, the answer is the scan's, and None for what a scan leaves out."""
    write(root / "half", CONFIG_NAME)
    folder = AdapterFolder(root)
    names = ["a", "b", "half", "none", "../outside"]
    assert [scan(folder).get(name) for name in names] == [folder.try_stamp(n) for n in names]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", False),
        ("org/a.v1", False),
        ("..", True),
        ("../a", True),
        ("a/../b", True),
        ("/a", True),
        ("a//b", True),
        ("a\\..\\b", True),
        ("a/.hidden", True),
        ("", True),
    ],
)
def test_what_leads_on_is_told_from_a_plain_path(name: str, expected: bool) -> None:
    """A name of plain parts stays below the folder it is put behind."""
    assert expected is leads_on(name)


def test_an_absolute_name_has_no_path(root: Path) -> None:
    """The full path of a real adapter is no name."""
    assert AdapterFolder(root).try_path(str(root / "a")) is None


def test_a_link_inside_the_root_is_an_adapter(root: Path) -> None:
    """A second name for an adapter is served like the first."""
    (root / "alias").symlink_to("a")
    assert root / "alias" == AdapterFolder(root).try_path("alias")


@pytest.mark.parametrize("target", ["../outside", "..", ".", "loop", "nowhere"])
def test_a_link_out_of_the_root_has_no_path(root: Path, target: str) -> None:
    """Links to outside, to the root itself, in a circle or to nothing are answered None."""
    (root / CONFIG_NAME).write_text("{}")
    (root.parent / CONFIG_NAME).write_text("{}")
    (root / "loop").symlink_to(target)
    assert AdapterFolder(root).try_path("loop") is None
    assert ("a", "b") == AdapterFolder(root).names()


@pytest.mark.parametrize("trusted", ["runs", "runs/7", "way"])
def test_a_link_into_a_trusted_root_is_an_adapter(root: Path, trusted: str) -> None:
    """Below it or it itself, also where the trusted root is named by a link; no other link is."""
    run = write(root.parent / "runs" / "7", CONFIG_NAME)
    write(root.parent / "runs-of-others" / "7", CONFIG_NAME)
    (root.parent / "way").symlink_to("runs")
    (root / "prod").symlink_to(run)
    (root / "other").symlink_to("../runs-of-others/7")
    (root / "up").symlink_to("..")
    folder = AdapterFolder(root, [str(root.parent / trusted)])
    assert ("a", "b", "prod") == folder.names()
    assert ("a", "b") == AdapterFolder(root).names()


def test_a_root_that_is_a_link_is_followed(root: Path) -> None:
    """The operator's own link to the root is not an escape."""
    link = root.parent / "link"
    link.symlink_to(root)
    (root / "alias").symlink_to("a")
    assert ("a", "alias", "b") == AdapterFolder(link).names()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text() | st.lists(st.sampled_from(["a", "..", "/", "\\", ".", "\0", "é"])).map("".join)
)
def test_no_name_raises_or_leads_out(tmp_path: Path, name: str) -> None:
    """Whatever the name, the answer is None or a folder whose real place is inside the root."""
    root = tmp_path / "root"
    if not root.exists():
        write(tmp_path / "outside", CONFIG_NAME)
        write(root / "a", CONFIG_NAME)
        (root / "é").symlink_to("../outside")
    path = AdapterFolder(root).try_path(name)
    assert path is None or root.resolve() in path.resolve().parents
    assert name == "a" or path is None


def test_a_root_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    """A root that went away is told apart from one that is empty."""
    with pytest.raises(AdapterNotFoundError, match="cannot be listed"):
        scan(AdapterFolder(tmp_path / "gone"))
    assert {} == scan(AdapterFolder(tmp_path))


def test_a_scan_skips_half_written_folders(root: Path) -> None:
    """A folder counts once both files are there, as files."""
    write(root / "half", CONFIG_NAME)
    write(root / "odd", CONFIG_NAME)
    (root / "odd" / WEIGHTS_NAME).mkdir()
    assert {"a", "b"} == scan(AdapterFolder(root)).keys()
    (root / "half" / WEIGHTS_NAME).write_text("")
    assert {"a", "b", "half"} == scan(AdapterFolder(root)).keys()


def test_a_scan_repeats_itself_while_nothing_changes(root: Path) -> None:
    """The same files give the same answer."""
    folder = AdapterFolder(root)
    assert scan(folder) == scan(folder)


@pytest.mark.parametrize("file", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("change", ["grown", "touched", "replaced"])
def test_a_scan_sees_a_changed_file(root: Path, file: str, change: str) -> None:
    """Size, time and inode of either file each change that adapter's stamp and no other."""
    folder, path = AdapterFolder(root), root / "a" / file
    before, status = scan(folder), path.stat()
    match change:
        case "grown":
            path.write_text("{} ")
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "touched":
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        case _:
            shutil.copy2(path, root / "copy")
            (root / "copy").replace(path)
    after = scan(folder)
    assert before["a"] != after["a"]
    assert before["b"] == after["b"]


def test_a_scan_forgets_a_removed_adapter(root: Path) -> None:
    """A folder that is gone is gone from the answer."""
    shutil.rmtree(root / "a")
    assert {"b"} == scan(AdapterFolder(root)).keys()

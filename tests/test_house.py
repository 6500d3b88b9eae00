"""The rules of CONTRIBUTING.md that no linter holds."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import chameleon_lora
from chameleon_lora import errors

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "chameleon_lora"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON_FILES = sorted(
    [
        *SOURCES,
        *ROOT.glob("tests/**/*.py"),
        *ROOT.glob("scripts/**/*.py"),
        *ROOT.glob("faults/**/*.py"),
        *ROOT.glob("experiments/**/*.py"),
    ]
)
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ELSEWHERE = frozenset(  # not ours, or to be filled in
    {"docs/decisions/NNNN-title.md", "vllm/entrypoints/openai/responses/utils.py", "DIR/report.md"}
)
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))

POLICY_FILE_LINES = 300
FILE_LINES = 400
FUNCTION_LINES = 60
PUBLIC_NAMES = 12
BANNED_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})
IMPORTED_LATE = frozenset({"vllm"})
# A process has its HTTP servers, and no object of vLLM's that both they and the engine's end know.
PROCESS_STATE = frozenset({"src/chameleon_lora/engine_vllm/api/shutdown.py _servers"})
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
CHANGING = re.compile(
    "add|append(left)?|clear|discard|extend(left)?|insert|pop(item|left)?|remove|reverse|setdefault|"
    "sort|update"
)

ADR_HEADINGS = ("Context", "Decision", "Consequences", "What would change our mind")
ADR_STATUS = re.compile(
    r"^Status: (proposed|accepted|rejected|superseded by \d{4}), \d{4}-\d\d-\d\d$"
)
BARE_IGNORE = re.compile(r"#\s*type:\s*ignore(?!\[[a-z-]+(,\s*[a-z-]+)*\])")
FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAKE_CALL = re.compile(r"^\s*(?:\$ )?make +([a-z][\w-]*)", re.MULTILINE)
MAKE_TARGET = re.compile(r"^([a-z][\w-]*):(?!=)", re.MULTILINE)
METHOD = re.compile(r"`([A-Z]\w+)\.(\w+)`")
DRAWN = re.compile(r"^([│├└─ ]*)(\w+Error)\b", re.MULTILINE)
LINKED = re.compile(r"\[`([A-Z]\w+)\.(\w+)`\]\(([\w./]+)\)")
PROCESS_WIDE = re.compile(  # what outlives a call and has no owner but the process
    r"^@functools\.(lru_)?cache|ContextVar\(|os\.environ\[[^]]+\] =|\(os\.environ\)|\bsignal\.signal\b|setrlimit\(|set_inheritable\(|setswitchinterval\(|setLogRecordFactory\(|"
    r"torch\.(manual_seed|set_num_threads)\(|\b(gc|warnings|locale)\.(freeze|disable|simplefilter|setlocale)\(",
    re.MULTILINE,
)
EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED_FILE = re.compile(r"`([\w.-]+(?:/[\w.-]+)+\.(?:py|md|toml|sh|c))(?:::[\w:]+)?`")


def shown(path: Path) -> str:
    """How a failure names a file: from the repository's root."""
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, which nobody changes."""
    return ast.parse(path.read_text(encoding="utf-8"), shown(path))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Each function and method of a file, inner ones included."""
    return (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def imported_inside(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """The top package of each import in a function's body."""
    for node in ast.walk(function):
        match node:
            case ast.Import(names=names):
                yield from (alias.name.partition(".")[0] for alias in names)
            case ast.ImportFrom(module=str(module)):
                yield module.partition(".")[0]
            case _:
                pass


def test_files_are_short() -> None:
    """No policy file is over 300 lines and no other Python file over 400."""
    too_long = [
        f"{shown(path)}: {lines} lines, limit {limit}"
        for path in PYTHON_FILES
        for limit in (POLICY_FILE_LINES if PACKAGE / "policy" in path.parents else FILE_LINES,)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > limit
    ]
    assert [] == too_long


def names_set(tree: ast.AST) -> set[str]:
    """The names that an assignment, a loop, a `with` or a walrus gives a value below a node."""
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def names_changed(function: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of what a function writes into, by item, attribute or a method such as `append`."""
    for node in ast.walk(function):
        match node:
            case ast.Subscript(value=found) | ast.Attribute(value=found) if not isinstance(
                node.ctx, ast.Load
            ):
                pass
            case ast.Call(func=ast.Attribute(value=found, attr=method)) if CHANGING.fullmatch(
                method
            ):
                pass
            case _:
                continue
        while isinstance(found, ast.Subscript | ast.Attribute):
            found = found.value
        if isinstance(found, ast.Name):
            yield node.lineno, found.id


def writes_of_module(path: Path) -> Iterator[str]:
    """Where a function of the file says `global`, or writes into a name that its module gave a value."""
    tree = parsed(path)
    own: set[str] = set()
    for node in tree.body:
        own |= {node.name} if isinstance(node, SCOPES) else names_set(node)
    for scope in ast.walk(tree):
        if isinstance(scope, ast.Global):
            yield f"{shown(path)}:{scope.lineno} global {', '.join(scope.names)}"
        if not isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        arguments = {node.arg for node in ast.walk(scope.args) if isinstance(node, ast.arg)}
        local = arguments | names_set(scope)
        for line, name in names_changed(scope):
            if name in own - local:
                yield f"{shown(path)}:{line} {name}"


def test_functions_are_short() -> None:
    """No function, decorators included, is over 60 lines."""
    too_long = [
        f"{shown(path)}:{function.lineno} {function.name}: {lines} lines"
        for path in PYTHON_FILES
        for function in functions(parsed(path))
        for first in (min(node.lineno for node in [*function.decorator_list, function]),)
        if (lines := (function.end_lineno or first) - first + 1) > FUNCTION_LINES
    ]
    assert [] == too_long


def test_no_file_is_named_for_nothing() -> None:
    """No file or folder of the package is called utils, helpers, common or misc."""
    nameless = [shown(path) for path in PACKAGE.rglob("*") if path.stem.lower() in BANNED_NAMES]
    assert [] == nameless


def test_imports_are_absolute() -> None:
    """No import begins with a dot."""
    relative = [
        f"{shown(path)}:{node.lineno}"
        for path in PYTHON_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert [] == relative


def test_only_vllm_is_imported_inside_functions() -> None:
    """In the package an import stands at the top of its file, unless engine_vllm imports vLLM."""
    late = [
        f"{shown(path)}:{function.lineno} {name}"
        for path in SOURCES
        for function in functions(parsed(path))
        for name in imported_inside(function)
        if name not in IMPORTED_LATE or PACKAGE / "engine_vllm" not in path.parents
    ]
    assert [] == late


def test_the_public_door_is_narrow_and_complete() -> None:
    """`__all__` holds at most 12 names, sorted, and they are all the public names there are."""
    submodules = {path.stem for path in PACKAGE.iterdir()}
    public = {name for name in vars(chameleon_lora) if not name.startswith("_")} - submodules
    declared = chameleon_lora.__all__
    assert sorted(declared) == declared
    assert public | {"__version__"} == set(declared)
    assert len(declared) <= PUBLIC_NAMES


def test_no_module_has_state() -> None:
    """No module of the package writes into a name of its own once it is imported, but one."""
    writes = [write for path in SOURCES for write in writes_of_module(path)]
    assert PROCESS_STATE == {re.sub(r":\d+", "", write) for write in writes}


def patched(path: Path) -> Iterator[str]:
    """Where a test puts something in the place of what it imports from the package, or names by its path."""
    tree = parsed(path)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith(PACKAGE.name)]
    names = {alias.asname or alias.name for node in ours for alias in node.names}
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="setattr" | "delattr" | "setitem"), args=[to, *_]
            ):
                parts = (
                    [] if isinstance(to, ast.Call) else ast.walk(to)
                )  # what a call finds is vLLM's
                of_ours = any(isinstance(part, ast.Name) and part.id in names for part in parts)
                if of_ours or PACKAGE.name in ast.unparse(to):
                    yield f"{shown(path)}:{node.lineno}"
            case _:
                pass


def test_our_own_code_is_never_patched() -> None:
    """What goes wrong in a test goes wrong in the system, in vLLM, or in a class written out for it."""
    tests = [path for path in PYTHON_FILES if ROOT / "tests" in path.parents]
    assert [] == [place for path in tests for place in patched(path)]


def test_each_ignore_names_its_code() -> None:
    """No type error is silenced without naming it."""
    bare = [
        f"{shown(path)}:{number}"
        for path in PYTHON_FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if BARE_IGNORE.search(line) and path != Path(__file__)
    ]
    assert [] == bare


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_four_parts_and_a_status(path: Path) -> None:
    """Each ADR is numbered, says whether and since when it holds, and answers the four questions."""
    lines = path.read_text(encoding="utf-8").splitlines()
    headings = tuple(line.removeprefix("## ") for line in lines if line.startswith("## "))
    assert re.match(r"\d{4}-[a-z0-9-]+$", path.stem)
    assert headings == ADR_HEADINGS
    assert [line for line in lines if ADR_STATUS.match(line)]


def test_decisions_are_numbered_without_gap() -> None:
    """ADR numbers run 1, 2, 3, so that a reference to one is never ambiguous."""
    numbers = [int(path.stem[:4]) for path in DECISIONS]
    assert list(range(1, len(numbers) + 1)) == numbers


def test_make_commands_of_the_readme_exist() -> None:
    """Each `make X` in a block of README.md is a target of the Makefile."""
    blocks = FENCED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    called = {target for block in blocks for target in MAKE_CALL.findall(block)}
    targets = set(MAKE_TARGET.findall((ROOT / "Makefile").read_text(encoding="utf-8")))
    assert set() == called - targets


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_name_files_that_exist(path: Path) -> None:
    """What a page names in backticks as a file, from the root or the package, is there."""
    named = NAMED_FILE.findall(path.read_text(encoding="utf-8"))
    missing = [
        name
        for name in named
        if not any((base / name).is_file() for base in (ROOT, PACKAGE)) and name not in ELSEWHERE
    ]
    assert [] == missing


def test_the_architecture_names_methods_that_exist() -> None:
    """Each `Class.method` of ours in backticks is defined where the class is."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    classes = {
        node.name: {method.name for method in functions(ast.Module(node.body, []))}
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
    }
    named = METHOD.findall(page)
    assert ("AdmissionStep", "_try") in named
    assert [] == [f"{c}.{m}" for c, m in named if c in classes and m not in classes[c]]


def test_the_line_that_admits_is_one_file_from_the_readme() -> None:
    """README.md links a method's name to the file that defines it."""
    linked = LINKED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [("AdmissionStep", "_try")] == [(name, method) for name, method, _ in linked]
    for name, method, file in linked:
        defined = {
            (node.name, inner.name)
            for node in ast.walk(parsed(ROOT / file))
            if isinstance(node, ast.ClassDef)
            for inner in functions(ast.Module(node.body, []))
        }
        assert (name, method) in defined


def test_the_architecture_names_each_file_with_process_wide_state() -> None:
    """Caches, context variables, the environment, signals and limits are in its list, and nowhere else."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    listed = page.partition("Process-wide, and nothing else")[2].partition("Ids are counted")[0]
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in SOURCES
        if PROCESS_WIDE.search(path.read_text(encoding="utf-8"))
    }
    assert set() == {name for name in found if f"`{name}`" not in listed}
    assert found | {
        name.split()[0].removeprefix("src/chameleon_lora/") for name in PROCESS_STATE
    } == {name for name in NAMED_FILE.findall(listed) if not name.startswith("tests/")}


def test_the_architectures_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints what stands behind each `print`, before the colon."""
    (block,) = EXAMPLE.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    exec(block, {})
    said = [line.partition("  # ")[2] for line in block.splitlines() if line.startswith("print(")]
    printed = capsys.readouterr().out.splitlines()
    assert printed == [text.partition(": ")[0] for text in said]


def test_no_class_name_is_defined_twice() -> None:
    """In the package, its tests and faults a class is found by its name alone; classes of tests are not looked for."""
    places: dict[str, list[str]] = {}
    for path in (path for path in PYTHON_FILES if ROOT / "experiments" not in path.parents):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith(("_", "Test")):
                places.setdefault(node.name, []).append(shown(path))
    assert {} == {name: found for name, found in places.items() if len(found) > 1}


def test_each_error_is_drawn_below_its_base() -> None:
    """In the tree at the top of errors.py, wherever it is defined."""
    drawn: dict[str, str] = {}
    above: list[str] = []
    for branch, name in DRAWN.findall(errors.__doc__ or ""):
        depth = len(branch) // 4
        above[depth:] = [name]
        drawn |= {name: above[depth - 1]} if depth else {}
    derived = {
        node.name: base.id
        for path in SOURCES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in {*above[:1], *drawn}
    }
    assert derived == drawn


def test_docstrings_begin_with_a_sentence() -> None:
    """No docstring begins with the head of a section."""
    heads = ("Attributes:", "Raises:", "Args:", "Returns:")
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    headless = [
        f"{shown(path)}:{node.lineno} {node.name}"
        for path in PYTHON_FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, kinds) and (ast.get_docstring(node) or "").startswith(heads)
    ]
    assert [] == headless

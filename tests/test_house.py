"""The rules of the house, each as a checker that is shown to be able to fail and then run over all sources.

A finding is repaired by splitting by reason to change, never by line count. What truly must differ is
named in EXCEPTIONS with its reason; the list may not grow past its stated length, and an entry that no longer
excuses anything has to go.
"""

import ast
import json
import re
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "serrate"

# (rule, place) → reason
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("parameter_count", "interop/attention.py:flash_attn_varlen_func"):
        "the published signature, every argument of which may be passed by place",
}
MOST_EXCEPTIONS = 1


@dataclass(frozen=True)
class Finding:
    """A rule broken at a place; places carry no line numbers, so that an exception outlives an edit."""

    rule: str
    place: str
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}"


class Source:
    """One source file of the package, `path` relative to it."""

    def __init__(self, path: str, text: str):
        self.path = PurePosixPath(path)
        self.text = text
        self.tree = ast.parse(text)

    @property
    def is_kernel_file(self) -> bool:
        return any(part in ("triton", "gluon") for part in self.path.with_suffix("").parts)

    @property
    def is_contract(self) -> bool:
        return self.path.match("ops/*/api.py")

    def functions(self) -> Iterator["Function"]:
        """Yield every function, methods and nested ones too."""
        yield from _functions(self.tree, self, None, "")


@dataclass(frozen=True)
class Function:
    source: Source
    name: str  # qualified
    node: ast.FunctionDef | ast.AsyncFunctionDef
    owner: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | None

    @property
    def place(self) -> str:
        return f"{self.source.path}:{self.name}"

    @property
    def is_public(self) -> bool:
        return not any(part.startswith("_") for part in self.name.split(".")) and (
            self.owner is None or isinstance(self.owner, ast.ClassDef)
        )

    @property
    def is_device_kernel(self) -> bool:
        decorators = [ast.unparse(decorator).partition("(")[0] for decorator in self.node.decorator_list]
        return self.source.is_kernel_file and any(name.split(".")[-1] == "jit" for name in decorators)

    @property
    def lines(self) -> int:
        return (self.node.end_lineno or 0) - self.node.lineno + 1

    @property
    def parameters(self) -> list[ast.arg]:
        """All parameters but `self` or `cls`."""
        arguments = self.node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        static = any(ast.unparse(decorator) == "staticmethod" for decorator in self.node.decorator_list)
        if isinstance(self.owner, ast.ClassDef) and not static:
            positional = positional[1:]
        starred = [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
        return [*positional, *arguments.kwonlyargs, *starred]

    @property
    def docstring(self) -> str:
        """Its own docstring and that of its class."""
        own = ast.get_docstring(self.node) or ""
        return own + "\n" + ((ast.get_docstring(self.owner) or "") if self.owner else "")


def _functions(node: ast.AST, source: Source, owner, prefix: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(source, prefix + child.name, child, owner)
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _functions(child, source, child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, source, owner, prefix)


# --- one checker a rule ---


def file_length(source: Source) -> Iterator[Finding]:
    """Files: at most 600 lines; kernel files 800."""
    lines, most = len(source.text.splitlines()), 800 if source.is_kernel_file else 600
    if lines > most:
        yield Finding("file_length", str(source.path), f"{lines} lines, at most {most}")


def function_length(source: Source) -> Iterator[Finding]:
    """Functions: at most 80 lines; device kernels 180."""
    for function in source.functions():
        most = 180 if function.is_device_kernel else 80
        if function.lines > most:
            yield Finding("function_length", function.place, f"{function.lines} lines, at most {most}")


def parameter_count(source: Source) -> Iterator[Finding]:
    """Parameters: at most 8; 12 in a contract (`ops/*/api.py`); 28 of a device kernel."""
    for function in source.functions():
        most = 28 if function.is_device_kernel else 12 if source.is_contract else 8
        if len(function.parameters) > most:
            detail = f"{len(function.parameters)} parameters, at most {most}"
            yield Finding("parameter_count", function.place, detail)


def optional_by_keyword(source: Source) -> Iterator[Finding]:
    """In a contract, what is optional is passed by keyword."""
    for function in source.functions():
        if source.is_contract and function.node.args.defaults:
            yield Finding("optional_by_keyword", function.place, "optional parameters must be keyword-only")


def documented(source: Source) -> Iterator[Finding]:
    """Every module, public class, function and method says what it is for."""
    if not ast.get_docstring(source.tree):
        yield Finding("documented", str(source.path), "no docstring")
    for function in source.functions():
        told = ast.get_docstring(function.node) or _repeats_another(function.node)
        if function.is_public and not told:
            yield Finding("documented", function.place, "no docstring")
    for name, node in _public_classes(source.tree):
        if not ast.get_docstring(node):
            yield Finding("documented", f"{source.path}:{name}", "no docstring")


def _repeats_another(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(name.split(".")[-1] in ("overload", "setter", "deleter", "override") for name in decorators)


def _public_classes(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    for child in getattr(node, "body", []):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield prefix + child.name, child
            yield from _public_classes(child, f"{prefix}{child.name}.")


TENSOR = re.compile(r"\b(Jagged)?Tensor\b")
SHAPE = re.compile(r"\((?=[^()]*(\b[A-Z]\b|\*|\.\.\.))[^()]*,[^()]*\)")  # (B,)  (T, H, D)  (B + 1,)  (T, *)
DTYPE = re.compile(r"\b(dtypes?|(b?float|u?int)\d+|bool)\b")


def shapes_told(source: Source) -> Iterator[Finding]:
    """Where `ops` contracts and `nn` meet tensors, docstrings give shapes; in contracts dtypes too."""
    if not (source.is_contract or source.path.parts[0] == "nn"):
        return
    takers = [
        (function.place, function.docstring)
        for function in source.functions()
        if function.is_public and not _repeats_another(function.node) and _names_tensors([function.node])
    ]
    holders = [
        (f"{source.path}:{name}", ast.get_docstring(node) or "")
        for name, node in _public_classes(source.tree)
        if _names_tensors([part for part in node.body if isinstance(part, ast.AnnAssign)])
    ]
    for place, text in [*takers, *holders]:
        if not SHAPE.search(text):
            yield Finding("shapes_told", place, "tensors, but no shape such as (T, H, D) in the docstring")
        elif source.is_contract and not DTYPE.search(text):
            yield Finding("shapes_told", place, "tensors, but no dtype in the docstring")


def _names_tensors(nodes: list[ast.AST]) -> bool:
    """Whether a function's parameters and result, or a field, are annotated as tensors."""
    said: list[ast.AST | None] = []
    for node in nodes:
        said += [node.annotation] if isinstance(node, ast.AnnAssign) else [node.args, node.returns]
    return any(TENSOR.search(ast.unparse(part)) for part in said if part)


def prints(source: Source) -> Iterator[Finding]:
    """Only the command line prints."""
    if source.path.with_suffix("").parts[0] == "cli":
        return
    for function, node in _within(source):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield Finding("prints", function, "print() outside cli")


def broad_except(source: Source) -> Iterator[Finding]:
    """Errors are caught by name: no bare `except`, no `except Exception`."""
    for place, node in _within(source):
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            names = {ast.unparse(one).split(".")[-1] if one else "everything" for one in caught}
            for name in names & {"everything", "Exception", "BaseException"}:
                yield Finding("broad_except", place, f"catches {name}")


def global_state(source: Source) -> Iterator[Finding]:
    """No function changes a module's variables."""
    for place, node in _within(source):
        if isinstance(node, ast.Global):
            yield Finding("global_state", place, f"global {', '.join(node.names)}")


def unfinished(source: Source) -> Iterator[Finding]:
    """What is left to do is an issue, and the comment links to it."""
    for line in source.text.splitlines():
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line) and not re.search(r"https?://", line):
            yield Finding("unfinished", str(source.path), line.strip())


PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {"torch.save", "torch.load", "torch.distributed.checkpoint"}


def pickles(source: Source) -> Iterator[Finding]:
    """No pickle in files: whoever opens a file must not run its code."""
    for place, node in _within(source):
        used: set[str] = set()
        if isinstance(node, ast.Import):
            used = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            used = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute):
            used = {ast.unparse(node), "pickle" if node.attr in ("to_pickle", "read_pickle") else ""}
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            used = {"pickle"} if ast.unparse(node.value) != "False" else set()
        for name in used:
            if name.split(".")[0] in PICKLERS or name in PICKLING_CALLS:
                yield Finding("pickles", place, f"uses {name}")


def _within(source: Source) -> Iterator[tuple[str, ast.AST]]:
    """Yield every node with the place of the innermost function around it."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, ast.AST]]:
        for child in ast.iter_child_nodes(node):
            inner = name
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}.{child.name}" if name else child.name
            yield (f"{source.path}:{inner}" if inner else str(source.path)), child
            yield from walk(child, inner)

    return walk(source.tree, "")


SOURCE_RULES: dict[str, Callable[[Source], Iterator[Finding]]] = {
    rule.__name__: rule
    for rule in (
        file_length, function_length, parameter_count, optional_by_keyword, documented, shapes_told, prints,
        broad_except, global_state, unfinished, pickles,
    )
}  # fmt: skip


def rooms_complete(package: Path) -> Iterator[Finding]:
    """Every operation and every model is furnished alike."""
    for folder in _folders(package / "ops"):
        wanted = ["api.py", "reference.py", "cases.py", "README.md"]
        on_gpu = any((folder / name).exists() for name in ("triton.py", "gluon.py", "triton", "gluon"))
        yield from _missing(folder, package, wanted + ["bench.py"] * on_gpu)
    for folder in _folders(package / "models"):
        yield from _missing(folder, package, ["model.py", "config.py", "README.md"])


def _folders(folder: Path) -> list[Path]:
    return sorted(inner.parent for inner in folder.glob("*/__init__.py"))


def _missing(folder: Path, package: Path, wanted: list[str]) -> Iterator[Finding]:
    for name in wanted:
        if not (folder / name).exists():
            yield Finding("rooms_complete", folder.relative_to(package).as_posix(), f"has no {name}")


def rooms_tested(package: Path) -> Iterator[Finding]:
    """`tests/` mirrors the package: a file for each module of the top, one at least for each room."""
    tests = package.parent.parent / "tests"
    for module in sorted(package.glob("*.py")):
        name = f"test_{module.stem}.py"
        if _holds_code(module) and module.stem != "__init__" and not (tests / name).exists():
            yield Finding("rooms_tested", module.name, f"no tests/{name}")
    for folder in sorted({path.parent for path in package.rglob("*.py")} - {package}):
        room = folder.relative_to(package)
        tested = [*tests.glob(f"{room}/test_*.py"), *tests.glob(f"{room.parent}/test_{room.name}.py")]
        if any(map(_holds_code, folder.glob("*.py"))) and not tested:
            yield Finding("rooms_tested", room.as_posix(), f"no tests/{room.as_posix()}/test_*.py")
    for folder in sorted({path.parent for path in tests.rglob("test_*.py")} - {tests}):
        if not (package / folder.relative_to(tests)).is_dir():
            yield Finding("rooms_tested", f"tests/{folder.relative_to(tests).as_posix()}", "mirrors no room")


def _holds_code(module: Path) -> bool:
    nodes = ast.walk(ast.parse(module.read_text(encoding="utf-8")))
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in nodes)


TREE_RULES = {rule.__name__: rule for rule in (rooms_complete, rooms_tested)}


# --- the house as it stands ---


@pytest.fixture(scope="module")
def findings() -> list[Finding]:
    """Everything that any rule finds in the package as it stands."""
    sources = [
        Source(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]
    found = [finding for source in sources for check in SOURCE_RULES.values() for finding in check(source)]
    return found + [finding for check in TREE_RULES.values() for finding in check(PACKAGE)]


@pytest.mark.parametrize("rule", [*SOURCE_RULES, *TREE_RULES])
def test_the_house_keeps_its_rule(rule, findings):
    broken = [str(f) for f in findings if f.rule == rule and (f.rule, f.place) not in EXCEPTIONS]
    told = {**SOURCE_RULES, **TREE_RULES}[rule].__doc__
    assert not broken, f"{told}\n  " + "\n  ".join(broken)


def test_exceptions_are_few_have_reasons_and_are_still_needed(findings):
    assert len(EXCEPTIONS) <= MOST_EXCEPTIONS
    assert all(reason.strip() for reason in EXCEPTIONS.values())
    stale = set(EXCEPTIONS) - {(finding.rule, finding.place) for finding in findings}
    assert not stale, f"these excuse nothing any more: {sorted(stale)}"


# --- each rule can fail ---

LONG = "def f():\n" + "    x = 1\n" * 85
KERNEL = f"@triton.jit\ndef kernel({', '.join(f'p{i}' for i in range(28))}):\n" + "    x = 1\n" * 150
API = "ops/attention/api.py"
SHAPED = '    """Attend: q (T, H, D), any floating dtype."""\n'

BROKEN: list[tuple[str, str, str]] = [
    ("file_length", "data/a.py", "x = 1\n" * 601),
    ("file_length", "ops/attention/triton.py", "x = 1\n" * 801),
    ("function_length", "data/a.py", LONG),
    ("function_length", "data/a.py", "class A:\n" + textwrap.indent(LONG, "    ")),
    ("function_length", "data/a.py", KERNEL),  # a kernel's limits hold in kernel files only
    ("function_length", "ops/attention/triton.py", KERNEL + "    x = 1\n" * 40),
    ("function_length", "ops/attention/triton.py", LONG),  # not a device kernel: no jit
    ("parameter_count", "data/a.py", "def f(a, b, c, d, /, e, f, *, g, h, i): ..."),
    ("parameter_count", "data/a.py", "def f(a, b, c, d, e, f, g, *h, **i): ..."),
    ("parameter_count", "data/a.py", "class A:\n    def f(self, a, b, c, d, e, f, g, h, i): ..."),
    ("parameter_count", "data/a.py", "class A:\n  @staticmethod\n  def f(a, b, c, d, e, f, g, h, i): ..."),
    ("parameter_count", API, "def f(a, b, c, d, e, f, g, h, i, j, k, l, m): ..."),
    ("parameter_count", "ops/a/triton/forward.py", KERNEL.replace("p0,", "p0, p,")),
    ("optional_by_keyword", API, "def attention(q, k, scale=None): ..."),
    ("documented", "data/a.py", "x = 1"),
    ("documented", "data/a.py", '"""Doc."""\ndef f(): ...'),
    ("documented", "data/a.py", '"""Doc."""\nclass A:\n    x = 1'),
    ("documented", "data/a.py", '"""Doc."""\nclass A:\n    """Doc."""\n    def f(self): ...'),
    ("documented", "data/a.py", '"""Doc."""\nclass A:\n    """Doc."""\n    class B: ...'),
    ("shapes_told", API, 'def f(q: Tensor):\n    """Attend (to this, at once), in float32."""'),
    ("shapes_told", API, 'def f(q: Tensor):\n    """Attend: q (T, H, D)."""'),
    ("shapes_told", API, 'class A:\n    """Holds q, float32."""\n    q: Tensor'),
    ("shapes_told", "nn/loss.py", 'def f(events: "JaggedTensor"):\n    """Loss of the events."""'),
    ("shapes_told", "nn/loss.py", 'class A:\n  """A."""\n  def forward(self, x) -> Tensor:\n    """Do."""'),
    ("prints", "data/a.py", "def f():\n    print(1)"),
    ("prints", "ops/attention/bench.py", "print(1)"),
    ("broad_except", "data/a.py", "try: ...\nexcept: ..."),
    ("broad_except", "data/a.py", "try: ...\nexcept Exception: ..."),
    ("broad_except", "data/a.py", "try: ...\nexcept (OSError, builtins.BaseException) as e: ..."),
    ("global_state", "data/a.py", "def f():\n    global x\n    x = 1"),
    ("unfinished", "data/a.py", "x = 1  # TODO: later"),
    ("unfinished", "data/a.py", "# FIXME"),
    ("pickles", "data/a.py", "def f():\n    import pickle"),
    ("pickles", "data/a.py", "from pickle import dumps"),
    ("pickles", "data/a.py", "import joblib.memory"),
    ("pickles", "train/a.py", "torch.save(x, path)"),
    ("pickles", "train/a.py", "from torch import load"),
    ("pickles", "train/a.py", "import torch.distributed.checkpoint"),
    ("pickles", "data/a.py", "np.load(path, allow_pickle=True)"),
    ("pickles", "data/a.py", "frame.to_pickle(path)"),
]

KEPT: list[tuple[str, str, str]] = [
    ("file_length", "data/a.py", "x = 1\n" * 600),
    ("file_length", "ops/attention/triton/forward.py", "x = 1\n" * 800),
    ("function_length", "data/a.py", "def f():\n" + "    x = 1\n" * 79),
    ("function_length", "ops/attention/triton.py", KERNEL),
    ("parameter_count", "ops/attention/triton.py", KERNEL),
    ("parameter_count", "data/a.py", "class A:\n    def f(self, a, b, c, d, e, f, g, h): ..."),
    ("parameter_count", API, "def f(a, b, c, d, e, f, g, h, i, j, k, l): ..."),
    ("optional_by_keyword", API, "def attention(q, k, *, scale=None): ..."),
    ("optional_by_keyword", "data/a.py", "def f(q, scale=None): ..."),
    ("documented", "data/a.py", '"""Doc."""\ndef _f(): ...\nclass _A:\n    def f(self): ...'),
    ("documented", "data/a.py", '"""Doc."""\ndef f():\n    """Doc."""\n    def g(): ...'),
    ("documented", "data/a.py", '"""Doc."""\nclass A:\n    """Doc."""\n    def __len__(self): ...'),
    ("shapes_told", API, "def f(q: Tensor):\n" + SHAPED),
    ("shapes_told", API, 'def f(k: int):\n    """No tensors."""'),
    ("shapes_told", "nn/a.py", 'class A:\n  """x (T, E)."""\n  def forward(self, x: Tensor):\n    """Do."""'),
    ("shapes_told", "nn/a.py", 'def f(x: Tensor):\n    """Of offsets `(B + 1,)`."""'),
    ("shapes_told", "data/a.py", 'def f(x: Tensor):\n    """Do."""'),
    ("prints", "cli/table.py", "print(1)"),
    ("broad_except", "data/a.py", "try: ...\nexcept (OSError, ValueError): ..."),
    ("unfinished", "data/a.py", "# TODO when it is mended: https://example.org/issues/1"),
    ("pickles", "data/a.py", "np.load(path, allow_pickle=False)"),
    ("pickles", "data/a.py", "class A:\n    def __reduce__(self): ..."),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_a_rule_finds_what_breaks_it(rule, path, text):
    assert {finding.rule for finding in SOURCE_RULES[rule](Source(path, text))} == {rule}


@pytest.mark.parametrize(("rule", "path", "text"), KEPT)
def test_a_rule_leaves_alone_what_keeps_it(rule, path, text):
    assert list(SOURCE_RULES[rule](Source(path, text))) == []


def test_every_rule_is_shown_to_fail():
    assert {rule for rule, _, _ in BROKEN} == set(SOURCE_RULES)


def build(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('def f(): "Doc."\n' if path.name != "__init__.py" else '"""Doc."""\n')
    return root / "src" / "serrate"


FURNITURE = ["__init__.py", "api.py", "reference.py", "cases.py", "README.md"]
OPERATION = [f"src/serrate/ops/sort/{name}" for name in FURNITURE]


def test_an_unfurnished_room_is_found(tmp_path):
    gru = "src/serrate/models/gru"
    package = build(tmp_path, *OPERATION, f"{gru}/__init__.py", f"{gru}/model.py")
    told = [(finding.place, finding.detail) for finding in rooms_complete(package)]
    assert told == [("models/gru", "has no config.py"), ("models/gru", "has no README.md")]
    build(tmp_path, "src/serrate/ops/sort/triton/forward.py")
    (package / "ops/sort/reference.py").unlink()
    told = [finding.detail for finding in rooms_complete(package) if finding.place == "ops/sort"]
    assert told == ["has no reference.py", "has no bench.py"]


def test_a_room_without_tests_and_tests_without_a_room_are_found(tmp_path):
    new = ["src/serrate/files.py", "src/serrate/data/a.py", "tests/old/test_a.py"]
    package = build(tmp_path, *OPERATION, *new)
    places = {finding.place for finding in rooms_tested(package)}
    assert places == {"files.py", "ops/sort", "data", "tests/old"}
    build(tmp_path, "tests/test_files.py", "tests/ops/test_sort.py", "tests/data/test_a.py")
    (tmp_path / "tests/old/test_a.py").unlink()
    assert list(rooms_tested(package)) == []


# --- imports ---


def fresh(program: str) -> str:
    """Run a program in a process of its own and return what it prints."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loads(module: str) -> set[str]:
    """Return the top-level packages in memory once `module` is imported in a fresh process."""
    program = f"import {module}, json, sys; print(json.dumps(list(sys.modules)))"
    return {name.split(".")[0] for name in json.loads(fresh(program))}


@pytest.mark.parametrize("module", ["serrate.ops", "serrate.nn", "serrate.jagged", "serrate.interop"])
def test_the_lower_floors_load_neither_data_engines_nor_kernels(module):
    heavy = {"duckdb", "pyarrow", "pydantic", "triton", "pandas", "polars", "typer", "rich", "yaml"}
    assert not loads(module) & heavy


def test_a_heavy_import_would_be_seen():
    assert "pydantic" in loads("serrate.config")


IMPORT_SECONDS = "import torch, time; s = time.perf_counter(); import {}; print(time.perf_counter() - s)"


def test_importing_serrate_costs_little_over_torch():
    costs = [float(fresh(IMPORT_SECONDS.format("serrate"))) for _ in range(3)]
    assert statistics.median(costs) < 0.3


def test_a_slow_import_would_be_seen(tmp_path):
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.31)\n")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); " + IMPORT_SECONDS.format("slow_to_import")
    assert float(fresh(program)) > 0.3


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the import contracts of pyproject.toml on the package `serrate` that lies in `folder`."""
    program = "import sys; sys.path.insert(0, sys.argv[1]); from importlinter.cli import lint_imports; "
    program += "sys.exit(lint_imports(config_filename=sys.argv[2], no_cache=True))"
    command = [sys.executable, "-c", program, str(folder), str(ROOT / "pyproject.toml")]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_the_import_contracts_are_kept():
    done = lint_imports(ROOT / "src")
    assert done.returncode == 0, done.stdout


HOUSE = ["errors.py", "config.py", "files.py", "run_folder.py", "jagged/__init__.py", "ops/__init__.py",
         "ops/attention/__init__.py", "ops/attention/cases.py", "testing/__init__.py", "nn/__init__.py",
         "models/__init__.py", "data/__init__.py"]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "line", "kept"),
    [
        ("models/__init__.py", "from .. import nn", True),
        ("ops/attention/cases.py", "from ... import testing", True),
        ("errors.py", "def late():\n    from . import config", False),  # inside a function too
        ("models/__init__.py", "import serrate.data", False),  # siblings
        ("nn/__init__.py", "from .. import models", False),
        ("nn/__init__.py", "from .. import testing", False),
        ("misc/__init__.py", "", False),  # a package without a floor
    ],
)
def test_the_import_contracts_can_fail(tmp_path, file, line, kept):
    for name in ["__init__.py", *HOUSE, file]:
        path = tmp_path / "serrate" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line if name == file else "")
    assert (lint_imports(tmp_path).returncode == 0) is kept


# --- what the repository says ---

# Folders of the machine it was written on, and hosts of packages: neither means anything to a reader.
MACHINE = re.compile(r"(?<![\w.~$}])/(work|opt|root|home|mnt|srv)/\w")
REGISTRY = re.compile(r"https?://[^\s/]*(pypi|pythonhosted|npmjs|artifactory|nexus|jfrog)|(--|_)(extra-)?index-url")


def names_a_machine(text: str) -> bool:
    """Whether a text names a folder of one machine, or the host of a package registry."""
    return bool(MACHINE.search(text) or REGISTRY.search(text))


def test_no_tracked_file_names_a_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout, so no list of tracked files")
    named = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            text = path.read_bytes().decode("utf-8", errors="ignore")
            named += [f"{name}: {line}" for line in text.splitlines() if names_a_machine(line)]
    assert not named, "\n".join(named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('open("/work/main/x")', True),
        ("see /opt/wheels", True),
        ("https://pypi.org/simple", True),
        ("pip install --index-url x", True),
        ("../shared/data", False),
        ("https://example.org/work/x", False),
        ("/tmp/x", False),
    ],
)
def test_a_machine_would_be_seen(text, named):
    assert names_a_machine(text) is named

"""The house rules that a machine can hold: sizes, arrows, and where exceptions are caught."""

import ast
import functools
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "deployd_core").rglob("*.py"))
SHIPPED = sorted([*(ROOT / "strategies").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
ALL = [*CORE, *SHIPPED]
CATCH_ALL = {"deployd_core/boundary.py", "deployd_core/ending.py", "deployd_core/tasks.py"}
"""The two boundaries (the call of a plugin, the cycle of a service), and the threads that carry what was raised to the second."""

LONG = {"deployd_core/contracts.py"}
"""One page to read for whoever writes a plugin; half of it is docstrings."""


def name_of(path):
    """A path as a test id."""
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path):
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """Every module that a file imports, at the top or within."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(package):
    """The files of the core that import a package."""
    return {name_of(path) for path in CORE if any(f"{name}.".startswith(f"{package}.") for name in imports(path))}


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_files_and_functions_are_short(path):
    """A file has at most 400 lines and a function at most 50."""
    functions = [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]

    assert name_of(path) in LONG or path.read_text(encoding="utf-8").count("\n") <= 400
    assert [] == [f"{node.name} has {lines(node)} lines" for node in functions if lines(node) > 50]


def lines(node):
    """How many lines a function has."""
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", [path for path in ALL if name_of(path) not in CATCH_ALL], ids=name_of)
def test_only_the_boundaries_catch_everything(path):
    """Outside the two boundaries, an except clause names what it expects."""
    broad = {"Exception", "BaseException"}
    handlers = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ExceptHandler)]

    assert [] == [node.lineno for node in handlers if node.type is None]
    assert [] == [
        node.lineno for node in handlers for name in ast.walk(node.type) if isinstance(name, ast.Name) and name.id in broad
    ]


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_no_process_wide_state_is_changed(path):
    """Nobody changes the directory of the process, or its environment."""
    forbidden = {"os.chdir", "os.environ", "os.putenv", "os.umask"}

    assert [] == [f"{node.lineno}: {ast.unparse(node)}" for node in ast.walk(tree(path)) if is_write_to(node, forbidden)]


def is_write_to(node, names):
    """Whether a node calls one of these, or assigns to an item of one of these."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) in names
    targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else []
    return any(isinstance(target, ast.Subscript) and ast.unparse(target.value) in names for target in targets)


def test_zookeeper_is_spoken_to_in_one_place():
    """kazoo is imported in deployd_core/zookeeper, and nowhere else in the core."""
    assert {"deployd_core/zookeeper"} >= {str(Path(name).parent) for name in importers("kazoo")}


def test_processes_are_looked_at_in_one_place():
    """psutil is imported in processes.py, and nowhere else in the core; the test kit looks for itself."""
    assert {"deployd_core/processes.py"} >= {name for name in importers("psutil") if not name.startswith("deployd_core/testing/")}


def test_the_core_knows_no_firewall():
    """Firewalls are the business of gates."""
    assert set() == importers("iptc")


def test_production_does_not_import_the_test_kit():
    """deployd_core.testing is for tests, the checks of plugins among them, and for the demo."""
    kit = ("deployd_core/testing/", "deployd_core/conformance/")
    users = {name for name in importers("deployd_core.testing") if not name.startswith(kit)}

    assert {"deployd_core/demo.py", "deployd_core/simulate/found.py"} >= users


PACKAGES = {"deployd_strategies", "deployd_plugins"}
STRATEGY_MODULES = {path.stem for path in (ROOT / "strategies/deployd_strategies").glob("[!_]*.py")}


def test_the_core_imports_no_plugin():
    """The core finds what ships through entry points, like anything else."""
    assert set() == {name for package in PACKAGES for name in importers(package)}


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_names_no_plugin_package(path):
    """No string in the code of the core names a package of plugins, not even to import it later."""
    strings = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]

    assert [] == [text for text in strings if any(f"{package}." in text for package in PACKAGES)]


NAMES_STRATEGIES = {
    "deployd_core/spec.py",
    "deployd_core/demo.py",
    "deployd_core/testing/fleet.py",
    "deployd_core/testing/rolling.py",
}


@pytest.mark.parametrize("path", [path for path in CORE if name_of(path) not in NAMES_STRATEGIES], ids=name_of)
def test_the_core_decides_nothing_by_the_name_of_a_strategy(path):
    """No string in the core is the name of a strategy, but for the default in spec.py and what the demo and the tests run."""
    names = {name.replace("_", "-") for name in STRATEGY_MODULES}
    strings = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]

    assert [] == [text for text in strings if text in names]


@pytest.mark.parametrize("path", SHIPPED, ids=name_of)
def test_what_ships_imports_the_api_alone(path):
    """Of ours, a strategy or plugin imports deployd_core.api and its siblings."""
    package = next(part for part in path.parts if part in PACKAGES)
    ours = {name for name in imports(path) if name.partition(".")[0] in {"deployd_core", *PACKAGES}}

    assert set() == {name for name in ours if not name.startswith(("deployd_core.api.", f"{package}."))}


LIGHT = {"__future__", "collections", "contextlib", "dataclasses", "enum", "errno", "functools", "itertools"}
LIGHT |= {"msgspec", "os", "pathlib", "re", "stat", "time", "typing"}


def has_hook(path):
    """Whether a module implements a hook."""
    functions = [node for node in tree(path).body if isinstance(node, ast.FunctionDef)]
    return any(ast.unparse(decorator) == "hookimpl" for function in functions for decorator in function.decorator_list)


def heads(path):
    """What importing a module imports: at its top, and at the top of its siblings that it imports there."""
    top = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    found = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    siblings = [sibling for sibling in SHIPPED if sibling.stem != "__init__" and module_of(sibling) in found]
    return found.union(*(heads(sibling) for sibling in siblings))


def module_of(path):
    """The name under which a module of what ships is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])


@pytest.mark.parametrize("path", [path for path in SHIPPED if has_hook(path)], ids=name_of)
def test_what_ships_is_cheap_to_import(path):
    """A plugin module is imported merely to be listed: with its siblings it imports nothing heavy by then."""
    assert set() == {name for name in heads(path) if name.partition(".")[0] not in LIGHT | {"deployd_core", *PACKAGES}}


def test_every_module_that_ships_is_registered():
    """Each module with a hook has its entry point, and each entry point its module."""
    registered = {point.value for point in importlib.metadata.entry_points(group="deployd") if point.dist.name == "deployd"}

    assert {module_of(path) for path in SHIPPED if has_hook(path)} == registered


PURE = ["units", "errors", "model", "spec", "coordination", "cycle", "planner"]
WORLD = {"os", "time", "random", "secrets", "socket", "subprocess", "threading", "shutil", "tempfile", "psutil", "kazoo", "logging"}


@pytest.mark.parametrize("name", PURE)
def test_what_is_pure_looks_at_nothing(name):
    """The model and the planner import nothing with which to look at a disk, a process or a network, and read no clock."""
    path = ROOT / "deployd_core" / f"{name}.py"
    calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}

    assert set() == {found for found in imports(path) if found.partition(".")[0] in WORLD}
    assert set() == {call for call in calls if call.endswith((".now", ".utcnow", ".today")) or call == "open"}

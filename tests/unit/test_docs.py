"""The documents are true: their code runs, their tables are complete, their links and commands exist."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from deployd_core import hookspecs, model, testing
from deployd_core.cli import strategies
from deployd_core.cli.groups import COMMANDS
from deployd_core.config import AgentConfig, load_spec
from deployd_core.conformance import SEEDS
from deployd_core.conformance.strategies import PROPERTIES
from deployd_core.conformance.width import lets_all_hosts_go
from deployd_core.planner import HostStep
from deployd_core.plugins import Kind, Plugins, PluginState, convert

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"(?:^\$ |`)deployd ([a-z]+)", re.MULTILINE)


def fill_docs():
    """The script that writes what the code knows into the documents."""
    spec = importlib.util.spec_from_file_location("fill_docs", ROOT / "tools" / "fill_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILL = fill_docs()
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILL.documents()}


def blocks(language):
    """Every block of a language, each with its page as its test id."""
    found = [(page, match[3]) for page, text in PAGES.items() for match in FENCE.finditer(text) if match[2] == language]
    return [pytest.param(text, id=f"{page}-{number}") for number, (page, text) in enumerate(found)]


@pytest.mark.parametrize("page", PAGES)
def test_what_the_code_knows_is_in_the_page(page):
    """The tables of keys and the output of commands are up to date; tools/fill_docs.py writes them."""
    assert FILL.filled(PAGES[page]) == PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Every link to a file of ours has that file at its end."""
    links = [link for link in LINK.findall(FENCE.sub("", PAGES[page])) if "://" not in link]

    assert [] == [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page):
    """A page speaks of commands of deployd that there are."""
    scripts = "\n".join(match[3] for match in FENCE.finditer(PAGES[page]) if match[2] == "sh")
    named = {*COMMAND.findall(PAGES[page]), *re.findall(r"^deployd ([a-z]+)", scripts, re.MULTILINE)}

    assert set() == named - set(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_verbs_of_make_exist(page):
    """A page speaks of verbs of the Makefile that there are."""
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

    assert set() == set(re.findall(r"(?:^|`)make ([a-z]+)", PAGES[page], re.MULTILINE)) - verbs


def is_test(parameter):
    """Whether a block of Python is a test, rather than a plugin."""
    return "deployd_core.testing" in parameter.values[0]


@pytest.mark.parametrize("text", [block for block in blocks("python") if not is_test(block)])
def test_a_python_example_is_a_plugin_that_loads(text, tmp_path):
    """Python in the documents is a plugin module, and it works as it stands."""
    (tmp_path / "example.py").write_text(text)

    rows = [row for row in Plugins.load(directory=tmp_path).rows if row.provider.entry == "example"]

    assert [PluginState.OK] == [row.state for row in rows], rows


@pytest.mark.parametrize("text", [block for block in blocks("python") if not is_test(block) and "Strategy[" in block.values[0]])
def test_a_strategy_of_the_documents_has_a_fleet_limit(text, tmp_path):
    """Whoever copies it does not restart a whole fleet at once, unless it says that it does."""
    (tmp_path / "example.py").write_text(text)
    plugins = Plugins.load(directory=tmp_path)
    [name] = [row.name for row in plugins.rows if row.provider.entry == "example"]

    limited = lets_all_hosts_go(plugins.make(Kind.STRATEGY, name, {}, where="example")) is False

    assert limited or "every instance of every host at once" in text


@pytest.mark.parametrize("page", ["docs/plugins/tutorial.md", "docs/plugins/testing.md"])
def test_the_contract_tries_as_many_hosts_as_the_command(page):
    """One number, which the pages name."""
    command = strategies.command.commands["check"]
    [default] = [option.default for option in command.params if option.name == "seeds"]

    assert SEEDS == testing.StrategyContract.seeds == default
    assert f" {SEEDS} " in PAGES[page]


TUTORIAL = "docs/plugins/tutorial.md"
"""Its own test follows it literally, in a fresh environment."""


@pytest.mark.parametrize("text", [block for block in blocks("python") if is_test(block) and not block.id.startswith(TUTORIAL)])
def test_a_python_example_is_a_test_that_passes(text, tmp_path):
    """Or it is a test, which pytest runs with the kit."""
    (tmp_path / "test_example.py").write_text(text)

    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout


@pytest.mark.parametrize("text", [block for block in blocks("console") if block.id.startswith("docs/plugins/debugging.md")])
def test_a_trace_is_as_the_page_shows_it(text, tmp_path):
    """The lines of the page come, whatever times and versions they have."""
    command, _, shown = text.removeprefix("$ ").partition("\n")
    program = f"{sys.executable} -P -m deployd_core --plugins-dir {tmp_path} "
    done = subprocess.run(command.replace("deployd ", program, 1), shell=True, capture_output=True, text=True, check=True)

    for line in shown.splitlines():
        assert re.search(re.escape(line).replace(r"\.\.\.", ".*"), done.stderr), line


@pytest.mark.parametrize("text", blocks("toml"))
def test_a_toml_example_is_valid(text, tmp_path):
    """TOML in the documents is a service spec or an agent.toml that deployd takes, or an entry point."""
    table = tomllib.loads(text)
    (tmp_path / "web.toml").write_text(text)

    if "service" in table:
        assert load_spec(tmp_path / "web.toml", Plugins.load(), "web").service.root.startswith("/")
    elif "project" in table:
        assert "deployd" in table["project"]["entry-points"]
    else:
        assert convert(table, AgentConfig, where="example").services


def test_the_example_service_has_a_valid_spec():
    """The spec in examples/web is one that deployd takes."""
    assert "web-{port}" == load_spec(ROOT / "examples/web/web.toml", Plugins.load(), "web").instances.manager["program"]


def test_the_first_strategy_is_short():
    """The strategy that greets the reader has at most 15 lines of code."""
    (text,) = [parameter.values[0] for parameter in blocks("python") if parameter.id.startswith("README.md")]

    assert len([line for line in text.splitlines() if line.strip()]) <= 15


HOOKS = {name: function for name, function in vars(hookspecs).items() if name.startswith("deployd_")}


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented(hook):
    """The page on plugins names every hook."""
    assert f"`{hook}" in PAGES["docs/plugins.md"]


def test_the_reference_of_hooks_has_their_signatures():
    """Its headings are the hooks, in their order, each with its exact signature."""
    headings = re.findall(r"^## `(.*)`$", PAGES["docs/plugins/hooks.md"], re.MULTILINE)

    assert [f"{name}{inspect.signature(function)}".replace("'", "") for name, function in HOOKS.items()] == headings


@pytest.mark.parametrize("hook", HOOKS)
def test_the_reference_of_a_hook_is_complete(hook):
    """When it is called, on which thread, what it may raise and what then happens, and who uses it."""
    section = PAGES["docs/plugins/hooks.md"].partition(f"## `{hook}(")[2].partition("\n## ")[0]

    assert ["When", "Thread", "May raise", "Used by"] == re.findall(r"^- \*\*([A-Za-z ]+):\*\*", section, re.MULTILINE)


@pytest.mark.parametrize(
    ("value", "heading"),
    [(model.RestartRequest, "| of `RestartRequest` |"), (model.Veto, "| of `Veto` |"), (model.Event, "The fields of `Event`:")],
)
def test_the_reference_of_hooks_knows_every_field(value, heading):
    """What a hook is told and what it returns has a table, with each of its fields and no other."""
    table = PAGES["docs/plugins/hooks.md"].partition(heading)[2].partition("| --- | --- |\n")[2].partition("\n\n")[0]
    names = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]

    assert list(value.__struct_fields__) == names


def details():
    """Every event that the engine tells of, and the keys of its detail: what the code says."""
    engine, turn = (ast.parse((ROOT / f"deployd_core/{name}.py").read_text(encoding="utf-8")) for name in ("engine", "turn"))

    def calls(tree, method):
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        return [node.args for node in found if node.func.attr == method]

    def keys(tree):
        return {key.value for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}

    assigned = {ast.unparse(node.targets[0]): node.value for node in ast.walk(engine) if isinstance(node, ast.Assign)}
    found = {}
    for name, _, detail in calls(engine, "_emit"):
        event = "host.STEP" if isinstance(name, ast.JoinedStr) else name.value
        found[event] = keys(detail) or keys(assigned.get(ast.unparse(detail), ast.Dict([], [])))
    found["permit.held-too-long"] = {key for _, detail in calls(turn, "_once") for key in keys(detail)}
    return found


def test_the_reference_of_hooks_knows_every_event_with_its_detail():
    """Each name that the engine tells of has its row, with the keys of its detail."""
    page = PAGES["docs/plugins/hooks.md"].partition("\n## Events\n")[2]
    steps, _, rows = page.partition("| event | its `detail` |")
    told = {
        match[1]: set(re.findall(r"`(\w+)`", match[2])) - {"permit_alarm"}
        for match in re.finditer(r"^\| `(\S+)` \| (.*)\|$", rows, re.MULTILINE)
    }

    assert details() == told
    assert [f"host.{step.value}" for step in HostStep] == re.findall(r"^\| `(host\.\w+)` \|", steps, re.MULTILINE)


@pytest.mark.parametrize("value", [model.HostView, model.InstanceView, model.PermitView, model.FleetView, model.Plan])
def test_the_page_on_views_knows_every_field(value):
    """Nothing that a strategy sees or says goes without a word, computed or not."""
    computed = [name for name, found in vars(value).items() if isinstance(found, property)]

    assert [] == [name for name in (*value.__struct_fields__, *computed) if f"`{name}`" not in PAGES["docs/plugins/view.md"]]


def test_the_page_on_views_knows_every_phase():
    """Each has its row."""
    assert [] == [phase.value for phase in model.Phase if f"| `{phase.value}` |" not in PAGES["docs/plugins/view.md"]]


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.STRATEGY], ids=lambda kind: kind.value)
def test_the_page_on_kinds_knows_every_method(kind):
    """Each method of a contract stands in the table of its kind."""
    section = PAGES["docs/plugins/kinds.md"].partition(f"## {kind.value.capitalize()}\n")[2].partition("\n## ")[0]
    methods = [name for name, found in vars(kind.contract).items() if inspect.isfunction(found) and not name.startswith("_")]

    assert [] == [name for name in methods if f"`{name}(" not in section]


def test_the_page_on_testing_knows_the_whole_kit():
    """Every contract, and every fixture; and it names none that is not there."""
    page = PAGES["docs/plugins/testing.md"]
    fixtures = set(re.findall(r"^def (deployd_\w+)", (ROOT / "deployd_core/testing/plugin.py").read_text(), re.MULTILINE))

    assert {name for name in testing.__all__ if name.endswith("Contract")} == set(re.findall(r"`(\w+Contract)`", page))
    assert fixtures == set(re.findall(r"^\| `(deployd_\w+)` \|", page, re.MULTILINE))
    assert all(hasattr(testing, name) for name in testing.__all__)


def test_the_page_on_debugging_knows_every_check():
    """What each of them says, and what to do about it."""
    assert [] == [name for name in PROPERTIES if f"| `{name}` |" not in PAGES["docs/plugins/debugging.md"]]


def test_every_page_can_be_reached():
    """Every page of docs/ is in the navigation, and in the links of the README, the index or the page on plugins."""
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    navigation = set(re.findall(r"^  - (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    linked = {
        link.removeprefix("docs/")
        for page in ("README.md", "docs/index.md", "docs/plugins.md")
        for link in LINK.findall(PAGES[page])
    }

    assert pages == navigation
    assert pages <= linked


def test_the_architecture_page_names_every_module():
    """Whoever looks for a module of the core finds it on the page, and layers in pyproject.toml."""
    modules = {path.name for path in (ROOT / "deployd_core").glob("[!_]*.py")}
    layers = set(re.findall(r"deployd_core\.(\w+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))

    assert set() == {module for module in modules if f"`{module}`" not in PAGES["ARCHITECTURE.md"]}
    assert set() == {module for module in modules if module.removesuffix(".py") not in layers}

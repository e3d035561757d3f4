"""The documents are true: their code runs, their tables are complete, their links and commands exist."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from deployd_core import hookspecs
from deployd_core.cli.groups import COMMANDS
from deployd_core.config import AgentConfig, load_spec
from deployd_core.plugins import Plugins, PluginState, convert

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


@pytest.mark.parametrize("text", blocks("python"))
def test_a_python_example_is_a_plugin_that_loads(text, tmp_path):
    """Python in the documents is a plugin module, and it works as it stands."""
    (tmp_path / "example.py").write_text(text)

    rows = [row for row in Plugins.load(directory=tmp_path).rows if row.provider.entry == "example"]

    assert [PluginState.OK] == [row.state for row in rows], rows


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


@pytest.mark.parametrize("hook", [name for name in vars(hookspecs) if name.startswith("deployd_")])
def test_every_hook_is_documented(hook):
    """The page on plugins names every hook."""
    assert f"`{hook}" in PAGES["docs/plugins.md"]


def test_every_page_can_be_reached():
    """Every page of docs/ is in the navigation and in the README's or the index's links."""
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    navigation = set(re.findall(r"^  - (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    linked = {Path(link).name for page in ("README.md", "docs/index.md") for link in LINK.findall(PAGES[page])}

    assert pages == navigation
    assert pages <= linked


def test_the_architecture_page_names_every_module():
    """Whoever looks for a module of the core finds it on the page, and layers in pyproject.toml."""
    modules = {path.name for path in (ROOT / "deployd_core").glob("[!_]*.py")}
    layers = set(re.findall(r"deployd_core\.(\w+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8")))

    assert set() == {module for module in modules if f"`{module}`" not in PAGES["ARCHITECTURE.md"]}
    assert set() == {module for module in modules if module.removesuffix(".py") not in layers}

"""Finding entry points gives what importlib.metadata gives, without importing it."""

import importlib.metadata
import subprocess
import sys

import pytest

from deployd_core.entry_points import EntryPoint, find_entry_points


def make_distribution(directory, folder, *, name="Acme.Deployd", version="1.2", points="[deployd]\nacme = acme_plugin\n"):
    """Lay out the metadata of an installed distribution."""
    ending = "PKG-INFO" if folder.endswith(".egg-info") else "METADATA"
    (directory / folder).mkdir(parents=True)
    (directory / folder / ending).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: in the text\n")
    if points:
        (directory / folder / "entry_points.txt").write_text(points)


@pytest.mark.parametrize("group", ["deployd", "console_scripts", "pytest11", "no-such-group"])
def test_finds_what_importlib_finds(group):
    """In this environment both find the same names, values, distributions and versions."""
    expected = sorted(
        (point.name, point.value, point.dist.name, point.dist.version) for point in importlib.metadata.entry_points(group=group)
    )

    found = find_entry_points(group)

    assert expected == [(point.name, point.value, point.distribution, point.version) for point in found]


@pytest.mark.parametrize("folder", ["acme_deployd-1.2.dist-info", "acme_deployd-1.2-py3.11.egg-info"])
def test_name_and_version_come_from_the_metadata(tmp_path, folder):
    """A distribution is called what it calls itself, not what its folder is called."""
    make_distribution(tmp_path, folder)

    found = find_entry_points("deployd", [str(tmp_path)])

    assert [EntryPoint(name="acme", value="acme_plugin", distribution="Acme.Deployd", version="1.2")] == found


def test_first_of_two_equal_distributions_counts(tmp_path):
    """A distribution that is on the path twice is the one that Python would import."""
    make_distribution(tmp_path / "a", "acme_deployd-2.dist-info", version="2")
    make_distribution(tmp_path / "b", "Acme.Deployd-1.dist-info", version="1")

    found = find_entry_points("deployd", [str(tmp_path / "a"), str(tmp_path / "b")])

    assert ["2"] == [point.version for point in found]


def test_other_groups_and_comments_are_left_out(tmp_path):
    """Only the lines of the group count, whatever surrounds them."""
    points = "[console_scripts]\nx = y:z\n\n[deployd]\n# a comment\n  b = m:f [extra]\na=m\n\n[deployd.more]\nc = d\n"
    make_distribution(tmp_path, "acme-1.dist-info", points=points)

    found = find_entry_points("deployd", [str(tmp_path)])

    assert [("a", "m"), ("b", "m:f [extra]")] == [(point.name, point.value) for point in found]


def test_odd_paths_are_skipped(tmp_path):
    """Directories that are missing, and distributions without entry points, are no error."""
    make_distribution(tmp_path, "acme-1.dist-info", points="")
    (tmp_path / "broken-1.dist-info").write_text("a file")

    assert [] == find_entry_points("deployd", [str(tmp_path), str(tmp_path / "absent"), ""])


@pytest.mark.parametrize(
    ("value", "expected"), [("json", "json"), ("json:loads", "loads"), ("json.decoder:JSONDecoder.decode [x]", "decode")]
)
def test_loads_modules_and_attributes(value, expected):
    """A value names a module, or something in one."""
    point = EntryPoint(name="x", value=value, distribution="d", version="1")

    assert expected == point.load().__name__


@pytest.mark.parametrize("value", ["json:", "js on", "json:no_such_thing", "", "json/loads"])
def test_value_that_leads_nowhere_is_an_import_error(value):
    """A malformed value, or a missing attribute, is an error of importing."""
    with pytest.raises(ImportError):
        EntryPoint(name="x", value=value, distribution="d", version="1").load()


def test_zipped_distributions_are_found_by_importlib(tmp_path):
    """With a zip file on the path the slow way is taken, and finds what is in it."""
    program = "import zipfile, sys; from deployd_core.entry_points import find_entry_points\n"
    program += f"with zipfile.ZipFile({str(tmp_path / 'x.zip')!r}, 'w') as z:\n"
    program += "    z.writestr('zipped-1.dist-info/METADATA', 'Name: zipped\\nVersion: 1\\n')\n"
    program += "    z.writestr('zipped-1.dist-info/entry_points.txt', '[deployd]\\nzip-plugin = nothing\\n')\n"
    program += f"sys.path.append({str(tmp_path / 'x.zip')!r})\n"
    program += "print([(p.distribution, p.version) for p in find_entry_points('deployd') if p.name == 'zip-plugin'])"

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "[('zipped', '1')]\n" == result.stdout


def test_importlib_metadata_is_not_imported():
    """The whole point: nothing here pays for importlib.metadata."""
    program = "import sys; from deployd_core.entry_points import find_entry_points; find_entry_points('deployd')\n"
    program += "print([name for name in ('importlib.metadata', 'email.message', 'zipfile') if name in sys.modules])"

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "[]\n" == result.stdout

"""The package: what is in its wheel, and that it works from any folder beside any other code."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from projects import QUICKLY

from orchmgmt.testing.faults import ARGUMENTS, DROPS

pytestmark = pytest.mark.sqlite

TREE = Path(__file__).resolve().parents[2]
PACKAGES = [*TREE.glob("*/__init__.py"), *TREE.glob("extensions/*/__init__.py")]
FOLDERS = [TREE, *(it.parent for it in PACKAGES)]
PAGE = [str(it.relative_to(TREE)) for it in TREE.glob("extensions/ui/static/*")]
assert PAGE
MODULES = sorted(str(it.relative_to(TREE)) for folder in FOLDERS for it in folder.glob("*.py"))
OPERATIONS = {
    "/serviceorchestration/orchestration/mgmt/lock/create": "POST",
    "/serviceorchestration/orchestration/mgmt/lock/query": "POST",
    "/serviceorchestration/orchestration/mgmt/lock/remove/<owner>": "DELETE",
    "/serviceorchestration/orchestration/mgmt/history/query": "POST",
    "/serviceorchestration/monitor/echo": "GET",
    "/health": "GET",
}


def dotted(name):
    """The name by which a file is imported."""
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the tree, so that nothing of earlier builds gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.db*-*")
    shutil.copytree(TREE, folder / "tree", ignore=left_out)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "tree"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder into which the wheel is installed."""
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    return site


@pytest.fixture
def elsewhere(site, tmp_path):
    """Run a command in a folder of its own, against the installed wheel."""

    def elsewhere(*command):
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": ""},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return elsewhere


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    deploy = [str(it.relative_to(TREE)) for it in (TREE / "deploy").glob("*/*")]
    assert PAGE
    assert len(deploy) > 15
    expected = [*MODULES, *PAGE, *deploy, "py.typed", "db.sqlite.example"]
    manual = f"{Path(wheel).name.partition('-py3')[0]}.data/data/share/man/man1/orchmgmt.1"
    assert names == {f"orchmgmt/{name}" for name in expected} | {"pytest_orchmgmt.py", manual}


def test_wheel_says_what_it_is_and_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name.partition(".dist-info/")[2]: name for name in archive.namelist()}
        metadata = Parser().parsestr(archive.read(inside["METADATA"]).decode())
        scripts = archive.read(inside["entry_points.txt"]).decode()
    assert metadata["Name"] == "orchmgmt"
    assert "Apache-2.0" in (metadata["License-Expression"], metadata["License"])
    assert any(name.endswith("LICENSE") for name in inside)
    needed = [it for it in metadata.get_all("Requires-Dist") if "extra" not in it]
    assert {re.split("[<>]", it)[0].strip() for it in needed} == {
        "flask",
        "marshmallow",
        "peewee",
        "waitress",
    }
    assert metadata.get_payload().startswith("# ")
    assert "orchmgmt = orchmgmt.cli:main" in scripts


def test_installed_wheel_imports_from_any_folder(elsewhere, site):
    code = (
        "from orchmgmt.app import create_app; import orchmgmt.app, orchmgmt.commands.demo;"
        "app = create_app({'DATABASE_URL': 'sqlite:///:memory:'});"
        "print(app.test_client().get('/health').status_code, orchmgmt.app.__file__);"
        "print(orchmgmt.commands.demo.EXAMPLE.is_file())"
    )
    assert elsewhere("-c", code).split() == ["200", str(site / "orchmgmt" / "app.py"), "True"]


def test_every_module_imports_first(elsewhere):
    names = [f"orchmgmt.{dotted(name)}" for name in MODULES]
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    for loaded in [it for it in sys.modules if it.startswith('orchmgmt.')]:\n"
        "        del sys.modules[loaded]\n"
    )
    elsewhere("-c", code)


def test_modules_of_the_user_with_the_same_names_are_left_alone(elsewhere, tmp_path):
    modules = [it for it in MODULES if it != "__main__.py"]  # which is whatever runs
    for name in modules:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"mine = {name!r}\n")
    names = [dotted(name) for name in modules]
    code = (
        "from orchmgmt.app import create_app, store_of\n"
        "import orchmgmt.cli, orchmgmt.serving.server, orchmgmt.commands.transfer\n"
        "app = create_app({'DATABASE_URL': 'sqlite:///:memory:'})\n"
        "store_of(app).history.create('PULL', 'Alice', 'Bob', 'kelvinInfo')\n"
        "import importlib\n"
        f"print(*[importlib.import_module(name).mine for name in {names}])\n"
    )
    assert elsewhere("-c", code).split() == modules


def test_installed_wheel_claims_no_name_but_its_own(site):
    names = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert names - {"bin", "share", "__pycache__"} == {"orchmgmt", "pytest_orchmgmt.py"}


@pytest.mark.parametrize("users_app", [False, True], ids=["alone", "beside an app.py"])
def test_flask_lists_the_operations(elsewhere, tmp_path, users_app):
    if users_app:
        (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask('mine')\n")
    lines = elsewhere("-m", "flask", "--app", "orchmgmt.app", "routes").splitlines()
    routes = {line.split()[-1]: line.split()[-2] for line in lines[2:]}
    assert OPERATIONS.items() <= routes.items()


def test_command_of_the_installed_wheel_works(elsewhere, site, tmp_path):
    script = str(site / "bin" / "orchmgmt")
    assert elsewhere(script, "--version").startswith("orchmgmt ")
    (tmp_path / "none.jsonl").touch()
    imported = f"Imported 0 jobs into sqlite:///{tmp_path}/orchmgmt.db.\n"
    assert elsewhere(script, "history", "import", "none.jsonl") == imported
    assert elsewhere(script, "clean") == "Deleted 0 expired locks and 0 old jobs.\n"
    assert (tmp_path / "orchmgmt.db").is_file()


def test_a_project_of_others_tests_with_the_installed_wheel(elsewhere, tmp_path):
    page = (TREE / "docs" / "testing.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "test_page.py").write_text("\n".join(blocks))
    pytest_options = ["-c", os.devnull, "--rootdir", ".", "-W", "error", "-rA", *QUICKLY]
    said = elsewhere("-m", "pytest", *pytest_options, "test_page.py")
    assert "9 passed" in said
    fixtures = re.findall(r"^\| `(orchmgmt\w*)` \|", page, re.MULTILINE)
    listed = elsewhere("-m", "pytest", *pytest_options, "--fixtures", "test_page.py")
    assert sorted(fixtures) == sorted(re.findall(r"^(orchmgmt\w*)", listed, re.MULTILINE))
    code = "".join(blocks)
    assert all(re.search(rf"def \w+\(.*\b{name}\b", code) for name in fixtures)
    table = page.split("<!-- faults -->")[1].split("<!-- /faults -->")[0]
    table += page.split("<!-- choices -->")[1].split("<!-- /choices -->")[0]
    faults = set(re.findall(r"[`, ](\w+)=", table))
    assert faults | {"times"} == set(ARGUMENTS)
    used = set(re.findall(r"\b(\w+)=", code)) | set(re.findall(r"\"(\w+)\": ", code))
    assert faults <= used
    drops = set(re.findall(r'drop="(\w+)"', table))
    assert drops == set(DROPS) == set(re.findall(r'drop"?[=:] ?"(\w+)"', code))
    clock = {"advance", "set", "freeze", "resume"}
    assert clock <= set(re.findall(r"service\.clock\.(\w+)\(", code))


def test_development_install_imports_from_any_folder(tmp_path):
    code = "import orchmgmt.app; print(orchmgmt.app.__file__)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    assert Path(ended.stdout.strip()).resolve() == TREE / "app.py"


def test_the_version_is_that_of_the_changelog():
    """The one that "Unreleased" announces, or else that of the newest release."""
    text = (TREE / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+] - \d{4}-\d\d-\d\d", it) for it in headings[1:])
    newest = re.search(r"^(?:The next version is |## \[)(\d+\.\d+\.\d+)", text, re.MULTILINE)[1]
    assert f"\nversion = {newest}\n" in (TREE / "setup.cfg").read_text()


def test_the_public_ci_runs_on_each_python_that_the_metadata_names():
    workflow = yaml.safe_load((TREE / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    metadata = (TREE / "setup.cfg").read_text()
    supported = re.findall(r"Programming Language :: Python :: (3\.\d+)", metadata)
    assert job["strategy"]["matrix"]["python"] == supported
    (step,) = [it for it in job["steps"] if it.get("run") == ".ci/run"]
    assert list(step["env"]) == ["PYTHON"]
    for name in ("run", "bare"):
        assert "PYTHON:" in (TREE / ".ci" / name).read_text()

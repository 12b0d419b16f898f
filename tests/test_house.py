"""How the house is laid out: dependencies point downward, torch and printing stay where they belong."""

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hetconv_cli"
DOORS = {PACKAGE / "__init__.py", PACKAGE / "__main__.py"}  # they hand out what all floors offer
FILES = sorted(set(PACKAGE.rglob("*.py")) - DOORS)
# From top to bottom. On the ground stand the files directly in the package: plan, geometry, equations, errors, ...
FLOORS = ("cli", "render", "paper", "bench", "export", "measure", "conversion", "models", "layers", "ops", "ground")
GROUND = [file for file in FILES if file.parent == PACKAGE]
LONGEST_FILE = 450


def floor_of(file: Path) -> str:
    return "ground" if file.parent == PACKAGE else file.relative_to(PACKAGE).parts[0]


def imports(source: str, package: str) -> set[str]:
    """Dotted names that `source`, a file of `package`, imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def imports_of(file: Path) -> set[str]:
    return imports(file.read_text("utf-8"), ".".join(file.parent.relative_to(ROOT).parts))


def top_level(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def floor_of_name(name: str) -> str | None:
    """The floor of an imported name of ours; None for what only the package as a whole offers."""
    first = [*name.split("."), ""][1]
    if first in FLOORS:
        return first
    return "ground" if any(file.stem == first for file in GROUND) else None


def upward(floor: str, names: set[str]) -> list[str]:
    """What of the imported `names` a file on `floor` may not import. The command line may import everything."""
    below = () if floor == "cli" else FLOORS[FLOORS.index(floor) :]
    ours = {name for name in names if top_level({name}) == {"hetconv_cli"}} - {"hetconv_cli.__version__"}
    return sorted(name for name in ours if below and floor_of_name(name) not in below)


def offenders(fault_of) -> dict[str, object]:
    """What `fault_of(file)` finds in the package's files, by file."""
    assert len(FILES) > 10
    faults = {file.relative_to(PACKAGE).as_posix(): fault_of(file) for file in FILES}
    return {name: fault for name, fault in faults.items() if fault}


def test_imports_are_found_wherever_they_stand():
    source = "import torch.nn\ndef f():\n  from hetconv_cli import plan\n  from ..ops.a import b\n  from . import c\n"
    expected = {"torch.nn", "hetconv_cli.plan", "hetconv_cli.ops.a.b", "hetconv_cli.layers.c"}
    assert imports(source, "hetconv_cli.layers") == expected


def test_an_import_that_points_upward_is_found():
    assert upward("ops", {"hetconv_cli.layers.HetConv2d", "torch"}) == ["hetconv_cli.layers.HetConv2d"]
    assert upward("ground", {"hetconv_cli.ops.hetconv2d"}) == ["hetconv_cli.ops.hetconv2d"]
    assert upward("conversion", {"hetconv_cli.analyze"}) == ["hetconv_cli.analyze"]  # the package itself stands above
    assert upward("conversion", {"hetconv_cli"}) == ["hetconv_cli"]
    assert upward("ground", {"hetconv_cli.geometry.Geometry"}) == []
    assert (
        upward("conversion", {"hetconv_cli.conversion.trace", "hetconv_cli.errors.X", "hetconv_cli.__version__"}) == []
    )
    assert upward("cli", {"hetconv_cli.render.table", "hetconv_cli.analyze"}) == []


def test_every_file_has_its_floor():
    assert offenders(lambda file: floor_of(file) not in FLOORS) == {}


def test_dependencies_point_downward():
    assert offenders(lambda file: upward(floor_of(file), imports_of(file))) == {}


def test_the_files_on_the_ground_need_the_standard_library_and_yaml_only():
    known = sys.stdlib_module_names | {"yaml", "hetconv_cli"}
    assert offenders(lambda file: floor_of(file) == "ground" and top_level(imports_of(file)) - known) == {}


@pytest.mark.parametrize("name", ["equations", "arrangement", "geometry"])
def test_arithmetic_imports_nothing_of_the_project(name):
    assert "hetconv_cli" not in top_level(imports_of(PACKAGE / f"{name}.py"))


def test_only_the_command_line_knows_typer_and_prints():
    def knows_or_prints(file: Path) -> list[str]:
        nodes = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
        prints = [
            f"print in line {node.lineno}"
            for node in nodes
            if isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        return prints + sorted(name for name in imports_of(file) if top_level({name}) == {"typer"})

    assert offenders(lambda file: floor_of(file) != "cli" and knows_or_prints(file)) == {}


def test_only_the_kernels_know_triton():
    know = offenders(lambda file: sorted(name for name in imports_of(file) if top_level({name}) == {"triton"}))
    assert list(know) == ["ops/hetconv2d/triton_kernels.py"]


def test_every_file_can_be_read_in_one_sitting():
    lines = {file: len(file.read_text("utf-8").splitlines()) for file in FILES}
    assert offenders(lambda file: lines[file] if lines[file] > LONGEST_FILE else 0) == {}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python in the repository's root."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_package_and_its_ground_load_without_torch():
    names = ", ".join(["hetconv_cli", *(f"hetconv_cli.{file.stem}" for file in GROUND)])
    done = run("-c", f"import sys, {names}; print('torch' in sys.modules, 'numpy' in sys.modules)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "False False\n", "")


MAIN = """
import sys
from hetconv_cli.cli.main import main
status = 0
try:
    main()
except SystemExit as stop:
    status = stop.code or 0
assert "torch" not in sys.modules, "torch was imported"
sys.exit(status)
"""
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--help", "hetconv"),
        ("--version", VERSION),
        ("convert --help", "--arrangement"),
        ("flops --help", "--compare"),
        ("export --help", "--opset"),
        ("bench --help", "--runtime"),
        ("list --help", "list"),
        ("reproduce --help", "table1"),
        ("sweep --help", "--plot"),
    ],
)
def test_help_and_version_never_load_torch(line, said):
    done = run("-c", MAIN, *line.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


@pytest.mark.parametrize(("option", "said"), [("--help", "hetconv"), ("--version", VERSION)])
def test_the_package_runs_as_a_module(option, said):
    done = run("-m", "hetconv_cli", option)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_the_top_level_holds_package_tests_and_docs_only():
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a git checkout, or nothing is tracked yet")
    folders = {path.split("/")[0] for path in listed.splitlines() if "/" in path}
    assert {folder for folder in folders if not folder.startswith(".")} <= {"hetconv_cli", "tests", "docs"}

"""What the documents show is what happens: examples run, commands do what they are shown to do, options exist."""

import os
import re
import shlex
from pathlib import Path

import pytest

import hetconv_cli as hc
from hetconv_cli.cli.main import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROMPT = "$ "


def blocks(document, language):
    """The contents of a document's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def with_blocks(language):
    return [pytest.param(path, id=path.name) for path in DOCUMENTS if blocks(path, language)]


@pytest.fixture
def hetconv(capsys, tmp_path, monkeypatch):
    """Runs one command line in an empty folder; its exit status and both streams."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        program, *arguments = shlex.split(line)
        assert program == "hetconv"
        capsys.readouterr()
        try:
            main(arguments)
        except SystemExit as stop:
            return stop.code, *capsys.readouterr()
        return None

    return run


def test_the_readme_shows_the_three_commands_and_python():
    assert {"convert", "flops", "export"} <= {line.split()[1] for line, _ in commands(ROOT / "README.md")}
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("document", with_blocks("python"))
def test_python_examples_run(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for number, code in enumerate(blocks(document, "python"), start=1):
        exec(compile(code, f"{document.name}, python block {number}", "exec"), namespace)
    assert capsys.readouterr().err == ""


def commands(document):
    """Each `$ ...` line of a document's console blocks, with what it is shown to say."""
    found = []
    for block in blocks(document, "console"):
        for line in block.splitlines():
            if line.startswith(PROMPT):
                found.append((line.removeprefix(PROMPT), []))
            elif line.strip():
                found[-1][1].append(line.rstrip())
    return found


@pytest.mark.parametrize("document", with_blocks("console"))
def test_commands_run_and_say_what_is_shown(document, hetconv):
    for line, shown in commands(document):
        status, stdout, stderr = hetconv(line)
        assert status == 0, (line, stderr)
        said = {words(said_line) for said_line in (stdout + stderr).splitlines()}
        assert [shown_line for shown_line in shown if words(shown_line) not in said] == [], line


def words(line):
    """What a line says, without the spaces and rules between its columns."""
    return " ".join(line.replace("─", " ").split())


def options_of_help(hetconv):
    """Every option that any command's help lists."""
    status, stdout, stderr = hetconv("hetconv --help")
    assert (status, stderr) == (0, "")
    listed = stdout.partition("Commands:")[2]
    names = [line.split()[0] for line in listed.splitlines() if re.match(r"  [a-z]", line)]
    texts = [stdout]
    for name in names:
        status, text, stderr = hetconv(f"hetconv {name} --help")
        assert (status, stderr) == (0, "")
        texts.append(text)
    return set(names), {word for text in texts for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}


@pytest.mark.parametrize("document", [pytest.param(path, id=path.name) for path in DOCUMENTS])
def test_every_command_and_option_of_the_documents_is_in_the_help(document, hetconv):
    names, options = options_of_help(hetconv)
    lines = re.findall(r"`+(?:\$ )?hetconv ([^`\n]*)", document.read_text("utf-8"))
    lines += [line.removeprefix("hetconv ") for line, _ in commands(document)]
    used = {line.split()[0] for line in lines if line and line[0].islower()}
    assert used - names == set()
    mentioned = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", document.read_text("utf-8")))
    of_script = re.findall(r'add_argument\("(--[a-z-]+)"', (ROOT / "tests/gpu/bench_gpu.py").read_text("utf-8"))
    assert mentioned - options - set(of_script) == set()


def test_the_exit_statuses_of_the_documents_are_those_of_the_errors():
    table = dict(re.findall(r"^\| (\d+) \| (.*) \|$", (ROOT / "docs" / "commands.md").read_text("utf-8"), re.MULTILINE))
    assert list(table) == ["0", "1", "2", "3", "130"]
    errors = (hc.HetconvError, hc.ArgumentError, hc.NotProvenError)
    assert [str(error.exit_status) for error in errors] == ["1", "2", "3"]
    assert "not proven" in table["3"]
    assert "argument" in table["2"]


@pytest.mark.parametrize("document", [pytest.param(path, id=path.name) for path in DOCUMENTS])
def test_links_lead_to_files_that_are_there(document):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text("utf-8"))
    assert [link for link in links if not os.path.exists(document.parent / link)] == []


@pytest.mark.parametrize("name", hc.__all__)
def test_every_public_name_is_what_it_is_however_often_it_is_used(name):
    first = getattr(hc, name)
    assert callable(first)
    assert getattr(hc, name) is first

"""The command as a whole: help, version, errors as one line, interruption, pipes, terminals, completion."""

import importlib.metadata
import os
import pty
import subprocess
import sys

import pytest

from hetconv_cli.cli.options import complete_model
from hetconv_cli.errors import HetconvError
from hetconv_cli.measure import network

COMMANDS = ["convert", "flops", "export", "bench", "list"]
ESCAPE = "\x1b"


def test_alone_it_shows_its_help(run):
    done = run()
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: hetconv [OPTIONS] COMMAND [ARGS]...")
    assert set(COMMANDS) <= set(done.stdout.split())


def test_version(run):
    done = run("--version")
    version = importlib.metadata.version("hetconv-cli")
    assert (done.status, done.stdout, done.stderr) == (0, f"hetconv {version}\n", "")


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(run, command, option):
    done = run(*command, option)
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['hetconv', *command])} ")
    assert "Options:" in done.stdout
    if command:
        assert f"Example{'s' if command != ['list'] else ''}: hetconv {command[0]}" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lisst"], "No such command 'lisst'.*list.*; see hetconv --help"),
        (["--versoin"], "No such option: --versoin"),
        (["convert"], "Missing argument 'MODEL'; see hetconv convert --help"),
        (["convert", "resnet18", "more"], r"unexpected extra argument(s|\(s\)) \(more\); see hetconv convert --help"),
        (["convert", "resnet18", "--dryrun"], "No such option: --dryrun.*; see hetconv convert --help"),
        (["flops", "resnet18", "--p"], "'--p' requires an argument"),
        (["convert", "resnet18", "--arrangement", "square"], "'square' is not one of 'blocked', 'shifted'"),
        (["convert", "resnet18", "--seed", "x"], "Invalid value for '--seed': .*integer"),
    ],
)
def test_a_typing_error_is_one_line(refuse, arguments, says):
    refuse(*arguments, status=2, says=says)


@pytest.mark.parametrize(
    ("failure", "status", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
        (HetconvError("went\n  wrong"), 1, "hetconv: went wrong"),
        (MemoryError(), 1, "out of memory: choose a smaller --input"),
    ],
)
def test_whatever_stops_it_is_one_line_and_an_exit_status(refuse, net, monkeypatch, failure, status, says):
    def stop(*arguments):
        raise failure

    monkeypatch.setattr(network, "open_source", stop)
    refuse("flops", net, status=status, says=says)


def test_debug_shows_the_traceback(fresh):
    done = fresh("flops", "resnet43", "--debug")
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert done.stderr.splitlines()[-1].startswith("hetconv_cli.errors.ArgumentError: unknown model 'resnet43'")


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"], ["list", "--format", "markdown"]])
def test_a_reader_that_leaves_early_ends_it_silently(folder, arguments):
    command = [sys.executable, "-m", "hetconv_cli", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # before it writes anything: a pipe may hold all that it has to say
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 141)  # 141 is what a shell reports of a program that a closed pipe ended
    assert stderr == b""


def on_a_terminal(folder, *arguments, **environment):
    """Runs `hetconv ...` with both streams on a terminal; the exit status and all that it showed."""
    ours, theirs = pty.openpty()
    variables = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "hetconv_cli", *arguments],
        cwd=folder,
        env=variables | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 4096):
            shown += more
    except OSError:  # how a terminal tells that nobody writes to it any more
        pass
    os.close(ours)
    return process.wait(timeout=60), shown.decode()


@pytest.mark.parametrize(("arguments", "status"), [(["list", "nothing"], 2), (["list", "resnet34"], 0)])
def test_no_escape_codes_where_a_terminal_must_not_get_any(folder, arguments, status):
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        found, shown = on_a_terminal(folder, *arguments, **environment)
        assert found == status
        assert ESCAPE not in shown
        assert "nothing" in shown or "resnet34" in shown


def test_a_terminal_gets_its_error_in_red(folder):
    status, shown = on_a_terminal(folder, "list", "nothing")
    assert (status, shown.startswith(f"{ESCAPE}[31mhetconv: no model matches")) == (2, True)


def test_nothing_but_a_terminal_gets_escape_codes(fresh, net):
    done = fresh("flops", net, "--p", "4", FORCE_COLOR="1", TERM="xterm-256color")
    assert (done.status, done.stderr) == (0, "")
    assert "P=4" in done.stdout
    assert ESCAPE not in done.stdout


def test_a_listing_and_its_completion_never_load_torch(folder):
    code = (
        "import sys\n"
        "from hetconv_cli.cli.main import main\n"
        "from hetconv_cli.cli.options import complete_model\n"
        "assert 'resnet18' in complete_model('resn')\n"
        "try:\n"
        "    main(['list', 'resnet18'])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resnet18" in done.stdout


def test_a_model_is_completed_from_its_first_letters():
    assert [name for name in complete_model("resnet") if "_" not in name] == [
        "resnet101",
        "resnet152",
        "resnet18",
        "resnet34",
        "resnet50",
    ]
    assert complete_model("qqqq") == []


@pytest.mark.parametrize(("words", "index"), [("hetconv flops resnet3", 2), ("hetconv export a.onnx resnet3", 3)])
def test_a_shell_gets_completions(fresh, words, index):
    done = fresh(_HETCONV_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(index))
    assert (done.status, done.stderr) == (0, "")
    assert "resnet34" in done.stdout.split()

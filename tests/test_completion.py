"""Tab completion as a shell asks for it, and the examples of every --help."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, call

from optnet.app.main import NAMES, RUNS, main

QUERIES = {
    "optnet ": ["train", "evaluate", "list", "show", "analyse", "certify", "signal"],
    "optnet tr": ["train"],
    "optnet train optim=": ["optim=adamw", "optim=sgd"],
    "optnet train model.lay": ["model.layer="],
    "optnet train model=hbnet1": ["model=hbnet110_cifar", "model=hbnet164_cifar", "model=hbnet18"],
    "optnet evaluate spl": ["split="],
    "optnet show heavy": ["heavy_ball", "heavy_ball_convex"],
    "optnet analyse ogm": [],
    "optnet signal hbnet2": ["hbnet20_cifar"],
    "optnet certify hbnet2": ["hbnet20_cifar"],
    "optnet list ": [],
}


@pytest.mark.parametrize("line", QUERIES)
def test_what_a_shell_is_told(line, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    monkeypatch.setattr(sys, "argv", ["optnet"])
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == QUERIES[line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("called", [["-sc"], ["train", "-sc"], ["evaluate", "--shell-completion"]], ids=" ".join)
def test_the_function_for_a_shell(shell, called, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["optnet"])
    assert main([*called, f"install={shell}"]) == 0
    out, err = capsys.readouterr()
    assert "-sc query=" in out and "optnet" in out and not err


@pytest.mark.parametrize("wrong", ["install=nosh", "install", "foo=1", "install=bash query=bash", ""])
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_a_wrong_request_is_one_line(program, wrong, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, program, "-sc", *wrong.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out and not list(tmp_path.iterdir())


ASKS = """
export PATH={path}:$PATH; eval "$({install})"; COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; words=($COMP_LINE)
COMP_CWORD=$(( ${{#words[@]}} - 1 )); hydra_bash_completion; echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("install", "line", "found"),
    [("python train.py -sc install=bash", "python train.py schedule=co", "schedule=constant schedule=cosine"),
     ("python evaluate.py -sc install=bash", "python evaluate.py spl", "split=")],
)  # fmt: skip
def test_bash_itself(install, line, found):
    script = ASKS.format(path=Path(sys.executable).parent, install=install, line=line)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == found, done.stderr


@pytest.mark.parametrize("command", ["", *RUNS, *NAMES])
def test_every_help_has_examples(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["optnet"])
    try:
        status = main([*filter(None, [command]), "--help"])
    except SystemExit as ended:
        status = ended.code
    out = capsys.readouterr().out
    assert status == 0 and "examples" in out.lower()
    assert sum(f"optnet {command}" in line or f"python {command}.py" in line for line in out.splitlines()) >= 2

"""The command optnet: list, show, analyse. (Its train and evaluate are in test_command.py.)"""

import contextlib
import io

import pytest

from optnet import Algorithm, find_algorithm, list_algorithms, list_models
from optnet.app.main import main
from optnet.language import declaration, symbols


def test_list(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*list_algorithms(), *list_models(), "mlp"])


@pytest.mark.parametrize("name", list_algorithms())
def test_show_and_analyse_every_algorithm(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["show", name, "--steps", "3"]) == 0
    assert "return" in capsys.readouterr().out
    assert main(["analyse", name, "--steps", "7"]) == 0
    out = capsys.readouterr().out
    assert "error on quadratics" in out and "DOES NOT HOLD" not in out


def test_worst_case(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["analyse", "ogm", "--steps", "4", "--worst-case"]) == 0
    assert "0.02558" in capsys.readouterr().out  # 1 / (2 theta_4^2)


@pytest.mark.parametrize(
    "request_", ["show nonsense", "analyse none.py:f", "analyse hb --kappa 0.5", "analyse hb --steps 0",
     "show hb --steps 0",
                 "show hb --reading nonsense"],
)  # fmt: skip
def test_wrong_requests(request_, capsys):
    assert main(request_.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out


BRACKETS = '''
from optnet import Iterate, Operator

def clipped(T: Operator, x: Iterate, steps: int, *, mode: str = "[bold]a[/] \\x1b[31m"):
    """x_{k+1} = clip[l, u](T(x_k)) [/] [bold red]no[/] :smile: [link=x]y[/link] \\x1b[31m

    Its second paragraph.
    """
    for _ in range(steps):
        x = 0.5 * T(x) + 0.5 * x
    return x

def silent(T: Operator, x: Iterate, steps: int):
    for _ in range(steps):
        x = 0.5 * T(x) + 0.5 * x
    return x
'''
LITERAL = "x_{k+1} = clip[l, u](T(x_k)) [/] [bold red]no[/] :smile: [link=x]y[/link] \\x1b[31m"


@pytest.mark.parametrize("command", ["show", "analyse --worst-case --steps 2", "list"])
def test_what_users_write_is_shown_as_it_is(command, tmp_path, monkeypatch, capsys):
    """Square brackets are no markup, colons no emoji, and control characters are shown, not sent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[m].py").write_text(BRACKETS)
    name = "[m].py:clipped"
    if command == "list":
        method = Algorithm(find_algorithm(name).function, reference="[/]", aliases=("[a]",))
        monkeypatch.setitem(declaration._REGISTRY, "clipped", method)
        assert main(["list"]) == 0
    else:
        assert main([*command.split()[:1], name, *command.split()[1:]]) == 0
    out, err = capsys.readouterr()
    assert not err and "\x1b" not in out
    if command == "list":  # its cells are folded
        rows = [line.split("│")[1:5] for line in out.splitlines() if line.count("│") == 5]
        cells, below = {}, ""
        for name, _, equation, _ in rows:
            below = name.strip() or below
            cells[below] = cells.get(below, "") + equation.strip()
        assert cells["clipped"].replace(" ", "") == LITERAL.replace(" ", "")
    elif command == "show":
        assert LITERAL in out and "mode=[bold]a[/] \\x1b[31m" in out


def test_an_algorithm_without_a_docstring_is_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(BRACKETS)
    assert main(["show", "m.py:silent"]) == 0 and main(["analyse", "m.py:silent"]) == 0
    out = capsys.readouterr().out
    assert "it has no docstring" in out and "the same recurrence: krasnoselskii_mann" in out


WRONG = [
    *(f"analyse hb --kappa {kappa}" for kappa in ("inf", "-inf", "nan", "1e300", "1", "-3", "-1e5", "abc", "1e13")),
    *(f"analyse hb --kappa={kappa}" for kappa in ("inf", "-inf", "nan", "")),
    *(f"{command} hb --steps {steps}" for command in ("show", "analyse") for steps in ("-1", "0", "1.5", "x", "inf")),
    "show gd --steps 1000000000000", "analyse gd --steps 1000000000000", "analyse hb --kappa", "analyse", "show",
    "nonsense", "--nonsense", "analyse hb --nonsense", "list more", "signal", "analyse gd --worst-case --steps 51",
    *(f"signal hbnet20_cifar --size {size}" for size in ("1", "0", "-1", "x")),
    *(f"signal hbnet20_cifar --seed {seed}" for seed in ("-1", "1.5", "99999999999999999999")),
    *(f"signal hbnet20_cifar --batch {batch}" for batch in ("1", "-1", "0")),
    *(f"signal hbnet20_cifar --png {png}" for png in ("/proc/x.png", "none/x.png", "x.jpg", "folder.png", "x/y/z.png",
                                                      "x" * 300 + ".png", "mine.py/x.png")),
    "signal nonsense", "signal hbnet20_cifar norm", "signal hbnet20_cifar norm=nonsense",
    "signal hbnet20_cifar --init nonsense",
]  # fmt: skip


@pytest.mark.parametrize("request_", WRONG, ids=lambda request_: request_[:60])
def test_a_wrong_request_is_one_line_status_2_and_leaves_nothing(request_, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(symbols, "MOST", 5000)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "mine.py").write_text("")
    try:
        status = main(request_.split())
    except SystemExit as stopped:
        status = stopped.code
    out, err = capsys.readouterr()
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and not out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder.png", "mine.py"]


def analysed(*request_):
    """The rows of ``optnet analyse`` by name."""
    buffer = io.StringIO()
    with contextlib.redirect_stdout(buffer):
        assert main(["analyse", *request_]) == 0
    rows, last = {}, ""
    for line in buffer.getvalue().splitlines():
        if line.startswith("│"):
            _, name, text, _ = (part.strip() for part in line.split("│"))
            last = name or last
            rows[last] = f"{rows.get(last, '')} {text}".strip()
    return rows


def test_the_texts_of_the_analysis_agree_with_themselves(tmp_path, monkeypatch):
    rows = analysed("nesterov")
    assert rows["nearest method"] == "nesterov itself; the same recurrence: fista"
    assert rows["bounded"] == "with random operators the largest activation is 46.6 times the input; the limit is 100."
    assert rows["factor per step"] == "not stationary: no repetition in steps 1 to 120"
    assert analysed("agd")["nearest method"] == rows["nearest method"]
    assert analysed("heavy_ball")["factor per step"] == "0.818182: the same step, seen in steps 1 to 120"
    assert "exploding" in analysed("nesterov", "--steps", "40")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(
        "from optnet import Iterate, Operator\n\ndef every_5(T: Operator, x: Iterate, steps: int):\n    previous = x\n"
        "    for k in range(steps):\n        previous = x if k % 5 == 0 else previous\n"
        "        x, previous = T(x) + 0.5 * (x - previous), x\n    return x\n"
    )
    own = analysed("m.py:every_5", "--steps", "7")
    assert own["factor per step"] == "0.983725: a period of 5 steps, seen in steps 1 to 120"
    assert own["nearest method"].startswith("linear_multistep, at a distance of 0.163")


@pytest.mark.parametrize("name, functions", [
    ("admm", "all 1-smooth 0.01-strongly convex f"), ("splitting_admm", "all 1-smooth 0.01-strongly convex f"),
    ("ogm", "all 1-smooth convex f"), ("triple_momentum", "all 1-smooth 0.01-strongly convex f"),
])  # fmt: skip
def test_the_worst_case_says_over_which_functions(name, functions):
    pytest.importorskip("PEPit")
    assert analysed(name, "--worst-case", "--steps", "2")["worst case"].endswith(functions)

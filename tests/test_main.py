"""The command optnet: list, show, analyse. (Its train and evaluate are in test_command.py.)"""

import pytest

from optnet import list_algorithms, list_models
from optnet.app.main import main


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

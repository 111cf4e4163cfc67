"""optnet certify on trained networks: their coefficients as methods, the same networks with others, what is written."""

import json
import math

import matplotlib.image
import pytest
import torch
from helpers import LAYERED, MINE, build, crossed, random_images, train
from test_certificates import assert_bounds
from timm import create_model
from torch import nn

import optnet
from optnet import ModelError, analysis, list_models
from optnet.app.config import Model
from optnet.app.main import main
from optnet.networks.substitution import learned_programs, with_coefficients
from optnet.training.monitoring.monitor import MonitorOptions
from optnet.training.optimizers import OptimOptions

RULES = ("learnable", "consistent", "constants")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run for each rule: an HB-Net on the digits, with coefficients that move fast."""
    folders = {}
    for rule in RULES:
        place = tmp_path_factory.mktemp(rule)
        model = Model("hbnet_small", blocks=[2, 3], widths=[4, 8], coefficients=rule)
        quiet = MonitorOptions(figures="none", graph=False)
        train(place, model=model, epochs=1, optim=OptimOptions(coefficient_lr=0.1), monitor=quiet)
        (folders[rule],) = (place / "runs").glob("*/*")
    return folders


@pytest.mark.parametrize("rule", RULES)
def test_the_certificate_of_a_trained_network_is_a_true_bound(rule, runs):
    pytest.importorskip("PEPit")
    for stage, found in optnet.certify(optnet.load(runs[rule])).items():
        assert found.consistent == (rule != "learnable") and stage.startswith("stages.")
        assert (found.row("learned").convex == math.inf) == (rule == "learnable")
        assert (found.distance > 1e-3) == (rule == "learnable")
        projected = found.programs["projected"]
        assert analysis.inconsistency(projected) < 1e-9
        assert analysis.stability(projected, found.programs["textbook"]).stable
        assert_bounds(found)


def test_the_command_prints_draws_and_scores(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    folder = runs["learnable"]
    summary = json.loads((folder / "summary.json").read_text())
    assert main(["certify", str(folder)]) == 0
    out = capsys.readouterr().out
    for said in ("stages.0.unrolled: heavy_ball, 2 iterations", "no bound", "information_theoretic_exact", "CLARABEL",
                 "P is taken as the identity", "the nearest valid method:", f"{summary['final']:.2f}", "projected",
                 "digits, test", "no: an iterate is", "nearest textbook method"):  # fmt: skip
        assert said in out, said
    assert f"drawn in {folder / 'certificate.png'}" in out.replace("\n", "")
    assert matplotlib.image.imread(folder / "certificate.png").std() > 0.01


def test_json_has_what_is_printed_and_the_coefficients(runs, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("optnet.analysis.figures.certificate_figure", lambda found: Blank())
    picture = tmp_path / "x.png"
    checkpoint = runs["consistent"] / "checkpoints" / "best.pt"
    assert main(["certify", str(checkpoint), "--json", "-o", str(picture), "--split", "validation"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["picture"] == str(picture) and picture.exists() and found["split"] == "validation"
    assert set(found["accuracy"]) == {"learned", "projected", "textbook"}
    summary = json.loads((runs["consistent"] / "summary.json").read_text())
    assert found["accuracy"]["learned"]["top1"] == pytest.approx(summary["best"])
    assert found["accuracy"]["projected"]["loss"] == pytest.approx(found["accuracy"]["learned"]["loss"], rel=1e-4)
    first = found["stages"][0]
    assert first["consistent"] and first["spread"] == 0 and first["solver"] == "CLARABEL"
    assert [row["method"] for row in first["methods"]][:4] == ["learned", "projected", "textbook", "gradient_descent"]
    model = optnet.load(checkpoint)
    values = {(one.stage, one.step, one.term): one.value for one in optnet.coefficients(model)}
    assert first["coefficients"]
    for one in first["coefficients"]:
        assert one["learned"] == values[first["stage"], one["step"], one["term"]]
    assert main(["certify", str(runs["learnable"]), "--json", "--no-accuracy", "-o", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == {} and found["stages"][0]["methods"][0]["convex"] == "unbounded"


def test_models_and_algorithms_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.setattr("optnet.analysis.figures.certificate_figure", lambda found: Blank())
    for subject, file in (("mine.py:mine", "mine"), ("agd", "nesterov"), ("admmnet_small", "admmnet_small")):
        assert main(["certify", subject, "--steps", "2"]) == 0
        assert (tmp_path / f"certificate-{file}.png").read_text() == "drawn"
        assert "projected" in capsys.readouterr().out


class Blank:
    """A figure that takes no time."""

    def savefig(self, file):
        file.write_text("drawn")


@pytest.mark.parametrize("request_", [
    "certify nonsense", "certify none.pt", "certify a/folder", "certify resnet18", "certify mlp", "certify pdhg",
    "certify hb --kappa 1", "certify hb --kappa nan", "certify hb --steps 0", "certify hb -o x.txt", "certify",
    "certify hb -o none/x.png", "certify hb --split nonsense", "certify notes.txt", "certify mine.py:branches",
])  # fmt: skip
def test_a_wrong_request_is_one_line_and_writes_nothing(request_, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "mine.py").write_text(MINE)
    try:
        status = main(request_.split())
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and not out
    assert {file.name for file in tmp_path.iterdir()} - {"__pycache__"} == {"notes.txt", "mine.py"}


def test_missing_data_is_said_with_a_way_out(runs, monkeypatch, capsys):
    def missing(*args, **options):
        raise optnet.DataError("data=digits is not there")

    monkeypatch.setattr("optnet.app.subjects.load_as", missing)
    assert main(["certify", str(runs["constants"])]) == 2
    assert "--no-accuracy" in capsys.readouterr().err


@torch.no_grad()
def shaken(model, scale=0.1):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".coefficients" in name:
            parameter.add_(scale * torch.randn_like(parameter))
    return model


OTHER_SUMS = ("dense", "dense with skips", "dense_bc", "projected dual")
"""DenseNet starts with sums that have no fixed point. A projected stage does not know that a start is a dual."""


@pytest.mark.parametrize("family, rule", crossed(LAYERED, ["learnable", "fixed", "consistent", "stable", "dynamic"]))
def test_every_network_is_certified_and_is_the_same_with_its_own_coefficients(family, rule):
    init = {"coefficient_init": "ancestor"} if rule == "stable" else {}
    model = shaken(build(**{**LAYERED[family], "coefficients": rule, **init}))
    images = random_images()
    stages = learned_programs(model)
    same = with_coefficients(model, {stage: one.program.weights() for stage, one in stages.items()})
    assert torch.allclose(same(images), model(images), atol=1e-5) == (rule != "dynamic" or family == "plain")
    assert all(one.per_sample == (rule == "dynamic" and family != "plain") for one in stages.values())
    certificates = optnet.certify(model, worst_cases=False)
    assert certificates.keys() == stages.keys()
    projected = with_coefficients(
        model, {stage: one.programs["projected"].weights() for stage, one in certificates.items()}
    )
    if max(one.distance for one in certificates.values()) > 0.01:
        assert not torch.allclose(projected(images), model(images), atol=1e-4)
    if rule in ("consistent", "stable") and family not in OTHER_SUMS:
        assert all(one.consistent for one in certificates.values())


def test_channels_are_certified_by_their_mean_and_spread():
    model = build(**LAYERED["basic"], per_channel=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".coefficients." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for stage, one in learned_programs(model).items():
        module = model.get_submodule(stage)
        for row in module.program.combines:
            channels = module.learned()[row.value].detach().view(len(row.terms), -1)
            for term, values in zip(row.terms, channels, strict=True):
                assert one.program.weights()[row.value, term] == pytest.approx(float(values.double().mean()))
                assert 0 < float(values.std(unbiased=False)) <= one.spread * (1 + 1e-6)
    assert model.stages[0].unrolled.learned() and optnet.certify(model, worst_cases=False)


def test_a_coefficient_that_was_fixed_at_0_has_no_layer():
    def gated(T: optnet.Operator, x: optnet.Iterate, steps: int, *, gate: float = 0.0):
        for _ in range(steps):
            x = gate * T(x) + x
        return x

    with pytest.raises(ModelError, match=r"the network has no layer stages\.0.*fixed at 0"):
        model = optnet.Network.from_algorithm(gated, (1,), (4,), layer="preact_basic", coefficients="fixed")
        (program,) = (one.program for one in learned_programs(model).values())
        with_coefficients(model, {"stages.0.unrolled": dict.fromkeys(program.weights(), 0.5)})


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in list_models() if name.endswith("_cifar")])
def test_every_named_model_has_a_certificate(name):
    pytest.importorskip("PEPit")
    for found in optnet.certify(create_model(name)).values():
        assert found.row("projected").convex < math.inf


def test_a_plain_module_has_none():
    with pytest.raises(ModelError, match="no unrolled algorithm"):
        optnet.certify(nn.Identity())

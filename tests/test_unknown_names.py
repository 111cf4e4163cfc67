"""Unknown names of keys, groups, models, optimizers, layers and their options: the nearest right one comes first."""

import pytest
from helpers import MINE, call, some

from optnet.errors import ConfigError, ModelError, did_you_mean, foreign, reason, unknown

NEAREST = {
    "algorithm=heavy_bal": "algorithm=heavy_bal is unknown; did you mean heavy_ball",
    "algorithm=mine.py:mne": "mine.py has no function 'mne'; did you mean mine?",
    "algorithm=heavy_ball algorithm.bet=1": "there is no key algorithm.bet; did you mean algorithm.beta?",
    "model=resnt18": "model=resnt18 is unknown; did you mean resnet18",
    "model.name=resnt18": "model=resnt18 is unknown; did you mean resnet18",
    "model=resnet18.a1_in1l": "did you mean resnet18.a1_in1k",
    "model=resnet18.nonsense_tag": "It is one of resnet18.a1_in1k",
    "model=hbnet20_cifar.nonsense": "hbnet20_cifar has no weights",
    "model.layer=basi": "model.layer=basi is unknown; did you mean basic?",
    "model.act_layer=rellu": "act_layer=rellu is unknown; did you mean relu",
    "model=resnet18 model.act_layer=rellu": "act_layer=rellu is unknown; did you mean relu",
    "model=mlp model.act_layer=rellu": "act_layer=rellu is unknown; did you mean relu",
    "model=resnet18 model.kwargs.norm_layer=batchnor": "norm_layer=batchnor is unknown; did you mean batchnorm",
    "model=resnet18 model.kwargs.drop_pth_rate=0.1": "no option 'drop_pth_rate'; did you mean drop_path_rate",
    "model.kwargs.drop_rte=0.1": "no option 'drop_rte'; did you mean drop_rate",
    "model.kwargs.num_classes=3": "model.kwargs.num_classes=3 cannot be set: the data says",
    "modle=resnet18": "there is no key modle; did you mean model?",
    "epoch=3": "there is no key epoch; did you mean epochs?",
    "+epoch=3": "there is no key epoch; did you mean epochs?",
    "++epoch=3": "there is no key epoch; did you mean epochs?",
    "~epochs": "~epochs: a key cannot be left out; give it a value",
    "+foo=1": "there is no key foo",
    "+data.foo=1": "there is no key data.foo; data has name, root",
    "optim.lr=3": "there is no key optim.lr; did you mean lr?",
    "schedul=cosine": "there is no key schedul; did you mean schedule",
    "optim=adm": "optim=adm is unknown; did you mean adamw? It is one of adamw, sgd",
    "optim=": "optim= is empty; give a value, like adamw",
    "optim.name=adamx": "optim.name=adamx is unknown; did you mean adamax",
    "optim.name=ADAMW": "did you mean adamw",
    "optim=adamw optim.kwargs.bet=1": "there is no option 'bet'; did you mean betas?",
    "optim=adamw optim.kwargs={bet:1}": "there is no option 'bet'; did you mean betas?",
    "optim.name=adan optim.kwargs.weight_decy=1": "there is no option 'weight_decy'; did you mean weight_decay?",
    "schedule=cosin": "schedule=cosin is unknown; did you mean cosine?",
    "schedule.name=cosin": "schedule.name=cosin is unknown; did you mean cosine?",
    "trainer=backpro": "trainer=backpro is unknown; did you mean backprop?",
    "trainer.name=backpro": "trainer.name=backpro is unknown; did you mean backprop?",
    "trainer.mixupp=1": "there is no key trainer.mixupp; did you mean trainer.mixup?",
    "trainer=lpom trainer.sweps=1": "there is no key trainer.sweps; did you mean trainer.sweeps?",
    "init=hee": "init=hee is unknown; did you mean he?",
    "data=digit": "data=digit is unknown; did you mean digits?",
    "data.augment=shif": "data.augment=shif is unknown; did you mean shift?",
    "experiment=cifar_hbnet_n8": "experiment=cifar_hbnet_n8 is unknown; did you mean cifar_hbnet_n",
    "monitor=evrything": "monitor=evrything is unknown; did you mean everything?",
    "monitor.figure=none": "there is no key monitor.figure; did you mean monitor.figures?",
    "cluster=loca": "cluster=loca is unknown; did you mean local?",
    "data.root=": "data.root= is empty; give a value",
    "name=": "name= is empty",
    "device=": "device= is empty; give a value like auto",
    "hydra/sweeper=optna": "hydra/sweeper=optna is unknown; did you mean optuna?",
    "--config-name nothing": "there is no configuration 'nothing'; leave out --config-name",
    "--config-dir none": "--config-dir none: there is no such folder",
    "--config-path none": "--config-path none: there is no such folder",
    "model.blocks=[100000000,1,1]": "must be at most 10,000 in each stage",
}  # fmt: skip
"""A request of train.py: what its line says."""
EVALUATED = {
    "model=resnt18": "model=resnt18 is unknown; did you mean resnet18",
    "model=[hbnet_small,resnt18]": "model=resnt18 is unknown; did you mean resnet18",
    "model=resnet18.a1_in1l": "did you mean resnet18.a1_in1k",
    "modl=resnet18": "there is no key modl; did you mean model?",
    "checkpint=x": "there is no key checkpint; did you mean checkpoint?",
    "model=hbnet_small data=digit": "data=digit is unknown; did you mean digits?",
    "model=hbnet_small split=tst": "split=tst is unknown; did you mean test?",
    "model=hbnet_small data.root=x": "data.root needs data=, like data=folder",
    "model=hbnet_small data=digits data.rot=x": "there is no key data.rot; did you mean data.root",
    "model=hbnet_small output=": "output= is empty",
}


CASES = [("train", request, said) for request, said in NEAREST.items()]
CASES += [("evaluate", request, said) for request, said in EVALUATED.items()]
QUICK = CASES[::3]


@pytest.mark.parametrize("case", some(CASES, *QUICK))
@pytest.mark.sampled(7)
def test_the_nearest_right_name_is_in_the_line_before_any_list(case, tmp_path, monkeypatch, capsys):
    program, request, said = case
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    assert call(monkeypatch, program, *request.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err and not out, err
    assert "It is one of" not in err or "did you mean" not in err or err.index("did you") < err.index("It is one of")
    assert {file.name for file in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


class Bad:
    def __init__(self, alpha=1, beta=2):
        pass


def anything(error):
    with foreign("thing=x", ModelError):
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [(ValueError("no\nmore"), "no"), (AssertionError(), "AssertionError"), (KeyError("a"), "there is no 'a'"),
     (SystemExit(7), "it ends the program with 7"), (MemoryError(), "MemoryError"), (RecursionError("deep"), "deep"),
     (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "bad"), (OSError(2, "none", "f"), "none")],
)  # fmt: skip
def test_whatever_foreign_code_raises_is_one_line(error, said):
    with pytest.raises(ModelError) as raised:
        anything(error)
    assert str(raised.value).startswith("thing=x: ") and said in str(raised.value) and "\n" not in str(raised.value)


def test_ours_and_signals_pass_the_boundary():
    for error in (ConfigError("ours"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as raised:
            anything(error)
        assert raised.value is error


def test_an_option_that_a_constructor_does_not_take():
    with pytest.raises(TypeError) as raised:
        Bad(alpa=1)
    assert reason(raised.value) == "there is no option 'alpa'; did you mean alpha?"


def test_the_nearest_name():
    assert did_you_mean("SGD", ["sgd", "lamb"]) == "; did you mean sgd?" and did_you_mean("zzz", ["sgd"]) == ""
    assert unknown("x", "ab", ["abc", "d"]) == "x=ab is unknown; did you mean abc? It is one of abc, d"
    assert unknown("x", "zz", ["abc", "d"]) == "x=zz is unknown; it is one of abc, d"
    assert unknown("x", "zz", map(str, range(99))) == "x=zz is unknown"

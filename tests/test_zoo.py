"""Registered models, exact ancestors, conversion and published weights (from local files)."""

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from test_network import pictures, settle
from torch import nn

import optnet
from optnet import ModelError, convert

ANCESTORS = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=7),
    "resnet34": lambda: timm.create_model("resnet34", num_classes=7),
    "resnet50": lambda: timm.create_model("resnet50", num_classes=7),
    "resnetv2_50": lambda: timm.create_model("resnetv2_50", num_classes=7),
    "densenet121": lambda: timm.create_model("densenet121", num_classes=7),
    "torchvision resnet34": lambda: torchvision.models.resnet34(num_classes=7),
    "torchvision densenet121": lambda: torchvision.models.densenet121(num_classes=7),
}


def difference(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("coefficients", ["learnable", "fixed"])
@pytest.mark.parametrize("name", ANCESTORS)
def test_ancestors_are_reproduced(name, coefficients):
    torch.manual_seed(0)
    theirs = settle(ANCESTORS[name]())
    ours = convert.from_timm(theirs, coefficients=coefficients)
    x = pictures(4, 3, 64)
    for training in (False, True):
        theirs.train(training), ours.train(training)
        with torch.no_grad():
            assert difference(ours(x), theirs(x)) < 1e-5
    extra = sum(p.numel() for n, p in ours.named_parameters() if ".coefficients." in n)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + extra
    assert bool(extra) == (coefficients == "learnable")


@pytest.mark.parametrize("name", ANCESTORS)
def test_ancestors_are_reproduced_after_a_step(name):
    torch.manual_seed(0)
    theirs = settle(ANCESTORS[name]()).double()
    ours = convert.from_timm(theirs)
    x, labels = pictures(4, 3, 64).double(), torch.tensor([0, 1, 2, 3])
    for model in (theirs, ours):
        model.train()
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(".coefficients." not in parameter_name)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        model.eval()
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-9


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnetv2_18", "resnetv2_50", "densenet121", "densenet161"])
def test_round_trip(name):
    theirs = settle(timm.create_model(name, num_classes=7))
    ours = convert.from_timm(theirs)
    back = convert.to_timm(ours)
    assert type(back) is type(theirs)
    one, two = theirs.state_dict(), back.state_dict()
    assert list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)
    stage = ours.stages[1].steps
    row = list(stage.program.combines)[1].value
    with torch.no_grad():
        stage.body.get_parameter(f"coefficients.{row}")[0] += 0.25
    with pytest.raises(ModelError, match=f"coefficient of .* in stages.1.steps {row} is"):
        convert.to_timm(ours)


def test_conversion_refuses_what_it_cannot_represent():
    for name in (
        "resnet50d",
        "resnext50_32x4d",
        "seresnet50",
        "resnetblur50",
        "vit_tiny_patch16_224",
        "mobilenetv3_small_050",
    ):
        with pytest.raises(ModelError) as error:
            convert.from_timm(timm.create_model(name))
        assert "\n" not in str(error.value)
    for model in ("hbnet20_cifar", "admmnet34"):
        with pytest.raises(ModelError):
            convert.to_timm(timm.create_model(model))
    with pytest.raises(ModelError, match="carried across stages"):
        convert.to_timm(timm.create_model("hbnet18", transition="project"))


def test_momentum_resnet_and_lm_resnet_are_settings():
    x = torch.randn(3, 5, dtype=torch.float64)
    layers = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double() for _ in range(4)]
    options = {"steps": 4, "operators": {"T": lambda call: layers[call.index]}, "dtype": torch.float64}
    momentum = optnet.unroll(optnet.find_algorithm("heavy_ball"), reading="residual", step=0.1, beta=0.9, **options)
    v, y = torch.zeros_like(x), x
    for layer in layers:
        v = 0.9 * v + 0.1 * layer(y)
        y = y + v
    assert torch.allclose(momentum(x), y, rtol=1e-12)
    multistep = optnet.unroll(optnet.find_algorithm("lm_resnet"), reading="residual", k=0.3, **options)
    before, y = x, x
    for layer in layers:
        y, before = 0.7 * y + 0.3 * before + layer(y), y
    assert torch.allclose(multistep(x), y, rtol=1e-12)


class Branch(nn.Module):
    def __init__(self, before, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))


class DMRNet(nn.Module):
    """Written by hand from Zhao et al. 2018: two streams, merge-and-run blocks, projections, a merged last block."""

    def __init__(self, blocks, widths):
        super().__init__()
        self.blocks = blocks
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        self.left, self.right, self.lines = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        before = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage and block == 0 else 1
                self.left.append(Branch(before, width, stride))
                self.right.append(Branch(before, width, stride))
                if stage and block == 0:
                    for _ in range(2):
                        line = nn.Conv2d(before, width, 1, 2, bias=False)
                        self.lines.append(nn.Sequential(line, nn.BatchNorm2d(width)))
                before = width
        self.fc = nn.Linear(before, 10)

    def forward(self, x):
        left = right = self.stem(x)
        lines = iter(self.lines)
        last = len(self.left) - 1
        for i, (f, g) in enumerate(zip(self.left, self.right, strict=True)):
            projects = i and i % self.blocks == 0
            one, two = (next(lines)(left), next(lines)(right)) if projects else (left, right)
            mean = (one + two) / 2
            if i == last:
                return self.fc((mean + f(left) + g(right)).relu().mean((2, 3)))
            left, right = (mean + f(left)).relu(), (mean + g(right)).relu()


@pytest.mark.parametrize("name, blocks", [("admmnet20_cifar", 3), ("admmnet56_cifar", 9)])
def test_admm_net_is_dmrnet(name, blocks):
    torch.manual_seed(0)
    ours, reference = settle(timm.create_model(name)), DMRNet(blocks, (16, 32, 64)).eval()

    def copy(target, source):
        mine = dict(source.state_dict())
        target.load_state_dict(dict(zip(target.state_dict(), mine.values(), strict=True)))

    copy(reference.stem, ours.stem)
    copy(reference.fc, ours.head.fc)
    lines = iter(reference.lines)
    for s, stage in enumerate(ours.stages):
        body = stage.steps.body
        for k in range(blocks):
            copy(reference.left[s * blocks + k], body.get_submodule(f"T_{2 * k}"))
            copy(reference.right[s * blocks + k], body.get_submodule(f"T_{2 * k + 1}"))
        if s:
            copy(next(lines), body.shortcut_x)
            copy(next(lines), body.shortcut_y)
    with torch.no_grad():
        x = pictures(4, 3, 32)
        assert difference(ours(x), reference(x)) < 1e-5


def test_published_weights_load_from_a_local_file(tmp_path):
    torch.manual_seed(0)
    theirs = settle(timm.create_model("resnet18"))
    file = tmp_path / "resnet18.safetensors"
    save_file(theirs.state_dict(), file)
    ours = timm.create_model("hbnet18", pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    x = pictures(2, 3, 64)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-5
    own = tmp_path / "own.safetensors"
    save_file(ours.state_dict(), own)
    again = timm.create_model("hbnet18", checkpoint_path=str(own)).eval()
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))


def test_pretrained_tags_point_at_the_ancestors():
    for tag, ancestor in optnet.zoo.PRETRAINED.items():
        published = timm.get_pretrained_cfg(ancestor)
        mine = timm.get_pretrained_cfg(tag)
        assert mine.hf_hub_id == published.hf_hub_id == f"timm/{ancestor}"
        assert (mine.mean, mine.input_size, mine.crop_pct) == (published.mean, published.input_size, published.crop_pct)
        assert mine.classifier == "head.fc" and mine.first_conv == "stem.conv"


def test_only_coefficients_are_tuned():
    model = optnet.freeze_all_but_coefficients(timm.create_model("hbnet20_cifar"))
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == model.no_weight_decay() and free


SIZES = {  # parameters in millions, coefficients left out, of the ancestors as published
    "hbnet18": 11.69, "hbnet34": 21.80, "hbnet50": 25.56, "agdnet121": 7.98, "agdnet40_cifar": 1.02,
    "hbnet110_cifar": 1.73,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    model = timm.create_model(name)
    count = sum(p.numel() for n, p in model.named_parameters() if ".coefficients." not in n)
    assert round(count / 1e6, 2) == pytest.approx(SIZES[name], abs=0.011)


@pytest.mark.parametrize("tag, ancestor", optnet.zoo.PRETRAINED.items())
def test_parameters_are_the_ancestors_and_the_coefficients(tag, ancestor):
    model = timm.create_model(tag.split(".")[0])
    table = len(optnet.coefficients(model))
    theirs = sum(p.numel() for p in timm.create_model(ancestor.split(".")[0]).parameters())
    assert table and sum(p.numel() for p in model.parameters()) == theirs + table


def by_cost(name):
    return name if name.endswith("_small") else pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("name", [by_cost(name) for name in optnet.list_models()])
def test_every_model_compiles_exports_and_runs_as_onnx(name, tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    model = settle(timm.create_model(name))
    x = pictures(2, 3, min(64, model.pretrained_cfg["input_size"][1]))
    features = timm.create_model(name, features_only=True)
    assert [f.shape[1] for f in features(x)] == features.feature_info.channels()
    torch._dynamo.reset()
    with torch.no_grad():
        wanted = model(x)
        assert difference(torch.compile(model, fullgraph=True, backend="aot_eager")(x), wanted) < 1e-5
        assert difference(torch.export.export(model, (x,)).module()(x), wanted) < 1e-5
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    (got,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": x.numpy()})
    assert difference(torch.from_numpy(got), wanted) < 1e-4

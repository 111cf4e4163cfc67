"""Registered models, exact ancestors, conversion and published weights (from local files)."""

import pytest
import timm
import torch
import torchvision
from helpers import crossed, random_images, settle, some, twice
from safetensors.torch import save_file
from torch import nn

import optnet
from optnet import ModelError
from optnet.networks import convert
from optnet.networks.zoo import MODELS
from optnet.training import checkpoint

ANCESTORS = {
    "resnet18": lambda: timm.create_model("resnet18", num_classes=7),
    "resnet34": lambda: timm.create_model("resnet34", num_classes=7),
    "resnet50": lambda: timm.create_model("resnet50", num_classes=7),
    "resnetv2_50": lambda: timm.create_model("resnetv2_50", num_classes=7),
    "densenet121": lambda: timm.create_model("densenet121", num_classes=7),
    "torchvision resnet34": lambda: torchvision.models.resnet34(num_classes=7),
    "torchvision densenet121": lambda: torchvision.models.densenet121(num_classes=7),
}

PUBLISHED = {f"{name}.{tag}": ancestor for name, preset in MODELS.items() for tag, ancestor in preset.published.items()}


def difference(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name, coefficients", crossed(ANCESTORS, ["learnable", "fixed"]))
@pytest.mark.sampled(3)
def test_ancestors_are_reproduced(name, coefficients):
    torch.manual_seed(0)
    theirs = settle(ANCESTORS[name]())
    ours = convert.from_timm(theirs, coefficients=coefficients)
    x = random_images(4, 3, 64)
    for training in (False, True):
        theirs.train(training), ours.train(training)
        with torch.no_grad():
            assert difference(ours(x), theirs(x)) < 1e-5
    extra = sum(p.numel() for n, p in ours.named_parameters() if ".coefficients." in n)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + extra
    assert bool(extra) == (coefficients == "learnable")


@pytest.mark.parametrize("name", some(ANCESTORS, "resnet18", "resnetv2_50", "densenet121"))
@pytest.mark.sampled(1)
def test_ancestors_are_reproduced_after_a_step(name):
    torch.manual_seed(0)
    theirs = settle(ANCESTORS[name]()).double()
    ours = convert.from_timm(theirs)
    x, labels = random_images(4, 3, 64).double(), torch.tensor([0, 1, 2, 3])
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


ROUND = ["resnet18", "resnet50", "resnetv2_18", "resnetv2_50", "densenet121", "densenet161", "convnext_atto"]


@pytest.mark.parametrize("name", some(ROUND, "resnet18", "resnetv2_18", "densenet121"))
@pytest.mark.sampled(1)
def test_round_trip(name):
    theirs = settle(timm.create_model(name, num_classes=7))
    ours = convert.from_timm(theirs)
    back = convert.to_timm(ours)
    assert type(back) is type(theirs)
    one, two = theirs.state_dict(), back.state_dict()
    assert list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)
    stage = ours.stages[1].unrolled
    row = list(stage.program.combines)[1].value
    with torch.no_grad():
        stage.body.get_parameter(f"coefficients.{row}")[0] += 0.25
    with pytest.raises(ModelError, match=f"coefficient of .* in stages.1.unrolled {row} is"):
        convert.to_timm(ours)


def silu_inside(model):
    for block in model.layer1:
        block.act1 = nn.SiLU()
    return model


UNLIKE = {
    **{name: lambda name=name: timm.create_model(name, layers=[1] * 4) for name in (
        "resnet50d", "resnext50_32x4d", "seresnet50", "resnetblur50", "wide_resnet50_2",
    )},
    **{name: lambda name=name: timm.create_model(name) for name in (
        "resnetv2_50x1_bit", "densenetblur121d", "edgenext_xx_small", "beit_base_patch16_224", "mobilenetv3_small_050",
    )},
    "stochastic depth": lambda: timm.create_model("resnet18", drop_path_rate=0.5),
    "another activation": lambda: silu_inside(timm.create_model("resnet18")),
    "without weights": lambda: timm.create_model("resnet18", device="meta"),
    "no model": lambda: "resnet18",
}  # fmt: skip


@pytest.mark.parametrize("name", UNLIKE)
def test_conversion_refuses_what_it_cannot_represent(name):
    with pytest.raises(ModelError) as error:
        convert.from_timm(UNLIKE[name]())
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("options", [{"nonsense": 1}, {"num_classes": 3}, {"in_chans": 1}, {"layer": "bottleneck"}])
@pytest.mark.sampled(2)
def test_conversion_refuses_options_that_the_weights_do_not_fit(options):
    with pytest.raises(ModelError) as error:
        convert.from_timm(timm.create_model("resnet18", num_classes=7), **options)
    assert "\n" not in str(error.value)


OWN = {  # networks of ours that timm has no model for, and what is said of them
    "cifar": ({"model_name": "hbnet20_cifar"}, "no model with layer=basic, widths="),
    "two streams": ({"model_name": "admmnet34"}, "no model with two streams"),
    "carried across stages": ({"model_name": "hbnet18", "transition": "project"}, "an iterate carried across stages"),
    "map": (
        {"model_name": "hbnet18", "algorithm": "gradient_descent", "layer": "basic", "reading": "map"},
        r"no counterpart of timm's layer2\.0\.downsample\.0\.weight",
    ),
    "stem": ({"model_name": "hbnet18", "stem_width": 32}, r"no counterpart of timm's conv1\.weight"),
    "two calls a step": (
        {"model_name": "hbnet18", "algorithm": twice, "blocks": [1] * 4},
        r"no counterpart of this network's stages\.0\.unrolled\.body\.T_1",
    ),
    "one iterate of a dense stage": (
        {"model_name": "agdnet121", "constants": {"all_iterates": False}},
        r"no counterpart of timm's features\.transition1\.norm\.weight",
    ),
}


@pytest.mark.parametrize("name", OWN)
def test_to_timm_refuses_what_timm_does_not_have(name):
    options, said = OWN[name]
    with pytest.raises(ModelError, match=said) as error:
        convert.to_timm(timm.create_model(**options))
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match=r"converts an optnet\.Network or TokenNetwork, not Linear"):
        convert.to_timm(nn.Linear(3, 3))


def test_to_timm_sees_coefficients_whose_mean_alone_is_the_ancestors():
    model = timm.create_model("hbnet18", per_channel=True)
    row = model.stages[1].unrolled.body.get_parameter("coefficients.x2").data
    row[0] += 0.5
    row[1] -= 0.5
    with pytest.raises(ModelError, match="different outputs"):
        convert.to_timm(model)


@pytest.mark.parametrize(
    "name, option",
    crossed(["hbnet18", "agdnet121"], [{"act_layer": "silu"}, {"global_pool": "max"}, {"drop_rate": 0.3}]),
)
@pytest.mark.sampled(1)
def test_options_go_to_timm_with_the_network(name, option):
    ours = settle(timm.create_model(name, num_classes=5, **option))
    theirs = convert.to_timm(ours)
    x = random_images(2, 3, 64)
    with torch.no_grad():
        assert difference(theirs(x), ours(x)) < 1e-5
    assert convert.from_timm(theirs).head.drop.p == option.get("drop_rate", 0) if "drop_rate" in option else True


def test_conversion_keeps_the_norms_constants_and_leaves_the_model_alone():
    torch.manual_seed(0)
    theirs = settle(timm.create_model("resnet18", num_classes=7))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.01
    theirs.train().bn1.eval()
    before = {key: value.clone() for key, value in theirs.state_dict().items()}
    ours = convert.from_timm(theirs)
    assert theirs.training and theirs.layer1.training and not theirs.bn1.training
    assert all(torch.equal(value, before[key]) for key, value in theirs.state_dict().items())
    with torch.no_grad():
        assert difference(ours.eval()(random_images(2, 3, 64)), theirs.eval()(random_images(2, 3, 64))) < 1e-5
    assert {(m.eps, m.momentum) for m in ours.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-3, 0.01)}


def test_a_resnet_becomes_a_momentum_resnet():
    torch.manual_seed(0)
    theirs = settle(timm.create_model("resnet18", num_classes=7))
    ways = [{"algorithm": "momentum_resnet"}, {"constants": {"step": 0.1, "beta": 0.9}}]
    one, two = (convert.from_timm(theirs, **options) for options in ways)
    x = random_images(2, 3, 64)
    with torch.no_grad():
        assert difference(one(x), two(x)) < 1e-5 and difference(one(x), theirs(x)) > 1e-2


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
        body = stage.unrolled.body
        for k in range(blocks):
            copy(reference.left[s * blocks + k], body.get_submodule(f"T_{2 * k}"))
            copy(reference.right[s * blocks + k], body.get_submodule(f"T_{2 * k + 1}"))
        if s:
            copy(next(lines), body.shortcut_x)
            copy(next(lines), body.shortcut_y)
    with torch.no_grad():
        x = random_images(4, 3, 32)
        assert difference(ours(x), reference(x)) < 1e-5


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """timm's resnet18 with random weights, and its safetensors file as it would be downloaded."""
    torch.manual_seed(0)
    theirs = settle(timm.create_model("resnet18"))
    file = tmp_path_factory.mktemp("published") / "resnet18.safetensors"
    save_file(theirs.state_dict(), file)
    return theirs, {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}


def test_published_weights_load_from_a_local_file(published, tmp_path):
    theirs, pretrained = published
    ours = timm.create_model("hbnet18", **pretrained).eval()
    x = random_images(2, 3, 64)
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-5
    own = tmp_path / "own.safetensors"
    save_file(ours.state_dict(), own)
    again = timm.create_model("hbnet18", checkpoint_path=str(own)).eval()
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))


@pytest.mark.parametrize("options", [{"num_classes": 10}, {"num_classes": 0}, {"in_chans": 1}, {"features_only": True}])
def test_published_weights_are_adapted_as_timm_does(published, options):
    _, pretrained = published
    theirs, ours = (timm.create_model(name, **pretrained, **options).eval() for name in ("resnet18", "hbnet18"))
    x = random_images(2, options.get("in_chans", 3), 64)
    with torch.no_grad():
        if "features_only" in options:
            assert difference(ours(x)[-1], theirs(x)[-1]) < 1e-5
        else:
            assert difference(ours.forward_features(x), theirs.forward_features(x)) < 1e-5
            assert ours(x).shape == theirs(x).shape


def test_a_checkpoint_does_not_need_the_published_weights(published):
    _, pretrained = published
    kwargs = {**pretrained, "num_classes": 5}
    for name in ("hbnet18", "resnet18"):
        model = timm.create_model(name, **kwargs)
        described = checkpoint.describe(model, name, kwargs)
        assert "pretrained" not in str(described["kwargs"])
        again = checkpoint.build(described, model.state_dict())
        assert torch.equal(again.eval()(random_images(1, 3, 64)), model.eval()(random_images(1, 3, 64)))


def test_pretrained_tags_point_at_the_ancestors():
    for tag, ancestor in PUBLISHED.items():
        published = timm.get_pretrained_cfg(ancestor)
        mine = timm.get_pretrained_cfg(tag)
        assert mine.hf_hub_id == published.hf_hub_id == f"timm/{ancestor}"
        assert (mine.mean, mine.input_size, mine.crop_pct) == (published.mean, published.input_size, published.crop_pct)
        assert mine.classifier == "head.fc" and mine.first_conv == "stem.conv"


def test_only_coefficients_are_tuned():
    model = optnet.freeze_all_but_coefficients(timm.create_model("hbnet20_cifar"))
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert free == len(optnet.coefficients(model)) > 0
    with pytest.raises(ModelError, match="no learnable coefficients"):
        optnet.freeze_all_but_coefficients(timm.create_model("gdnet_small"))


SIZES = {  # parameters in millions, coefficients left out, of the ancestors as published
    "hbnet18": 11.69, "hbnet34": 21.80, "hbnet50": 25.56, "agdnet121": 7.98, "agdnet40_cifar": 1.02,
    "hbnet110_cifar": 1.73, "hbconvnext_tiny": 28.59,
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    model = timm.create_model(name, device="meta")
    count = sum(p.numel() for n, p in model.named_parameters() if ".coefficients." not in n)
    assert round(count / 1e6, 2) == pytest.approx(SIZES[name], abs=0.011)


@pytest.mark.parametrize("tag, ancestor", PUBLISHED.items())
def test_parameters_are_the_ancestors_and_the_coefficients(tag, ancestor):
    model = timm.create_model(tag.split(".")[0])
    fixed = tag.startswith("optnet_resnet")
    table = 0 if fixed else len(optnet.coefficients(model))
    theirs = sum(p.numel() for p in timm.create_model(ancestor.split(".")[0], device="meta").parameters())
    assert (fixed or table) and sum(p.numel() for p in model.parameters()) == theirs + table


@pytest.mark.parametrize("name", MODELS)
def test_learnable_coefficients_are_all_that_is_added(name):
    learnable, fixed = (timm.create_model(name, coefficients=how, device="meta") for how in ("learnable", "fixed"))
    added = sum(p.numel() for p in learnable.parameters()) - sum(p.numel() for p in fixed.parameters())
    assert added == len(optnet.coefficients(fixed))
    assert bool(added) != name.startswith("gdnet")


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("name", some(sorted(MODELS), "hbnet_small"))  # those with feature maps
def test_every_model_compiles_exports_and_runs_as_onnx(name, tmp_path):
    import onnxruntime

    torch.manual_seed(0)
    model = settle(timm.create_model(name))
    x = random_images(2, 3, min(64, model.pretrained_cfg["input_size"][1]))
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

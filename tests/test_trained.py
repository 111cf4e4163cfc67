"""optnet.load: the model that evaluate.py scores, with the preprocessing and the classes of its training."""

import subprocess
import sys

import pytest
import timm
import torch
from helpers import ROOT, class_folder, config, go, only_run, prepare
from PIL import Image
from torchvision import transforms

import optnet
from optnet.app import evaluate as assess
from optnet.app.config import Evaluate, Model
from optnet.errors import CheckpointError, DataError
from optnet.training import checkpoint


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    class_folder(root, classes=("cat", "dog", "emu"), size=40)
    for file in sorted((root / "cat").iterdir())[::2]:  # turned by their metadata
        with Image.open(file) as opened:
            exif = opened.getexif()
            exif[274] = 6
            opened.save(file, exif=exif)
    return root


MINE = """
from optnet import Iterate, Operator

def mine(T: Operator, x: Iterate, steps: int, *, pull: float = 0.3) -> Iterate:
    for _ in range(steps):
        x = pull * T(x) + x
    return x
"""
MODELS = {
    "ours": {"model": Model(blocks=[1, 1], widths=[4, 8])},
    "own algorithm": {"model": Model(blocks=[1, 1], widths=[4, 8]), "algorithm": MINE},
    "timm": {"model": Model("test_resnet")},
    "timm's ViT of a fixed size": {"model": Model("test_vit", kwargs={"img_size": 32})},
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def run(request, pictures, tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    options = dict(MODELS[request.param])
    if "algorithm" in options:
        file = place / "mine.py"
        file.write_text(MINE)
        options["algorithm"] = {"name": f"{file}:mine", "pull": 0.5}
    made = config(place, epochs=1, batch_size=8, **options)
    made.data.name, made.data.root, made.data.size = "folder", str(pictures), 32
    made.data.crop, made.data.interpolation, made.data.std = 0.8, "bicubic", [0.3, 0.4, 0.5]
    go(prepare(made))
    if "algorithm" in options:
        file.unlink()  # it is not needed again
    return only_run(place)


@pytest.mark.parametrize("given", ["folder", "file", "text"])
@pytest.mark.sampled(3)
def test_its_logits_are_those_that_are_scored(run, given, pictures):
    best = run / "checkpoints" / "best.pt"
    model = optnet.load({"folder": run, "file": best, "text": str(best)}[given])
    assert not any(module.training for module in model.modules())
    assert isinstance(model.preprocess, transforms.Compose) and model.classes == ("cat", "dog", "emu")
    asked = Evaluate(checkpoint=str(best), device="cpu")
    (subject,) = assess.prepare(asked).subjects
    subject.model.eval()
    seen, total = 0, 0
    for images, labels in subject.loader(asked, torch.device("cpu")).batches():
        for image, label in zip(images, labels, strict=True):
            name = subject.data.test.names[seen]
            with Image.open(pictures / name) as opened:
                own = model.preprocess(opened)
            assert torch.equal(own, image) and name.split("/")[0] == model.classes[label]
            with torch.no_grad():
                assert torch.equal(model(own[None]), subject.model(image[None]))
            seen += 1
        total += len(labels)
    assert seen == total > 3


def test_a_run_folder_gives_the_best_and_not_the_last(run):
    for name in ("best", "last"):
        state = checkpoint.load(run / "checkpoints" / f"{name}.pt").state_dict
        loaded = optnet.load(run / "checkpoints" / f"{name}.pt").state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in state.items())
    best = checkpoint.load(run / "checkpoints" / "best.pt").state_dict
    assert all(torch.equal(value, best[key]) for key, value in optnet.load(run).state_dict().items())


def test_what_cannot_be_loaded_is_one_line(run, tmp_path):
    model = timm.create_model("test_resnet")
    torch.save(model.state_dict(), tmp_path / "state.pth")
    torch.save(model, tmp_path / "model.pth")
    content = torch.load(run / "checkpoints" / "best.pt", weights_only=True)
    torch.save({**content, "classes": ["a", "b"]}, tmp_path / "classes.pt")
    (tmp_path / "empty").mkdir()
    for name, said in {
        "state.pth": "is not a checkpoint of optnet", "model.pth": "holds a pickled",
        "none.pt": "there is no checkpoint",
        "empty": "there is no checkpoint",
        "classes.pt": "the checkpoint names 2 classes, but its model has 3",
    }.items():  # fmt: skip
        with pytest.raises(CheckpointError, match=said) as error:
            optnet.load(tmp_path / name)
        assert "\n" not in str(error.value)


def test_what_is_no_picture_is_said(run):
    preprocess = optnet.load(run).preprocess
    with pytest.raises(DataError, match="must be an image of Pillow, not str"):
        preprocess("cat.jpg")
    with pytest.raises(DataError, match="the picture cannot be used"):
        preprocess(Image.new("I", (8, 8), -3))


@pytest.mark.slow
def test_importing_optnet_stays_quick():
    """Nothing of data sets, training or the application is imported before ``load`` is used."""
    program = (
        "import sys, optnet; assert 'load' in optnet.__all__\n"
        "early = [n for n in sys.modules if n.startswith(('optnet.training.c', 'optnet.data', 'hydra'))]\n"
        "assert not early, early\n"
        "from optnet import load; assert optnet.load is load and load.__name__ == 'load'\n"
        "try: optnet.loads\nexcept AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "module 'optnet' has no attribute 'loads'"), done.stderr

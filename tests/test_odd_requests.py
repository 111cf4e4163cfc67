"""Requests that people and their scripts make by accident: one line, status 2, nothing made or changed."""

import os
import resource
import subprocess
import sys

import pytest
from helpers import MINE, ROOT, call, class_folder, some, train

from optnet.app.main import main

LONG = "x" * 300
ODD = [
    ("train", "+foo=1"), ("train", "+data.foo=1"), ("train", "+model.foo=1"), ("train", "+a.b.c=1"),
    ("train", "--config-name nothing"), ("train", "--config-dir nothing"), ("train", "--config-path nothing"),
    ("train", "--config-dir notes.txt"), ("train", "--cfg job epochs=abc"), ("train", "--resolve"),
    ("train", "--info --cfg job"), ("train", "-m --help"), ("train", "runs="), ("train", "runs=/proc/x"),
    ("train", "runs=/sys/x"), ("train", "runs=/dev/null"), ("train", "runs=notes.txt"), ("train", "runs=notes.txt/x"),
    ("train", f"runs={LONG}"), ("train", f"runs={'x/' * 2500}"), ("train", f"name={LONG}"), ("train", "name="),
    ("train", "name=a\0b"), ("train", "runs=a\0b"), ("train", "data.root=a\0b data=folder"), ("train", "name=.."),
    ("train", "device=meta"), ("train", "device="), ("train", "device=vulkan"), ("train", "data=folder data.root=one"),
    ("train", "data=folder data.root=none"), ("train", "data=folder data.root="),
    ("train", "data=folder data.root=notes.txt"), ("train", "algorithm=exits.py:mine"),
    ("train", "algorithm=fails.py:mine"), ("train", "algorithm=empty.py:mine"), ("train", "algorithm=notes.txt:mine"),
    ("train", "algorithm=folder.py:mine"), ("train", "resume=RUN data.root="), ("train", "resume=RUN lr=1"),
    ("train", "resume="), ("train", "resume=notes.txt"), ("train", "resume=."), ("train", "resume=RUN epochs=1"),
    ("train", "model.kwargs.checkpoint_path=none"), ("train", "epochs=100000000000"),
    ("train", "data=synthetic data.images=1000000000000"), ("train", "data=synthetic data.classes=1"),
    ("train", "model.widths=[100000000,8]"), ("train", "model.blocks=[100000000,1]"), ("train", "lr=1e308"),
    ("train", "model=mlp model.hidden=[100000000000]"), ("train", "data.workers=100000"),
    ("train", "data.color_jitter=0.4"), ("train", "data.lighting=0.1"), ("train", "model.proj_drop_rate=0.2"),
    ("evaluate", ""), ("evaluate", "+foo=1"), ("evaluate", "checkpoint="), ("evaluate", "checkpoint=/dev/zero"),
    ("evaluate", "checkpoint=/proc/self/mem"), ("evaluate", "checkpoint=fifo"), ("evaluate", f"checkpoint={LONG}"),
    ("evaluate", "checkpoint=."), ("evaluate", "model=hbnet_small output=/dev/full"),
    ("evaluate", "model=hbnet_small output=/proc/x"), ("evaluate", "model=hbnet_small output=fifo"),
    ("evaluate", "model=hbnet_small output=notes.txt"), ("evaluate", "model=hbnet_small output=notes.txt/x.json"),
    ("evaluate", f"model=hbnet_small output={LONG}"), ("evaluate", "model=hbnet_small output=."),
    ("evaluate", "model=hbnet_small device=meta"), ("evaluate", "model=hbnet_small data=folder data.root=none"),
]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("odd")
    train(place, epochs=2, limit_batches=1)
    return next(place.glob("runs/*/*"))


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and "__pycache__" not in str(file)}


def refused(monkeypatch, capsys, program, *arguments):
    assert call(monkeypatch, program, *arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out and err[:-1].isprintable(), err


@pytest.mark.parametrize("case", some(ODD, *ODD[::2]), ids=lambda case: " ".join(case)[:60].replace("\0", "0"))
@pytest.mark.sampled(9)
def test_one_line_and_nothing_is_made_or_changed(case, run_folder, tmp_path, monkeypatch, capsys):
    program, request = case
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPTNET_DATA", raising=False)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "exits.py").write_text(f"import sys\n{MINE}\nsys.exit(7)\n")
    (tmp_path / "fails.py").write_text(f"{MINE}\n1 / 0\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "folder.py").mkdir()
    class_folder(tmp_path / "one", classes=("cat",), count=2)
    os.mkfifo(tmp_path / "fifo")
    before, kept = contents(tmp_path), contents(run_folder)
    names = {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)}
    refused(monkeypatch, capsys, program, *request.replace("RUN", str(run_folder)).split())
    assert contents(tmp_path) == before and contents(run_folder) == kept
    assert {path for path in tmp_path.rglob("*") if "__pycache__" not in str(path)} == names


@pytest.mark.parametrize(
    "request_",
    ["analyse hb --kappa 1e300", "analyse hb --kappa inf", "analyse hb --kappa nan", "signal hbnet_small --size 0",
     "signal hbnet_small --seed -1", "signal hbnet_small --png /proc/x.png", "signal hbnet_small --png none/x.png",
     "signal hbnet_small --batch 1", "signal nonsense", "show", "analyse", "nonsense", "signal hbnet_small --init x"],
)  # fmt: skip
def test_the_librarys_commands(request_, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(request_.split())
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1 and not out, err
    assert not list(tmp_path.iterdir())


# a folder that cannot be written to, and a full disk


def limited(arguments, place, room):
    """A program none of whose files may grow beyond ``room`` bytes, which stands for a full disk."""
    limit = (room, room)
    return subprocess.run(
        [sys.executable, *arguments], cwd=place, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("room", [50, 100, 3000, 20000, 200000])
def test_a_full_disk_at_the_start_of_a_run_is_one_line(room, tmp_path):
    done = limited([str(ROOT / "train.py"), "device=cpu", "epochs=1", "progress=false"], tmp_path, room)
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2) and "Traceback" not in said and done.stderr.count("\n") <= 1, said
    assert "cannot be written" in said or "stopped: [Errno 27] File too large" in said
    assert done.returncode == 1 or not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{", "3", "[" * 100_000, '{"a": 1}'])
def test_an_evaluation_that_cannot_be_added_to_is_refused_before_anything_is_scored(
    content, run_folder, monkeypatch, capsys
):
    file = run_folder / "evaluation.json"
    file.write_text(content)
    monkeypatch.setattr("optnet.app.evaluate.score", pytest.fail)
    refused(monkeypatch, capsys, "evaluate", f"checkpoint={run_folder}/checkpoints/best.pt", "device=cpu")
    assert file.read_text() == content
    file.unlink()


@pytest.mark.slow
def test_a_full_disk_while_evaluating_shows_the_scores_and_one_line(tmp_path):
    done = limited([str(ROOT / "evaluate.py"), "model=hbnet_small", "device=cpu"], tmp_path, 100)
    assert done.returncode == 1 and "top-1 %" in done.stdout and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
@pytest.mark.parametrize("request_", ["train runs=sealed", "train", "evaluate model=hbnet_small output=sealed/x.json"])
def test_a_folder_that_is_read_only(request_, tmp_path, monkeypatch, capsys):
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed").chmod(0o500)
    monkeypatch.chdir(tmp_path if "sealed" in request_ else tmp_path / "sealed")
    refused(monkeypatch, capsys, *request_.split())


@pytest.mark.parametrize(
    "request_", ["train runs=sealed", "evaluate model=hbnet_small output=sealed/x.json", "evaluate model=hbnet_small"]
)
def test_a_folder_in_which_nothing_can_be_made(request_, tmp_path, monkeypatch, capsys):
    """As for an ordinary user in a read-only folder; root can write everywhere, so the file system says no."""

    def sealed(*arguments, **options):
        raise OSError(30, "Read-only file system")

    (tmp_path / "sealed").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("optnet.training.folder.TemporaryDirectory", sealed)
    refused(monkeypatch, capsys, *request_.split())
    assert not list((tmp_path / "sealed").iterdir())

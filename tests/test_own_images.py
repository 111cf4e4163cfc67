"""The README's section on your own images: its commands, as they stand, on a folder of JPEGs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).parent.parent


def photograph(file, brightness, seed):
    """A JPEG of some size of its own; cats are darker than dogs."""
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(40, 120, (2,), generator=generator).tolist()
    pixels = torch.rand(height, width, 3, generator=generator) * 80 + brightness
    Image.fromarray(pixels.byte().numpy()).save(file)


def test_the_section_as_it_stands(tmp_path):
    for name, brightness in {"cat": 20, "dog": 140}.items():
        (tmp_path / "my_images" / name).mkdir(parents=True)
        for i in range(30):
            photograph(tmp_path / "my_images" / name / f"{i}.jpg", brightness, 100 * brightness + i)
    section = (ROOT / "README.md").read_text().partition("## Your own images")[2].partition("\n#")[0]
    commands = [line for line in section.splitlines() if line.startswith("python ")]
    assert len(commands) == 2
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for command in commands:
        script = command.removeprefix("python ")
        line = f"{sys.executable} {ROOT}/{script} device=cpu{' data.workers=0' * ('train.py' in script)}"
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        if "train.py" in command:
            assert "45 train, 5 validation, 10 test" in done.stdout and "2 classes (cat, dog)" in done.stdout
    (run,) = tmp_path.glob("runs/pets/*")
    (entry,) = json.loads((run / "evaluation.json").read_text())
    assert entry["count"] == 10 and entry["correct"] >= 9

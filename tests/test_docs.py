"""The documentation: the site builds without a warning, every link leads somewhere, and every example runs."""

import html
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from optnet.networks.options import NetworkOptions

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in said, said
    page = (tmp_path / "site" / "api" / "optnet" / "index.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert 'id="optnet.unroll"' in page and "Unrolls an algorithm (or its program) onto real layers." in text
    assert "heavy_ball" in text and "x_{k+1} = P(x_k + step (T(x_k) - x_k) + beta (x_k - x_{k-1}))" in text
    assert "|x_k - T(x_k)| <= 2 |x_0 - x*| / (k + 1)" in text  # no asterisk is lost to Markdown
    options = (tmp_path / "site" / "api" / "networks" / "index.html").read_text()
    assert all(field.metadata["help"].split(";")[0] in html.unescape(options) for field in fields(NetworkOptions))
    for file in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r'<(script|link)[^>]+(src|href)="https?://', file.read_text()), "needs the network"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pages_in_the_navigation_are_all_there_are():
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


def test_the_examples_of_the_pages_run(tmp_path):
    (tmp_path / "my_file.py").write_text(BLOCK.findall(PAGES[0].read_text())[0])
    blocks = [block for page in PAGES[1:] for block in BLOCK.findall(page.read_text())]
    (tmp_path / "examples.py").write_text("\n".join(blocks).replace("pretrained=True", ""))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "examples.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert len(blocks) >= 6 and done.returncode == 0, done.stderr

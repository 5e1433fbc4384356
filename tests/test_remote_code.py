"""Saved models carry their code: another process, without the package, gets the same logits and explanations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import bcos_transformers
from bcos_transformers.registration import ARCHITECTURES
from conftest import bcos_model
from contract import ALL, tiny_inputs, tiny_model

MODELING = Path(bcos_transformers.modeling.__path__[0])
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("bcos_transformers", "modeling"): raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
import torch, transformers
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess:
    """Runs `code` in a fresh process that cannot import the package."""
    # As many threads as here, for results that are the same bit for bit.
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "PYTHONPATH": "",
    }
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
    )


def test_every_architecture_and_head_in_a_process_without_the_package(tmp_path, tokenizer):
    lines = []
    for name, task in ALL:
        model = tiny_model(name, task).float()
        path = tmp_path / f"{name}-{task}"
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        assert not [entry for entry in path.iterdir() if entry.is_dir()]
        inputs = tiny_inputs(model)
        with torch.no_grad():
            wanted = {"output": model(**inputs)[0], "inputs": inputs}
        if task != "base":
            wanted["contributions"] = model.explain(**inputs).contributions
        if task == "causal-lm":
            prompt = {key: value[:1] for key, value in inputs.items()}
            wanted["prompt"] = prompt
            wanted["generation"] = model.explain_generation(prompt, max_new_tokens=4, do_sample=False).contributions
        torch.save(wanted, path / "wanted.pt")
        lines.append(f"check({path.name!r}, {model._auto_class!r})")
    code = """
def check(task, auto_class):
    auto = getattr(transformers, auto_class)
    model = auto.from_pretrained(task, trust_remote_code=True)
    wanted = torch.load(task + "/wanted.pt")
    with torch.no_grad():
        assert torch.equal(model(**wanted["inputs"])[0], wanted["output"]), task
    if "contributions" in wanted:
        got = model.explain(**wanted["inputs"]).contributions
        assert torch.equal(got, wanted["contributions"]), task
    if "generation" in wanted:
        got = model.explain_generation(wanted["prompt"], max_new_tokens=4, do_sample=False).contributions
        assert torch.equal(got, wanted["generation"]), task
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    sys.modules[type(model).__module__.rpartition(".")[0] + ".bcos_conversion"].assert_dynamic_linear(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(task, trust_remote_code=True)
    assert tokenizer("a film")["input_ids"][0] == 2
    model.save_pretrained(task + "-again")  # and once more, from the code that came with it
    again = auto.from_pretrained(task + "-again", trust_remote_code=True)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
"""
    result = run(code + "\n".join(lines) + "\nprint('all equal')", tmp_path)
    assert "all equal" in result.stdout, result.stderr[-2000:]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_head_is_in_the_auto_map_and_exists(name, tmp_path):
    tiny_model(name, "sequence-classification").save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert set(auto_map) == {"AutoConfig"} | {m._auto_class for m in ARCHITECTURES[name].models.values()}
    for reference in auto_map.values():
        module, _, cls = reference.partition(".")
        assert f"class {cls}(" in (tmp_path / f"{module}.py").read_text()


def test_the_base_model_of_a_saved_head(tmp_path):
    bcos_model().save_pretrained(tmp_path)
    result = run("print(type(transformers.AutoModel.from_pretrained('.', trust_remote_code=True)).__name__)", tmp_path)
    assert result.stdout.strip() == "BcosBertModel", result.stderr[-2000:]


def test_trust_is_needed_without_the_package(tmp_path):
    bcos_model().save_pretrained(tmp_path)
    code = "transformers.AutoModelForSequenceClassification.from_pretrained('.', trust_remote_code=False)"
    result = run(code, tmp_path)
    assert result.returncode != 0
    assert "trust_remote_code=True" in result.stderr


def test_with_the_package_no_question_is_asked(tmp_path, tokenizer):
    bcos_model(num_labels=3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(model) is bcos_transformers.BcosBertForSequenceClassification
    assert type(AutoConfig.from_pretrained(tmp_path)) is bcos_transformers.BcosBertConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is bcos_transformers.BcosBertModel
    assert AutoTokenizer.from_pretrained(tmp_path)("a film")["input_ids"][0] == 2


def test_importing_twice_registers_once():
    before = dict(AutoModel._model_mapping._extra_content)
    bcos_transformers.registration.register_all()
    assert dict(AutoModel._model_mapping._extra_content) == before


@pytest.mark.parametrize("file", sorted(MODELING.glob("*.py")), ids=lambda file: file.name)
def test_code_that_travels_is_flat_and_quiet(file):
    text = file.read_text()
    for line in text.splitlines():
        stripped = line.strip()
        assert not stripped.startswith(("from . import", "from ..", "import .", "from bcos_transformers"))
        if stripped.startswith("from ."):
            module = stripped.split()[1].removeprefix(".")
            assert (MODELING / f"{module}.py").exists(), line
    assert "print(" not in text
    assert "open(" not in text
    assert "environ" not in text

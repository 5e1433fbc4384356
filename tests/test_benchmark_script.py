"""benchmarks/faithfulness.py, on one process and on two."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bcos_transformers.evaluation.benchmark import FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_data import Example
from benchmark_toys import (
    EXAMPLES,
    SETTINGS,
    contents,
    made,
    models,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Both models and the texts as files."""
    path = tmp_path_factory.mktemp("models")
    for name, (model, tokenizer) in models().items():
        model.float().save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    rows = [{"text": example.text, "label": example.label} for example in EXAMPLES]
    (path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SEED = "4"  # of a choice of texts some of which make a pair


def script(launcher: list[str], folders: Path, output: Path) -> str:
    command = [*launcher, str(ROOT / "benchmarks" / "faithfulness.py"), "--file", str(folders / "texts.jsonl")]
    command += [
        "--model",
        f"plain={folders / 'plain'}",
        "--model",
        f"B-cos={folders / 'B-cos'}",
        "--limit",
        "8",
        "--seed",
        SEED,
    ]
    command += ["--methods", "bcos", "random", "occlusion", "search", "gradient_shap", "deep_lift"]
    command += ["--output", str(output), "--pairs", "3", "--min-probability", "0.3", "--search-budget", "60"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_give_the_cells_of_one(tmp_path, folders):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher = [*accelerate, "--multi_gpu", "--num_machines", "1", "--num_processes", "2", "--main_process_port", "0"]
    settings = replace(SETTINGS, pairs=3, seed=int(SEED))
    given = {name: str(folders / name) for name in ("plain", "B-cos")}
    examples = [Example(example.text, example.label) for example in EXAMPLES]
    methods = ["bcos", "random", "occlusion", "search", "gradient_shap", "deep_lift"]
    cells = FaithfulnessBenchmark(given, examples, tmp_path / "one", methods, settings, progress=False).run()
    (tmp_path / "two" / "cells").mkdir(parents=True)
    kept = [tmp_path / "two" / "cells" / f"{name}.json" for name in ("plain--random", "B-cos--search")]
    for path in kept:  # what one process left, two go on with
        shutil.copy(tmp_path / "one" / "cells" / path.name, path)
    before = [path.stat().st_mtime_ns for path in kept]
    printed = script(launcher, folders, tmp_path / "two")
    assert [path.stat().st_mtime_ns for path in kept] == before
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two" / "cells")
    assert one == two
    assert len(cells) == 11
    assert all(cell["seqpg"] for cell in cells if cell["method"] != "search")
    assert printed.count("| model | method |") == 1  # one report
    assert printed.count("\n| ") == 11
    assert {path.name for path in (tmp_path / "two").iterdir() if path.is_file()} == {
        *("table.csv", "table.md", "table.tex", "records.jsonl", "faithfulness.png", "differences.csv")
    }


def test_loaded_from_folders_and_said_in_the_log(tmp_path, folders, caplog):
    caplog.set_level(logging.INFO, logger="bcos_transformers")
    given = {name: str(folders / name) for name in ("plain", "B-cos")}
    loaded = {name: (model.float(), tokenizer) for name, (model, tokenizer) in models().items()}
    from_folders = made(tmp_path / "a", ["random", "occlusion"], given).run()
    in_memory = made(tmp_path / "b", ["random", "occlusion"], loaded).run()
    for left, right in zip(from_folders, in_memory, strict=True):
        for one, two in zip(left["records"], right["records"], strict=True):
            assert one["scores"] == pytest.approx(two["scores"], abs=1e-5)
    assert "plain, occlusion" in caplog.text

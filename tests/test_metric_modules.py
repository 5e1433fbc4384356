"""The `evaluate` modules: loaded from their folders without a network, with the numbers of the functions they wrap."""

from pathlib import Path

import evaluate
import pytest
import torch
from huggingface_hub import HfApi, constants
from test_perturbation import IDS, SCORES, WEIGHTS
from transformers.modeling_outputs import SequenceClassifierOutput

import bcos_transformers
from bcos_transformers.evaluation.bootstrap import bootstrap_interval
from bcos_transformers.evaluation.perturbation import perturbation_scores
from bcos_transformers.evaluation.rows import Classifier, encode_rows, rows_of
from conftest import bcos_model, make_tokenizer
from hub_server import running_hub
from toy_classifier import ToyClassifier

METRICS = Path(bcos_transformers.__file__).parent / "evaluation" / "metrics"
NAMES = sorted(path.name for path in METRICS.iterdir() if (path / f"{path.name}.py").exists())


@pytest.mark.parametrize("name", NAMES)
def test_every_module_loads_and_is_a_space(name):
    metric = evaluate.load(str(METRICS / name))
    assert metric.description.strip()
    assert metric.inputs_description.strip()
    folder = METRICS / name
    readme = (folder / "README.md").read_text()
    assert readme.startswith("---\n")
    assert "sdk: static" in readme
    assert "bcos-transformers" in (folder / "requirements.txt").read_text()


def test_perturbation(tokenizer):
    model = ToyClassifier(WEIGHTS)
    texts, scores = [IDS, [2, 6, 8, 3]], [SCORES, [0.0, 1.0, 0.5, 0.0]]
    metric = evaluate.load(str(METRICS / "perturbation"))
    found = metric.compute(
        predictions=scores, references=texts, model=model, tokenizer=tokenizer, search_budget=100, resamples=500
    )
    direct = perturbation_scores(Classifier(model, tokenizer), rows_of(tokenizer, texts), scores)
    values = [score.comprehensiveness for score in direct]
    assert found["comprehensiveness"] == pytest.approx(sum(values) / 2, abs=1e-12)
    assert found["comprehensiveness_interval"] == list(bootstrap_interval([values], resamples=500)[1:])
    assert [record["sufficiency"] for record in found["records"]] == [score.sufficiency for score in direct]
    assert found["normalized_comprehensiveness"] == pytest.approx(1.0)  # the weights themselves are the best ranking
    assert found["normalized_comprehensiveness_interval"] == pytest.approx([1.0, 1.0])
    low, high = found["normalized_sufficiency_interval"]
    assert low <= found["normalized_sufficiency"] <= high
    assert found["random_comprehensiveness"] < found["best_comprehensiveness"]
    again = metric.compute(
        predictions=scores, references=texts, model=model, tokenizer=tokenizer, search_budget=100, resamples=500
    )
    assert again == found


class RedundantClues(ToyClassifier):
    """Either of the tokens 5 and 6 is enough, so that hiding one of them changes nothing: a greedy search is led astray."""

    def forward(self, input_ids, attention_mask=None):
        clue = ((input_ids == 5) | (input_ids == 6)).any(-1).double()
        others = super().forward(input_ids, attention_mask).logits[:, 1]
        return SequenceClassifierOutput(logits=torch.stack([torch.zeros_like(others), 4 * clue + others], dim=-1))


def test_the_best_ranking_is_no_worse_than_a_random_one(tokenizer):
    model = RedundantClues({7: 0.05, 8: 0.04, 9: 0.03, 10: 0.02, 11: 0.01})
    texts = [[2, 5, 6, 7, 8, 9, 10, 11, 3], [2, 5, 7, 6, 8, 9, 11, 10, 3]]
    metric = evaluate.load(str(METRICS / "perturbation"))
    last = [[0.0, -9.0, -9.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0], [0.0, -9.0, 5.0, -9.0, 4.0, 3.0, 1.0, 2.0, 0.0]]
    found = metric.compute(predictions=last, references=texts, model=model, tokenizer=tokenizer, search_budget=400)
    assert found["comprehensiveness"] < found["random_comprehensiveness"] <= found["best_comprehensiveness"]
    assert not found["normalized_comprehensiveness"] >= 0


def test_perturbation_in_batches(tokenizer):
    metric = evaluate.load(str(METRICS / "perturbation"))
    metric.add_batch(predictions=[SCORES], references=[IDS])
    metric.add(predictions=[0.0, 1.0, 0.0], references=[2, 6, 3])
    found = metric.compute(model=ToyClassifier(WEIGHTS), tokenizer=tokenizer, replacement="attention")
    assert len(found["records"]) == 2


def test_pointing_game():
    metric = evaluate.load(str(METRICS / "pointing_game"))
    parts = [-1, 0, 0, 1, 1, -1]
    right = [[float(part == half) for part in parts] for half in (0, 1)]
    assert metric.compute(predictions=[right], references=[parts])["seqpg"] == 1.0
    assert metric.compute(predictions=[right[::-1]], references=[parts])["seqpg"] == 0.0


def test_pointing_game_refuses_other_segments():
    metric = evaluate.load(str(METRICS / "pointing_game"))
    with pytest.raises(ValueError, match=r"0, 1 or -1 \(special\) of each token, got \[2\] too"):
        metric.compute(predictions=[[[0.5, 1.0], [1.0, 0.5]]], references=[[0, 2]])


def test_plausibility():
    found = evaluate.load(str(METRICS / "plausibility")).compute(
        predictions=[[0.1, 0.9, 0.5], [3.0, 1.0]], references=[[0, 1, 0], [0, 1]]
    )
    assert (found["f1"], found["mrr"]) == (0.5, 0.75)
    assert found["f1_interval"] == [0.0, 1.0]


def test_completeness():
    found = evaluate.load(str(METRICS / "completeness")).compute(predictions=[[1.0, -2.0]], references=[-0.5])
    assert found["residual"] == 0.5
    assert found["largest_relative_residual"] == 0.25


def test_stability():
    found = evaluate.load(str(METRICS / "stability")).compute(
        predictions=[[1.0, 2.0, 4.0]], references=[[1.0, 3.0, 4.0]]
    )
    assert found["largest_difference"] == 0.25


def test_masking_validity():
    model, tokenizer = bcos_model(num_labels=2), make_tokenizer()
    rows = encode_rows(tokenizer, ["a good film", "bad soup"])
    found = evaluate.load(str(METRICS / "masking_validity")).compute(
        predictions=[list(row.input_ids) for row in rows], references=[1, 0], model=model, tokenizer=tokenizer
    )
    assert len(found["accuracy"]) == len(found["shares"]) == 5


def test_errors_reach_the_user(tokenizer):
    metric = evaluate.load(str(METRICS / "perturbation"))
    with pytest.raises(ValueError, match="scores for a text of 6 tokens"):
        metric.compute(predictions=[SCORES[:-1]], references=[IDS], model=ToyClassifier({}), tokenizer=tokenizer)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback that huggingface_hub and evaluate know, and nothing of the user's own."""
    with running_hub() as running:
        for name, value in {
            "ENDPOINT": running.url,
            "HF_HUB_OFFLINE": False,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_tester")
        monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
        monkeypatch.setattr(evaluate.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)
        monkeypatch.setattr(
            evaluate.config, "HUB_EVALUATE_URL", running.url + "/spaces/{path}/resolve/{revision}/{name}"
        )
        monkeypatch.setattr(evaluate.config, "HF_EVALUATE_CACHE", tmp_path / "cache")
        yield running


def test_a_metric_folder_is_uploaded_as_a_space_and_loaded_from_there(hub, tokenizer):
    api = HfApi(endpoint=hub.url)
    folder = METRICS / "perturbation"
    api.create_repo("tester/perturbation", repo_type="space", space_sdk="static")
    api.upload_folder(
        repo_id="tester/perturbation", folder_path=folder, repo_type="space", ignore_patterns="__pycache__*"
    )
    names = {"README.md", "requirements.txt", "perturbation.py"}
    assert hub.repos["tester/perturbation"].kind == "space"
    assert hub.files("tester/perturbation") == {name: (folder / name).read_bytes() for name in names}
    assert "POST /api/validate-yaml" in hub.requests
    found = evaluate.load("tester/perturbation").compute(
        predictions=[SCORES], references=[IDS], model=ToyClassifier(WEIGHTS), tokenizer=tokenizer
    )
    (direct,) = perturbation_scores(Classifier(ToyClassifier(WEIGHTS), tokenizer), rows_of(tokenizer, [IDS]), [SCORES])
    assert found["comprehensiveness"] == direct.comprehensiveness
    assert "GET /spaces/tester/perturbation/resolve/main/perturbation.py" in hub.requests

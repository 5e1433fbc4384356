"""The faithfulness benchmark: its numbers, its cells on disk, what it leaves alone and what it refuses."""

import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from attribution_toys import conventional
from bcos_transformers.evaluation import benchmark as module
from bcos_transformers.evaluation.attribution_runs import attribute_rows
from bcos_transformers.evaluation.baselines import METHODS, AttributionMethod, build_method
from bcos_transformers.evaluation.baselines.direct import Random
from bcos_transformers.evaluation.benchmark import BenchmarkSettings, FaithfulnessBenchmark
from bcos_transformers.evaluation.benchmark_data import Example, make_example
from bcos_transformers.evaluation.perturbation import perturbation_scores
from bcos_transformers.evaluation.plausibility import plausibility_scores
from bcos_transformers.evaluation.pointing_game import row_of, seqpg
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, encode_rows
from conftest import WORDS, bcos_model, make_tokenizer
from contract import tiny_config

ROOT = Path(__file__).parents[1]
DRAWN = random.Random(0)
PLAIN = [word for word in WORDS if not word.startswith("##")]
TEXTS = [" ".join(DRAWN.choice(PLAIN) for _ in range(DRAWN.randint(5, 11))) for _ in range(14)]


def models() -> dict:
    """A conventional model, which predicts two of its classes and makes the pairs, and a B-cos model."""
    return {"plain": (conventional("bert"), make_tokenizer()), "B-cos": (bcos_model(seed=3), make_tokenizer())}


def predictions(model) -> list[int]:
    classifier = Classifier(model, make_tokenizer(), progress=False)
    return (
        classifier.probabilities([ChangedRow(row) for row in encode_rows(make_tokenizer(), TEXTS)]).argmax(-1).tolist()
    )


LABELS = predictions(conventional("bert"))
EXAMPLES = [
    make_example(text, label, [int(word in ("good", "bad", "dull", "the")) for word in text.split()])
    for text, label in zip(TEXTS, LABELS, strict=True)
]
SETTINGS = BenchmarkSettings(pairs=2, min_probability=0.3, limit=8, search_budget=60)


def made(
    output, methods=("bcos", "random", "occlusion"), given=None, examples=None, **settings
) -> FaithfulnessBenchmark:
    return FaithfulnessBenchmark(
        models() if given is None else given,
        EXAMPLES if examples is None else examples,
        output,
        methods,
        replace(SETTINGS, **settings),
        progress=False,
    )


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Names of the methods that explained, a name for every batch."""
    found: list[str] = []
    real = AttributionMethod.attribute

    def attribute(self, *arguments, **options):
        found.append(self.name)
        return real(self, *arguments, **options)

    monkeypatch.setattr(AttributionMethod, "attribute", attribute)
    return found


def without_seconds(cells: list[dict]) -> list[dict]:
    return [{k: v for k, v in cell.items() if k != "seconds"} for cell in cells]


def contents(output: Path) -> dict[str, bytes]:
    """Every file below, but for the seconds in it."""
    seconds = re.compile(rb'"seconds": [^,]+,')
    return {path.name: seconds.sub(b"", path.read_bytes()) for path in output.rglob("*") if path.is_file()}


# numbers


def test_the_cells_hold_what_the_metrics_give(tmp_path):
    cells = made(tmp_path, ["bcos", "random", "occlusion", "search"]).run()
    found = {(cell["model"], cell["method"]): cell for cell in cells}
    assert list(found) == [
        *(("plain", name) for name in ("random", "occlusion", "search")),
        *(("B-cos", name) for name in ("bcos", "random", "occlusion", "search")),
    ]
    for (name, method), cell in found.items():
        model, tokenizer = models()[name]
        chosen = [record["index"] for record in cell["records"]]
        assert len(chosen) == cell["texts"] == 8
        rows = encode_rows(tokenizer, [TEXTS[i] for i in chosen])
        classifier = Classifier(model, tokenizer, progress=False)
        predicted = classifier.probabilities([ChangedRow(row) for row in rows]).argmax(-1).tolist()
        right = [a == LABELS[i] for a, i in zip(predicted, chosen, strict=True)]
        assert cell["accuracy"] == pytest.approx(sum(right) / 8)
        if method == "search":
            continue
        run = attribute_rows(build_method(method, model, tokenizer), classifier, rows, predicted)
        scores = perturbation_scores(classifier, rows, run.scores)
        for record, attribution, score, one in zip(cell["records"], run.scores, scores, predicted, strict=True):
            assert record["scores"] == pytest.approx(attribution, abs=1e-12)
            assert record["comprehensiveness"] == pytest.approx(score.comprehensiveness, abs=1e-12)
            assert record["sufficiency"] == pytest.approx(score.sufficiency, abs=1e-12)
            assert record["predicted"] == one
        assert cell["cost"] == run.cost
    assert found["B-cos", "bcos"]["cost"] == pytest.approx(2.0)
    assert max(found["B-cos", "bcos"]["residuals"]) < 1e-10
    assert found["plain", "random"]["cost"] == 0
    assert found["plain", "random"]["residuals"] is None


def test_the_first_model_makes_the_pairs_for_all(tmp_path, monkeypatch):
    makers = []
    real = module.make_pairs

    def make_pairs(classifier, *arguments, **options):
        makers.append(classifier.model)
        return real(classifier, *arguments, **options)

    monkeypatch.setattr(module, "make_pairs", make_pairs)
    given = models()
    benchmark = made(tmp_path, ["occlusion"], given, limit=None)
    cells = benchmark.run()
    assert makers == [given["plain"][0]]
    pairs = benchmark.pairs()
    assert pairs
    for cell in cells:
        model, tokenizer = given[cell["model"]]
        rows = [row_of(pair) for pair in pairs for _ in range(2)]
        targets = [label for pair in pairs for label in pair.labels]
        run = attribute_rows(build_method("occlusion", model, tokenizer), Classifier(model, tokenizer), rows, targets)
        direct = seqpg([run.scores[2 * i : 2 * i + 2] for i in range(len(pairs))], pairs)
        assert cell["seqpg"] == pytest.approx(direct, abs=1e-12)
    made(tmp_path, ["occlusion", "random"], given, limit=None).run()
    assert len(makers) == 1  # a later run reads them


def test_pairs_fit_into_the_model_that_reads_least(tmp_path):
    torch.manual_seed(1)
    small = tiny_config("bert", conventional=True, num_labels=3, max_position_embeddings=12)
    reader = AutoModelForSequenceClassification.from_config(small).double().eval()
    benchmark = made(tmp_path, ["random"], {**models(), "small": (reader, make_tokenizer())}, limit=None)
    cells = benchmark.run()
    assert {cell["model"]: "error" in cell for cell in cells} == {"plain": False, "B-cos": False, "small": False}
    assert max(len(pair.input_ids) for pair in benchmark.pairs()) == 12


def test_without_pairs_seqpg_is_left_out_and_that_is_said(tmp_path, caplog):
    (cell,) = made(tmp_path, ["bcos"], min_probability=1.0).run()
    assert cell["seqpg"] == []
    assert "SeqPG is left out. No pair of texts of different classes" in caplog.text
    (cell,) = made(tmp_path, ["bcos"], pairs=0).run()
    assert cell["seqpg"] is None


def test_rationales_are_compared_with_the_explanation_of_the_labelled_class(tmp_path):
    (cell,) = made(tmp_path, ["bcos"], limit=None, pairs=0).run()
    model, tokenizer = models()["B-cos"]
    classifier = Classifier(model, tokenizer, progress=False)
    wrong = 0
    for record in cell["records"]:
        example = EXAMPLES[record["index"]]
        if example.rationale is None:
            assert "f1" not in record
            continue
        wrong += record["predicted"] != record["label"]
        (row,) = encode_rows(tokenizer, [example.text])
        run = attribute_rows(build_method("bcos", model, tokenizer), classifier, [row], [example.label])
        words = example.text.split()
        # Every word but "gripp" and the signs is one token here; those that are unknown are one token too.
        assert len(row) == len(words) + 2
        direct = plausibility_scores(run.scores[0][1:-1], example.rationale)
        assert record["auprc"] == pytest.approx(direct.auprc, abs=1e-12)
        assert record["mrr"] == pytest.approx(direct.mrr, abs=1e-12)
    assert wrong > 3


def test_phrases_count_without_a_rationale_and_where_they_say_nothing(tmp_path):
    examples = [
        Example("good film , bad soup", 1, phrases=((0, 1, 4), (3, 4, 0), (0, 2, 3))),
        Example("a film", 0, phrases=((0, 1, 2), (1, 2, 2))),  # all of one sentiment: no correlation
    ]
    (cell,) = made(tmp_path, ["bcos"], examples=examples, pairs=0).run()
    assert -1 <= cell["records"][0]["phrases"] <= 1
    assert cell["records"][1]["phrases"] is None
    assert "NaN" not in (tmp_path / "cells" / "B-cos--bcos.json").read_text()


# on disk


def test_interrupted_and_resumed(tmp_path, monkeypatch, calls):
    methods = ["bcos", "random", "occlusion", "search"]
    whole = made(tmp_path / "whole", methods).run()
    calls.clear()
    real = METHODS["occlusion"]._scores

    def interrupted(self, batch):
        if hasattr(self.model, "explain"):
            raise KeyboardInterrupt
        return real(self, batch)

    output = tmp_path / "output"
    with monkeypatch.context() as patch:
        patch.setattr(METHODS["occlusion"], "_scores", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(output, methods).run()
    finished = {f"plain--{name}.json" for name in methods[1:]} | {"B-cos--bcos.json", "B-cos--random.json"}
    before = {path.name: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}
    assert {name for name in before if not name.startswith("pairs-")} == finished
    assert without_seconds(made(output, methods).finished()) == without_seconds(whole[:5])

    calls.clear()
    cells = made(output, methods).run()
    assert set(calls) == {"occlusion"}
    assert without_seconds(cells) == without_seconds(whole)
    after = {path.name: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}
    assert set(after) == set(before) | {"B-cos--occlusion.json", "B-cos--search.json"}
    assert {name: after[name] for name in before} == before

    calls.clear()
    assert made(output, methods).run() == cells
    assert calls == []


def test_what_is_finished_needs_no_forward_pass(tmp_path):
    given = models()
    made(tmp_path, ["occlusion", "search"], given).run()
    passes = []
    for model, _ in given.values():
        model.register_forward_pre_hook(lambda *_: passes.append(1))
    made(tmp_path, ["occlusion", "search"], given).run()
    assert not passes
    made(tmp_path, ["occlusion", "search", "random"], given).run()
    assert passes


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, ["random"], pairs=0).run()
    assert list((tmp_path / "cells").iterdir()) == []


def test_two_fresh_runs_are_the_same(tmp_path):
    options = {"method_options": {"lime": {"n_samples": 12}, "kernel_shap": {"n_samples": 12}}}
    for name in ("a", "b"):
        methods = ["bcos", "random", "lime", "kernel_shap", "gradient_shap", "search"]
        made(tmp_path / name, methods, limit=4, **options).run()
        torch.manual_seed(5)  # what the user's generators hold is nothing to it
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 1 + 5 + 6


def recomputed(output, calls, *, methods=("occlusion", "random"), **changed) -> set[str]:
    calls.clear()
    made(output, methods, **changed).run()
    return set(calls)


EDITED = {
    "label": replace(EXAMPLES[0], label=2),
    "rationale": replace(EXAMPLES[0], rationale=None),
    "text": replace(EXAMPLES[0], text="soup " + EXAMPLES[0].text, rationale=None),
}


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"limit": 7},
        {"max_length": 6},
        {"replacement": "attention"},
        {"pairs": 1},
        {"min_probability": 0.31},
        {"batch_tokens": 100},
        *({"examples": [example, *EXAMPLES[1:]]} for example in EDITED.values()),
    ],
    ids=lambda changed: ",".join(changed),
)
def test_what_changes_the_numbers_is_computed_again(tmp_path, calls, changed):
    common = {"methods": ["random"], "limit": None if "examples" in changed else 4}
    recomputed(tmp_path, calls, **common)
    assert recomputed(tmp_path, calls, **common) == set()
    assert recomputed(tmp_path, calls, **{**common, **changed}) == {"random"}


def test_only_what_changes_is_computed_again(tmp_path, calls):
    methods = ("random", "gradient_shap", "search")
    recomputed(tmp_path, calls, methods=methods, limit=4)
    for changes, methods_again in (
        ({"method_options": {"lime": {"n_samples": 3}}}, set()),
        ({"search_budget": 5}, set()),  # the search explains nothing
        ({"method_options": {"gradient_shap": {"n_samples": 2}}}, {"gradient_shap"}),
        ({"method_options": {"random": {"seed": 7}}}, {"random", "gradient_shap"}),  # and the other one as it was
        ({"method_options": {"random": {"seed": 7}}, "methods": ("random", "saliency")}, {"saliency"}),
    ):
        assert recomputed(tmp_path, calls, **{"methods": methods, "limit": 4, **changes}) == methods_again, changes


def test_changed_weights_configuration_and_tokenizer_are_computed_again(tmp_path, calls):
    given = models()
    common = {"given": given, "pairs": 0, "methods": ["random"]}
    recomputed(tmp_path, calls, **common)
    assert recomputed(tmp_path, calls, **common) == set()
    with torch.no_grad():
        given["B-cos"][0].classifier.weight[0, 0] += 1e-6
    files = [tmp_path / "cells" / f"{name}--random.json" for name in given]
    before = [file.stat().st_mtime_ns for file in files]
    assert recomputed(tmp_path, calls, **common) == {"random"}
    after = [file.stat().st_mtime_ns for file in files]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]  # the other model's cell stays
    given["plain"][0].config.layer_norm_eps = 1e-3
    assert recomputed(tmp_path, calls, **common) == {"random"}
    given["plain"][1].add_tokens(["excellent"])
    assert recomputed(tmp_path, calls, **common) == {"random"}
    given["plain"][0].config.name_or_path = "somewhere/else"
    assert recomputed(tmp_path, calls, **common) == set()


def test_the_pairs_of_other_weights_are_other_pairs(tmp_path, calls):
    given = models()
    recomputed(tmp_path, calls, given=given)
    with torch.no_grad():
        given["plain"][0].classifier.bias += 1e-6
    calls.clear()
    made(tmp_path, ["bcos"], given).run()
    assert "bcos" in calls
    assert len(list((tmp_path / "cells").glob("pairs-*"))) == 2


@pytest.mark.parametrize("content", [b"", b'{"model": "plain", "fing', b"[]", b"\xff\xfe", None])
def test_damaged_files_are_made_again(tmp_path, calls, caplog, content):
    cells = made(tmp_path, ["random"]).run()
    for path in (tmp_path / "cells").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    calls.clear()
    caplog.clear()
    assert made(tmp_path, ["random"]).finished() == []
    assert without_seconds(made(tmp_path, ["random"]).run()) == without_seconds(cells)
    assert calls
    if content != b"[]":
        assert "is damaged, so what it held is computed again." in caplog.text


def test_names_of_models_that_are_no_names_of_files(tmp_path):
    model = (bcos_model(seed=3), make_tokenizer())
    beside = set(tmp_path.parent.iterdir())
    names = ["a/b", "a_b", "../up", "x" * 300, "x" * 299, "é|?"]
    cells = made(tmp_path, ["random"], dict.fromkeys(names, model), pairs=0).run()
    assert [cell["model"] for cell in cells] == names
    files = list((tmp_path / "cells").iterdir())
    assert len(files) == len(names)
    assert set(tmp_path.parent.iterdir()) == beside


def test_limit_chooses_texts_by_the_seed(tmp_path):
    indices = {
        seed: [record["index"] for record in made(tmp_path, ["random"], limit=5, seed=seed).run()[0]["records"]]
        for seed in (0, 1, 2)
    }
    assert all(len(chosen) == 5 and chosen == sorted(chosen) for chosen in indices.values())
    assert len({tuple(chosen) for chosen in indices.values()}) > 1
    everything = made(tmp_path, ["random"], limit=100).run()[0]
    assert [record["index"] for record in everything["records"]] == list(range(14))
    assert [record["label"] for record in everything["records"]] == LABELS


# failures


def test_a_method_that_fails_does_not_stop_the_others(tmp_path, caplog, calls):
    torch.manual_seed(0)
    decoder = conventional("gpt2", pad_token_id=None)
    given = {"decoder": (decoder, make_tokenizer()), **models()}
    methods = ["deep_lift", "random"]
    cells = made(tmp_path, methods, given, pairs=0).run()
    assert [(cell["model"], cell["method"], "error" in cell) for cell in cells] == [
        ("decoder", "deep_lift", True),
        ("decoder", "random", False),
        *((name, method, False) for name in ("plain", "B-cos") for method in methods),
    ]
    failed = cells[0]
    assert "set model.config.pad_token_id" in failed["error"]
    assert (failed["records"], failed["cost"], failed["texts"]) == ([], None, 8)
    assert set(failed) == set(cells[1]) | {"error"}
    assert "decoder, deep_lift failed: " in caplog.text
    calls.clear()
    caplog.clear()
    assert made(tmp_path, methods, given, pairs=0).run() == cells  # tried again, in vain
    assert calls == []
    assert "decoder, deep_lift failed: " in caplog.text


def test_a_failed_cell_is_tried_again(tmp_path, monkeypatch, caplog):
    def broken(self, batch):
        raise RuntimeError("out of\nmemory")

    with monkeypatch.context() as patch:
        patch.setattr(Random, "_scores", broken)
        failed = made(tmp_path, ["random"]).run()
    assert [cell["error"] for cell in failed] == ["RuntimeError: out of memory"] * 2
    cells = made(tmp_path, ["random"]).run()
    assert not any("error" in cell for cell in cells)


def test_texts_of_special_tokens_alone_are_left_out_with_a_warning(tmp_path, caplog):
    examples = [Example("", 0), EXAMPLES[0], Example("[SEP] [MASK]", 1), EXAMPLES[1]]
    (cell,) = made(tmp_path, ["bcos"], examples=examples, pairs=0).run()
    assert [record["index"] for record in cell["records"]] == [1, 3]
    assert cell["texts"] == 2
    said = [record.message for record in caplog.records if "B-cos" in record.message]
    assert said == [
        "2 of 4 texts have no token that is not a special one for the tokenizer of B-cos and are left out."
    ]
    with pytest.raises(ValueError, match="None of the 2 texts has a token"):
        made(tmp_path, ["bcos"], examples=[Example("", 0), Example("[SEP]", 1)]).run()


# what is left alone, and what is refused


def test_models_and_tokenizers_are_left_as_they_are(tmp_path):
    given = {name: (model.float().train(), tokenizer) for name, (model, tokenizer) in models().items()}
    before = {}
    for name, (model, tokenizer) in given.items():
        next(model.children()).eval()
        model.classifier.weight.requires_grad_(False)
        tokenizer.backend_tokenizer.enable_truncation(17)
        tokenizer.backend_tokenizer.enable_padding(length=9)
        before[name] = _state(model, tokenizer)
    made(tmp_path, ["bcos", "integrated_gradients", "attention", "search"], given, limit=2).run()
    for name, (model, tokenizer) in given.items():
        after = _state(model, tokenizer)
        assert after.keys() == before[name].keys()
        assert all(torch.equal(a, b) for a, b in zip(after.pop("weights"), before[name].pop("weights"), strict=True))
        assert after == before[name]


def _state(model, tokenizer) -> dict:
    return {
        "weights": [tensor.clone() for tensor in model.state_dict().values()],
        "modes": [child.training for child in model.modules()],
        "gradients": [(p.requires_grad, p.grad, p.dtype, p.device) for p in model.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "config": model.config.to_dict(),
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
    }


def labelled(labels: list[str], seed: int = 3):
    return bcos_model(seed=seed, id2label=dict(enumerate(labels)), num_labels=len(labels)), make_tokenizer()


def test_models_that_cannot_be_compared(tmp_path, calls):
    three = labelled(["bad", "good", "so so"])
    with pytest.raises(
        ValueError, match="need the same classes in the same order: 'a' has bad, good, so so, 'b' has "
    ):
        made(tmp_path, None, {"a": three, "b": labelled([str(i) for i in range(9)])}).run()
    with pytest.raises(ValueError, match="'b' has good, bad, so so"):
        made(tmp_path, None, {"a": three, "b": labelled(["good", "bad", "so so"])}).run()
    other = make_tokenizer()
    other.add_tokens(["excellent"])
    unlike = {"a": three, "b": (bcos_model(), other)}
    with pytest.raises(ValueError, match="tokenizers of 'a' and 'b' differ. Leave it out .`pairs` 0."):
        made(tmp_path, None, unlike).run()
    assert calls == []
    assert not tmp_path.joinpath("cells").exists()
    assert len(made(tmp_path, ["random"], unlike, pairs=0).run()) == 2
    assert len(made(tmp_path, ["random"], {"a": three, "b": labelled(["no", "yes", "maybe"])}).run()) == 2


def test_models_and_texts_that_cannot_be_measured(tmp_path, checkpoint):
    for fields in ({"num_labels": 1}, {"problem_type": "regression"}, {"problem_type": "multi_label_classification"}):
        with pytest.raises(ValueError, match="need a classifier with one label a text"):
            made(tmp_path, None, {**models(), "other": (bcos_model(**fields), make_tokenizer())}).run()
    with pytest.raises(ValueError, match="Text 1 has the label 3, but the model has 3 classes, 0 … 2: LABEL_0, "):
        made(tmp_path, None, examples=[EXAMPLES[0], Example("a film", 3)]).run()
    with pytest.raises(ValueError, match="Text 0 has the label -1"):
        made(tmp_path, None, examples=[Example("a film", -1)]).run()
    with pytest.raises(
        ValueError, match=r"has no trained classifier: classifier.bias, classifier.weight would be drawn"
    ):
        made(tmp_path, None, {"mine": str(checkpoint)}).run()
    with pytest.raises(OSError, match="nowhere"):
        made(tmp_path, None, {**models(), "other": str(tmp_path / "nowhere")}).run()
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token: use replacement='attention'"):
        made(tmp_path, None, {"mine": (bcos_model(), tokenizer)}).run()
    with pytest.raises(ValueError, match="explain B-cos models only, and none of .'plain'. is one"):
        made(tmp_path, ["bcos"], {"plain": models()["plain"]}).run()
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Unknown methods 'gradcam', 'b-cos'; there are: saliency, .*, bcos, search"):
        made(tmp_path, ["gradcam", "bcos", "b-cos"])
    for options in ({"given": {}}, {"examples": []}, {"methods": []}):
        with pytest.raises(ValueError, match="needs models, texts and methods"):
            made(tmp_path, **options)
    for name, value in {
        "limit": 0,
        "max_length": 0,
        "pairs": -1,
        "search_budget": 0,
        "batch_tokens": 2.5,
        "seed": None,
    }.items():
        with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least"):
            BenchmarkSettings(**{name: value})
    with pytest.raises(ValueError, match=r"`min_probability` must lie in \[0, 1\]"):
        BenchmarkSettings(min_probability=80)
    with pytest.raises(ValueError, match="`replacement` must be one of"):
        BenchmarkSettings(replacement="delete")
    with pytest.raises(ValueError, match="Unknown methods 'limes'"):
        BenchmarkSettings(method_options={"limes": {}})
    assert made(tmp_path, ["random", "bcos", "random"]).methods == ["random", "bcos"]


# the script


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
        *("table.csv", "table.md", "table.tex", "records.jsonl", "faithfulness.png")
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


def test_tokenizers_without_a_mask_token(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    given = {"plain": (conventional("bert"), tokenizer)}
    cells = made(tmp_path, ["random", "search"], given, replacement="attention", limit=None).run()
    assert not any("error" in cell for cell in cells)
    assert cells[0]["seqpg"]

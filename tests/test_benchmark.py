"""The faithfulness benchmark: its numbers, what it leaves alone, what it refuses, what fails."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from attribution_toys import conventional
from bcos_transformers.evaluation import benchmark as module
from bcos_transformers.evaluation.attribution_runs import attribute_rows
from bcos_transformers.evaluation.baselines import build_method
from bcos_transformers.evaluation.baselines.direct import Random
from bcos_transformers.evaluation.benchmark import BenchmarkSettings
from bcos_transformers.evaluation.benchmark_data import Example, choose
from bcos_transformers.evaluation.perturbation import perturbation_scores
from bcos_transformers.evaluation.plausibility import plausibility_scores
from bcos_transformers.evaluation.pointing_game import row_of, seqpg
from bcos_transformers.evaluation.rows import ChangedRow, Classifier, encode_rows
from benchmark_toys import EXAMPLES, LABELS, TEXTS, made, models
from conftest import bcos_model, make_tokenizer
from contract import tiny_config


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


def test_pairs_are_made_anew_where_texts_are_cut_to_another_length(tmp_path):
    """Also where the texts that are measured are too short to be cut and only the pool's are not."""
    sizes = [len(ids) for ids in make_tokenizer()([example.text for example in EXAMPLES]).input_ids]
    short = min(range(len(sizes)), key=sizes.__getitem__)
    seed = next(seed for seed in range(1000) if choose(len(sizes), 1, seed) == [short])
    options = {"limit": 1, "min_probability": 0.2, "seed": seed}
    long, cut = (made(tmp_path / "one", ["random"], max_length=n, **options) for n in (32, 8))
    assert long.pairs() != cut.pairs() == made(tmp_path / "fresh", ["random"], max_length=8, **options).pairs()


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


def test_a_method_that_fails_does_not_stop_the_others(tmp_path, caplog, explained):
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
    explained.clear()
    caplog.clear()
    assert made(tmp_path, methods, given, pairs=0).run() == cells  # tried again, in vain
    assert explained == []
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


def test_models_that_cannot_be_compared(tmp_path, explained):
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
    assert explained == []
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


def test_tokenizers_without_a_mask_token(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    given = {"plain": (conventional("bert"), tokenizer)}
    cells = made(tmp_path, ["random", "search"], given, replacement="attention", limit=None).run()
    assert not any("error" in cell for cell in cells)
    assert cells[0]["seqpg"]

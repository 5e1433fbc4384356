"""The benchmark on disk: interrupted, resumed, damaged, made from something else."""

import os
from dataclasses import replace

import pytest
import torch

from bcos_transformers.evaluation.baselines import METHODS
from benchmark_toys import EXAMPLES, LABELS, contents, made, models, without_seconds
from conftest import bcos_model, make_tokenizer


def test_interrupted_and_resumed(tmp_path, monkeypatch, explained):
    methods = ["bcos", "random", "occlusion", "search"]
    whole = made(tmp_path / "whole", methods).run()
    explained.clear()
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

    explained.clear()
    cells = made(output, methods).run()
    assert set(explained) == {"occlusion"}
    assert without_seconds(cells) == without_seconds(whole)
    after = {path.name: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}
    assert set(after) == set(before) | {"B-cos--occlusion.json", "B-cos--search.json"}
    assert {name: after[name] for name in before} == before

    explained.clear()
    assert made(output, methods).run() == cells
    assert explained == []


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


def recomputed(output, explained, *, methods=("occlusion", "random"), **changed) -> set[str]:
    explained.clear()
    made(output, methods, **changed).run()
    return set(explained)


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
def test_what_changes_the_numbers_is_computed_again(tmp_path, explained, changed):
    common = {"methods": ["random"], "limit": None if "examples" in changed else 4}
    recomputed(tmp_path, explained, **common)
    assert recomputed(tmp_path, explained, **common) == set()
    assert recomputed(tmp_path, explained, **{**common, **changed}) == {"random"}


def test_only_what_changes_is_computed_again(tmp_path, explained):
    methods = ("random", "gradient_shap", "search")
    recomputed(tmp_path, explained, methods=methods, limit=4)
    for changes, methods_again in (
        ({"method_options": {"lime": {"n_samples": 3}}}, set()),
        ({"search_budget": 5}, set()),  # the search explains nothing
        ({"method_options": {"gradient_shap": {"n_samples": 2}}}, {"gradient_shap"}),
        ({"method_options": {"random": {"seed": 7}}}, {"random", "gradient_shap"}),  # and the other one as it was
        ({"method_options": {"random": {"seed": 7}}, "methods": ("random", "saliency")}, {"saliency"}),
    ):
        assert recomputed(tmp_path, explained, **{"methods": methods, "limit": 4, **changes}) == methods_again, changes


def test_changed_weights_configuration_and_tokenizer_are_computed_again(tmp_path, explained):
    given = models()
    common = {"given": given, "pairs": 0, "methods": ["random"]}
    recomputed(tmp_path, explained, **common)
    assert recomputed(tmp_path, explained, **common) == set()
    with torch.no_grad():
        given["B-cos"][0].classifier.weight[0, 0] += 1e-6
    files = [tmp_path / "cells" / f"{name}--random.json" for name in given]
    before = [file.stat().st_mtime_ns for file in files]
    assert recomputed(tmp_path, explained, **common) == {"random"}
    after = [file.stat().st_mtime_ns for file in files]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]  # the other model's cell stays
    given["plain"][0].config.layer_norm_eps = 1e-3
    assert recomputed(tmp_path, explained, **common) == {"random"}
    given["plain"][1].add_tokens(["excellent"])
    assert recomputed(tmp_path, explained, **common) == {"random"}
    given["plain"][0].config.name_or_path = "somewhere/else"
    assert recomputed(tmp_path, explained, **common) == set()


def test_the_pairs_of_other_weights_are_other_pairs(tmp_path, explained):
    given = models()
    recomputed(tmp_path, explained, given=given)
    with torch.no_grad():
        given["plain"][0].classifier.bias += 1e-6
    explained.clear()
    made(tmp_path, ["bcos"], given).run()
    assert "bcos" in explained
    assert len(list((tmp_path / "cells").glob("pairs-*"))) == 2


@pytest.mark.parametrize("content", [b"", b'{"model": "plain", "fing', b"[]", b"\xff\xfe", None])
def test_damaged_files_are_made_again(tmp_path, explained, caplog, content):
    cells = made(tmp_path, ["random"]).run()
    for path in (tmp_path / "cells").iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    explained.clear()
    caplog.clear()
    assert made(tmp_path, ["random"]).finished() == []
    assert without_seconds(made(tmp_path, ["random"]).run()) == without_seconds(cells)
    assert explained
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

"""Projection: against a slow search with loops; distinctness, ties, streaming, reloading, refusals."""

import io
import math

import pytest
import torch
from datasets import Dataset
from transformers import RobertaConfig

from bcos_transformers import (
    ProtoConfig,
    ProtoForSequenceClassification,
    from_pretrained_bcos,
    initialize_prototypes,
    project_prototypes,
)
from bcos_transformers.prototypes import texts as proto_texts
from conftest import tiny_config
from proto_training_toys import embedding, proto_model, rows, same_state, scores, state_of

CASES = [
    {"distance": "l2"},
    {"distance": "cosine"},
    {"distance": "cosine", "bcos": True},
    {"num_labels": 1},
    {"num_labels": 3, "num_prototypes": 9},
]


def data_for(model) -> list[dict]:
    return scores() if model.config.is_regression else rows(labels=model.config.num_labels)


def bin_of(model, label) -> int:
    return sum(label >= bound for bound in model.config.regression_boundaries) if model.config.is_regression else label


def distance_of(model, one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double(), other.double()
    if model.config.distance == "l2":
        return math.sqrt(sum(float(d) ** 2 for d in one - other))
    return 1 - float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def slow_projection(model, data, tokenizer) -> list[int]:
    """Rows, by going over all pairs of a prototype and a distinct text, nearest first."""
    pairs, seen = [], set()
    for index, row in enumerate(data):
        key = (tuple(tokenizer(row["text"])["input_ids"]), bin_of(model, row["label"]))
        if key in seen:
            continue
        seen.add(key)
        embedded = embedding(model, tokenizer, row["text"])
        for prototype, place in enumerate(model.prototypes.detach()):
            if prototype // model.config.prototypes_per_class == key[1]:
                pairs.append((distance_of(model, embedded, place), prototype, index))
    chosen = {}
    for _, prototype, index in sorted(pairs):
        if prototype not in chosen and index not in chosen.values():
            chosen[prototype] = index
    return [chosen[prototype] for prototype in range(len(chosen))]


@pytest.mark.parametrize("fields", CASES, ids=str)
def test_projection_equals_a_slow_search(fields, tokenizer, tmp_path):
    model = proto_model(**fields)
    data, before = data_for(model), model.prototypes.detach().clone()
    wanted = slow_projection(model, data, tokenizer)
    model.train()
    found = project_prototypes(model, data, tokenizer, batch_size=3)
    assert model.training
    assert found == model.config.prototypes
    assert [one["index"] for one in found] == wanted
    assert len(set(wanted)) == model.config.num_prototypes
    model.save_pretrained(tmp_path)
    again = ProtoForSequenceClassification.from_pretrained(tmp_path)
    assert again.config.prototypes == found
    for j, (one, kept) in enumerate(zip(found, again.prototypes, strict=True)):
        row = data[one["index"]]
        assert one["text"] == row["text"]
        assert one["label"] == (row["label"] if model.config.is_regression else model.config.id2label[row["label"]])
        assert bin_of(model, row["label"]) == j // model.config.prototypes_per_class
        own = embedding(again, tokenizer, one["text"])
        torch.testing.assert_close(kept.detach(), own, atol=1e-5, rtol=0)
        assert one["distance"] == pytest.approx(distance_of(model, own, before[j]), abs=1e-5)
        assert [type(one[name]) for name in ("text", "index", "distance")] == [str, int, float]


def test_streaming_and_the_kind_of_data_set_do_not_change_the_result(tokenizer):
    class SingleRows:
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            if isinstance(index, slice):
                raise TypeError("single rows only")
            return data[index]

    data = rows(200)
    renamed = Dataset.from_list(data).rename_columns({"text": "sentence", "label": "y"}).with_format("torch")
    columns = {"text_column": "sentence", "label_column": "y"}
    results = []
    for given, options in [
        (data, {"batch_size": 1}),
        (data, {"batch_size": 64}),
        (SingleRows(), {}),
        (renamed, columns),
    ]:
        model = proto_model()
        results.append((project_prototypes(model, given, tokenizer, **options), model.prototypes.detach()))
    for found, prototypes in results[1:]:
        assert found == results[0][0]
        assert torch.equal(prototypes, results[0][1])


def test_memory_is_bounded_by_chunks(tokenizer, monkeypatch):
    sizes = []
    real = proto_texts.TrainingTexts._encoded

    def encoded(self, some):
        sizes.append(len(some))
        return real(self, some)

    monkeypatch.setattr(proto_texts.TrainingTexts, "_encoded", encoded)
    project_prototypes(proto_model(), rows(300), tokenizer, batch_size=2)
    assert max(sizes) == 64


def test_prototypes_at_the_same_place_become_different_texts(tokenizer):
    model, data = proto_model(), [row for row in rows(120) for _ in range(2)]
    with torch.no_grad():
        model.prototypes.copy_(model.prototypes[:1].expand_as(model.prototypes))
    found = project_prototypes(model, data, tokenizer)
    for members in (found[:3], found[3:]):
        assert len({one["text"] for one in members}) == 3
        # A tie between prototypes: the first one is served first.
        assert [one["distance"] for one in members] == sorted(one["distance"] for one in members)
    first = {}
    for index, row in enumerate(data):
        first.setdefault((row["text"], row["label"]), index)
    assert all(one["index"] == first[one["text"], i // 3] for i, one in enumerate(found))


def test_texts_of_equal_distance_are_taken_in_their_order(tokenizer):
    model, data = proto_model(), rows(60)
    model.embed = lambda input_ids, attention_mask, **inputs: (torch.ones(len(input_ids), 16), None, None)
    wanted = []
    for label in (0, 1):
        texts = {row["text"]: index for index, row in reversed(list(enumerate(data))) if row["label"] == label}
        wanted += sorted(texts.values())[:3]
    found = [one["index"] for one in project_prototypes(model, data, tokenizer, batch_size=4)]
    assert sorted(found[:3]) + sorted(found[3:]) == wanted


def test_one_text_may_stand_for_two_classes(tokenizer):
    model = proto_model(num_prototypes=2)
    data = [{"text": "the film", "label": 0}, {"text": "the film", "label": 1}]
    assert [one["index"] for one in project_prototypes(model, data, tokenizer)] == [0, 1]


def without(label):
    return [row for row in rows() if row["label"] != label]


REFUSED = {
    "a class is missing": (without(1), r"none of class 1 \('LABEL_1'\)"),
    "too few distinct texts": (without(1) + [{"text": "the film", "label": 1}] * 5, "1 distinct texts of class 1"),
    "a column is missing": ([{"sentence": "a", "label": 0}], "no column 'text', only 'sentence', 'label'"),
    "a label outside": (rows() + [{"text": "a", "label": 2}], "from 0 to 1, got 2 in row 60"),
    "an ignored label": (rows() + [{"text": "a", "label": -100}], "got -100 in row 60"),
    "a label's name": (rows() + [{"text": "a", "label": "good"}], "got 'good' in row 60"),
    "no text": (rows() + [{"text": None, "label": 0}], "got None in row 60"),
    "nothing": ([], "no rows"),
}


@pytest.mark.parametrize("act", [project_prototypes, initialize_prototypes])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_data_leaves_the_model_alone(act, case, tokenizer):
    model = proto_model().train()
    model.config.prototypes = [{"text": str(i)} for i in range(6)]
    before = state_of(model)
    data, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        act(model, data, tokenizer)
    assert same_state(state_of(model), before)


def test_refused_regressions(tokenizer):
    model = proto_model(num_labels=1)
    with pytest.raises(ValueError, match=r"none of bin 2 \(values from .* to inf\)"):
        project_prototypes(model, [row for row in scores() if row["label"] < 1], tokenizer)
    for value in (math.nan, "high", None):
        with pytest.raises(ValueError, match="finite numbers, got .* in row 60"):
            project_prototypes(model, [*scores(), {"text": "a", "label": value}], tokenizer)


@pytest.mark.parametrize("act", [project_prototypes, initialize_prototypes])
def test_a_distance_that_is_not_a_number(act, tokenizer):
    model = proto_model()
    with torch.no_grad():
        model.backbone.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids("soup")] = math.nan
        model.prototypes.normal_()
    before = state_of(model)["weights"]
    with pytest.raises(ValueError, match=r"the text of row \d+ \('.*soup.* is not finite|NaN or infinite"):
        act(model, [row for row in rows() if "soup" in row["text"]], tokenizer)
    assert torch.equal(model.prototypes, before["prototypes"])
    assert model.config.prototypes is None


def test_refused_arguments(checkpoint, tokenizer):
    other = from_pretrained_bcos(checkpoint, task="sequence-classification")
    with pytest.raises(TypeError, match="ProtoForSequenceClassification is needed, got BcosBertFor"):
        project_prototypes(other, rows(), tokenizer)
    model = proto_model()
    with pytest.raises(TypeError, match="mapping of"):
        project_prototypes(model, {"train": rows()}, tokenizer)
    with pytest.raises(TypeError, match="must have a length"):
        project_prototypes(model, iter(rows()), tokenizer)
    for name in ("batch_size", "max_length"):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            project_prototypes(model, rows(), tokenizer, **{name: 0})


@pytest.mark.parametrize("encoder", ["bert", "roberta", "bcos-bert"])
def test_long_texts_are_cut_to_what_the_model_takes(encoder, tokenizer):
    tokenizer.model_max_length = 10**30
    data = [{**row, "text": row["text"] + " and it" * 40} for row in rows()]
    model = proto_model(bcos=encoder == "bcos-bert")  # 32 positions, of which RoBERTa leaves one to padding
    if encoder == "roberta":
        config = RobertaConfig(**{**tiny_config().to_dict(), "pad_token_id": 0})
        model = ProtoForSequenceClassification(ProtoConfig(backbone_config=config, num_prototypes=6))
    assert len(project_prototypes(model, data, tokenizer)) == 6
    with pytest.raises((RuntimeError, IndexError)):
        model(**tokenizer(data[0]["text"], return_tensors="pt"))


def test_silent_where_there_is_no_terminal(tokenizer, capfd):
    project_prototypes(proto_model(), rows(), tokenizer)
    assert capfd.readouterr() == ("", "")


def test_a_progress_bar_on_a_terminal(tokenizer, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    project_prototypes(proto_model(), rows(), tokenizer)
    shown = terminal.getvalue()
    assert "Projection" in shown
    assert "0/60" in shown
    assert not shown.rpartition("\r")[2].strip()  # it goes when it is done


class TestInitialisation:
    def test_prototypes_are_distinct_texts_of_their_class(self, tokenizer):
        model, data = proto_model(num_labels=3, num_prototypes=9), rows(60, labels=3)
        model.config.prototypes = [{}] * 9
        initialize_prototypes(model, data, tokenizer)
        assert model.config.prototypes is None
        used = []
        for j, prototype in enumerate(model.prototypes.detach()):
            found = [
                row["text"]
                for row in data
                if row["label"] == j // 3
                and torch.allclose(embedding(model, tokenizer, row["text"]), prototype, atol=1e-5)
            ]
            assert len(set(found)) == 1
            used.append(found[0])
        assert all(len(set(used[i : i + 3])) == 3 for i in (0, 3, 6))

    def test_bins_of_a_regression(self, tokenizer):
        model = proto_model(num_labels=1)
        initialize_prototypes(model, scores(), tokenizer)
        distances = [one["distance"] for one in project_prototypes(model, scores(), tokenizer)]
        assert max(distances) < 1e-5

    def test_seed_decides_and_other_random_numbers_are_left_alone(self, tokenizer):
        found = []
        for seed in (0, 0, 1):
            model = proto_model().train()
            torch.manual_seed(len(found))
            state = torch.get_rng_state()
            initialize_prototypes(model, rows(), tokenizer, seed=seed)
            assert torch.equal(torch.get_rng_state(), state)
            found.append(model.prototypes.detach())
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])

"""Prototype-level comprehensiveness and sufficiency, and what the projection of single prototypes costs."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from bcos_transformers import ProtoConfig, ProtoForSequenceClassification
from bcos_transformers.evaluation.prototypes import (
    faithfulness_of_texts,
    pooled_embeddings,
    prototype_faithfulness,
    share_of_prototypes_that_keep_accuracy,
)
from conftest import make_tokenizer, tiny_config

WEIGHT = torch.tensor([[1.0, 2.0, -0.5], [-1.0, 0.5, 1.0]], dtype=torch.float64)
SIMILARITIES = torch.tensor([[1.0, 0.5, 0.25], [0.1, 0.2, 3.0]], dtype=torch.float64)
EXACT = {"rel": 0, "abs": 1e-12}


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_a_classifier_by_hand():
    # Text 0: shares of class 0 are 1, 1, -0.125; logits 1.875 and -0.5. Without the first prototype 0.875 and 0.5.
    # Text 1: shares of class 1 are -0.1, 0.1, 3; logits -1 and 3. Without the third prototype 0.5 and 0.
    found = prototype_faithfulness(WEIGHT, SIMILARITIES, counts=(1, 2, 3))
    p = [sigmoid(1.875 + 0.5), sigmoid(3 + 1)]
    without = [sigmoid(0.875 - 0.5), sigmoid(0 - 0.5)]
    alone = [sigmoid(1 + 1), sigmoid(3 + 1.5)]
    assert found[0].comprehensiveness[0] == pytest.approx((p[0] - without[0] + p[1] - without[1]) / 2, **EXACT)
    assert found[0].sufficiency[0] == pytest.approx((p[0] - alone[0] + p[1] - alone[1]) / 2, **EXACT)
    # With two removed: text 0 keeps the third, -0.125 and 0.25; text 1 keeps the first, 0.1 and -0.1.
    without = [sigmoid(-0.125 - 0.25), sigmoid(-0.1 - 0.1)]
    alone = [sigmoid(2 + 0.75), sigmoid(3.1 + 1.1)]
    assert found[1].comprehensiveness[0] == pytest.approx((p[0] - without[0] + p[1] - without[1]) / 2, **EXACT)
    assert found[1].sufficiency[0] == pytest.approx((p[0] - alone[0] + p[1] - alone[1]) / 2, **EXACT)
    # All removed: nothing speaks for any class. All kept: nothing has changed.
    assert found[2].comprehensiveness[0] == pytest.approx((p[0] + p[1]) / 2 - 0.5, **EXACT)
    assert found[2].sufficiency[0] == pytest.approx(0, **EXACT)
    assert found[2].random_comprehensiveness[0] == pytest.approx(found[2].comprehensiveness[0], **EXACT)
    assert [one.count for one in found] == [1, 2, 3]
    for one in found:
        for center, low, high in (one.comprehensiveness, one.random_sufficiency):
            assert low - 1e-12 <= center <= high + 1e-12


def test_the_bias_stays_when_prototypes_go():
    bias = torch.tensor([0.3, -0.2])
    (found,) = prototype_faithfulness(WEIGHT, SIMILARITIES[:1], bias, counts=(3,))
    expected = sigmoid(1.875 + 0.5 + 0.5) - sigmoid(0.5)
    assert found.comprehensiveness[0] == pytest.approx(expected, abs=1e-7)  # the bias is in float32


def test_a_regression_by_hand():
    # Text 0 is moved up by 2 - 0.5 + 1, text 1 down by -3 + 1 - 0.5: what speaks for the value comes first.
    weight = torch.tensor([[2.0, -0.5, 1.0]], dtype=torch.float64)
    similarities = torch.tensor([[1.0, 1.0, 1.0], [-1.5, -2.0, -0.5]], dtype=torch.float64)
    found = prototype_faithfulness(weight, similarities, torch.tensor([7.0]), counts=(1, 2))
    assert found[0].comprehensiveness[0] == pytest.approx((2 + 3) / 2, **EXACT)
    assert found[0].sufficiency[0] == pytest.approx((0.5 + 0.5) / 2, **EXACT)
    assert found[1].comprehensiveness[0] == pytest.approx((3 + 3.5) / 2, **EXACT)
    assert found[1].sufficiency[0] == pytest.approx((0.5 + 1) / 2, **EXACT)


def test_random_prototypes_do_as_much_where_all_are_alike_and_less_where_one_decides():
    alike = torch.cat([torch.ones(1, 12), -torch.ones(1, 12)])
    (found,) = prototype_faithfulness(alike, torch.full((40, 12), 0.1), counts=(4,))
    assert found.random_comprehensiveness[0] == pytest.approx(found.comprehensiveness[0], **EXACT)
    assert found.random_sufficiency[0] == pytest.approx(found.sufficiency[0], **EXACT)
    drawn = torch.rand(200, 12, generator=torch.Generator().manual_seed(0)) * 1e-3 + 0.1
    (found,) = prototype_faithfulness(alike, drawn, counts=(4,))
    assert found.random_comprehensiveness[0] == pytest.approx(found.comprehensiveness[0], abs=1e-3)
    decides = alike.clone()
    decides[:, 0] *= 30
    (found,) = prototype_faithfulness(decides, torch.full((40, 12), 0.1), counts=(1,))
    assert found.comprehensiveness[1] > found.random_comprehensiveness[2]
    assert found.sufficiency[2] < found.random_sufficiency[1]


def test_draws_depend_on_the_seed_alone_and_shares_name_counts():
    options = {"weight": WEIGHT, "similarities": SIMILARITIES.repeat(5, 1)}
    first = prototype_faithfulness(**options, counts=(1,), seed=1)
    assert first == prototype_faithfulness(**options, counts=(1,), seed=1)
    assert first != prototype_faithfulness(**options, counts=(1,), seed=2)
    assert prototype_faithfulness(**options, counts=(2,)) == prototype_faithfulness(**options, counts=(0.67,))
    assert prototype_faithfulness(**options, counts=(0.01,))[0].count == 1
    assert [one.count for one in prototype_faithfulness(**options)] == [1, 2]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"counts": (4,)}, "Of 3 prototypes, 4 cannot be removed"),
        ({"counts": (0,)}, "Of 3 prototypes, 0 cannot"),
        ({"counts": ()}, "`counts` is empty"),
        ({"counts": (1.5,)}, r"share of prototypes lies in \(0, 1\], got 1.5"),
        ({"counts": ("1",)}, "is an int, or a float as their share, got '1'"),
        ({"draws": 0}, "`draws` must be an integer of at least 1"),
        ({"similarities": SIMILARITIES[:0]}, "At least one text"),
        ({"similarities": SIMILARITIES[:, :2]}, r"got \(2, 3\) and \(2, 2\)"),
        ({"similarities": SIMILARITIES * float("nan")}, "Similarities must be finite"),
        ({"bias": torch.zeros(3)}, r"one number for each of 2 labels, got \(3,\)"),
    ],
)
def test_what_cannot_be_measured_is_said(change, match):
    with pytest.raises(ValueError, match=match):
        prototype_faithfulness(**{"weight": WEIGHT, "similarities": SIMILARITIES, **change})


@pytest.fixture
def model() -> ProtoForSequenceClassification:
    torch.manual_seed(0)
    config = ProtoConfig(backbone_config=tiny_config(), num_prototypes=6, num_labels=3, classifier_bias=True)
    model = ProtoForSequenceClassification(config)
    torch.nn.init.normal_(model.prototypes)
    torch.nn.init.normal_(model.classifier.bias)
    return model


def test_of_texts_is_what_the_model_itself_says_without_a_prototype(model):
    tokenizer = make_tokenizer()
    texts = ["the film was good", "dull soup", "it was not very funny and not great"]
    model.train()
    found = faithfulness_of_texts(model, tokenizer, texts, counts=(2,), batch_size=2)
    assert model.training
    model.eval()
    drops = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs)
            target = output.logits.argmax()
            best = (model.classifier.weight[target] * output.similarities[0]).topk(2).indices
            kept = output.similarities.index_fill(1, best, 0.0)
            drops.append((output.logits.softmax(-1) - model.classifier(kept).softmax(-1))[0, target].item())
    assert found[0].comprehensiveness[0] == pytest.approx(sum(drops) / 3, abs=1e-6)
    assert pooled_embeddings(model, tokenizer, texts, batch_size=2).shape == (3, 16)
    with pytest.raises(ValueError, match="At least one text is needed"):
        faithfulness_of_texts(model, tokenizer, [])


def test_texts_are_cut_to_what_the_model_reads(model):
    tokenizer = make_tokenizer()
    long = "the film was good " * 30
    short = pooled_embeddings(model, tokenizer, [long], max_length=8)
    for limit in (32, 10**30):  # the model has 32 positions
        tokenizer.model_max_length = limit
        found = pooled_embeddings(model, tokenizer, [long])
        assert torch.equal(found, pooled_embeddings(model, tokenizer, [long], max_length=32))
        assert torch.equal(found, pooled_embeddings(model, tokenizer, [long], max_length=100))
        assert not torch.allclose(found, short)
    tokenizer.model_max_length = 8
    assert torch.equal(pooled_embeddings(model, tokenizer, [long]), short)


def test_of_texts_with_an_adapter_on_the_last_layer(model):
    tokenizer, texts = make_tokenizer(), ["the film was good", "dull soup"]
    before = faithfulness_of_texts(model, tokenizer, texts)
    adapted = get_peft_model(model, LoraConfig(target_modules=["classifier"], r=2, init_lora_weights=False))
    found = faithfulness_of_texts(adapted, tokenizer, texts)
    merged = faithfulness_of_texts(adapted.merge_and_unload(), tokenizer, texts)
    for one, other, plain in zip(found, merged, before, strict=True):
        assert one.comprehensiveness == pytest.approx(other.comprehensiveness, abs=1e-5)
        assert one.comprehensiveness != pytest.approx(plain.comprehensiveness, abs=1e-3)


class TestProjectionOfSinglePrototypes:
    """Texts at 0, 1, 9 and 10 on a line; one prototype of each class at its end of it."""

    embeddings = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    labels = torch.tensor([0, 0, 1, 1])
    before = torch.tensor([[0.0], [10.0]])
    weight = torch.tensor([[1.0, -0.5], [-0.5, 1.0]])

    def share(self, after, **options):
        return share_of_prototypes_that_keep_accuracy(
            self.embeddings, self.labels, self.before, torch.tensor(after), self.weight, **options
        )

    def test_each_is_moved_alone(self):
        # The first moved to 19 loses its own class's texts, 9 and 10 nearer to the second; the second may move to 9.
        found = self.share([[19.0], [9.0]])
        assert found.before == 1.0
        assert found.accuracies == (0.5, 1.0)
        assert found.share == 0.5
        assert self.share([[19.0], [9.0]], tolerance=0.5).share == 1.0
        assert self.share([[0.0], [10.0]]).share == 1.0

    def test_accuracy_that_rises_is_kept(self):
        found = share_of_prototypes_that_keep_accuracy(
            self.embeddings, self.labels, torch.tensor([[19.0], [10.0]]), self.before, self.weight
        )
        assert (found.before, found.accuracies, found.share) == (0.5, (1.0, 0.5), 1.0)

    def test_directions_with_the_cosine(self):
        embeddings = torch.tensor([[1.0, 0.1], [0.1, 1.0]])
        before, after = torch.eye(2), torch.tensor([[-1.0, 0.0], [0.2, 1.0]])
        found = share_of_prototypes_that_keep_accuracy(
            embeddings, torch.tensor([0, 1]), before, after, self.weight, "cosine"
        )
        assert found.accuracies == (0.5, 1.0)
        moved = share_of_prototypes_that_keep_accuracy(
            embeddings, torch.tensor([0, 1]), before, 7 * before, self.weight, "cosine"
        )
        assert moved.share == 1.0

    def test_the_bias_counts(self):
        assert self.share([[0.0], [10.0]], bias=torch.tensor([100000.0, 0.0])).before == 0.5

    def test_mistakes(self):
        with pytest.raises(ValueError, match="a regression has none"):
            share_of_prototypes_that_keep_accuracy(
                self.embeddings, self.labels.float(), self.before, self.before, self.weight
            )
        with pytest.raises(ValueError, match=r"got \(2, 1\), \(1, 1\) and \(4, 1\)"):
            self.share([[0.0]])
        with pytest.raises(ValueError, match="4 texts need as many labels"):
            share_of_prototypes_that_keep_accuracy(
                self.embeddings, self.labels[:3], self.before, self.before, self.weight
            )
        with pytest.raises(ValueError, match="At least one text"):
            share_of_prototypes_that_keep_accuracy(
                self.embeddings[:0], self.labels[:0], self.before, self.before, self.weight
            )
        with pytest.raises(ValueError, match="Similarities must be finite"):
            self.share([[float("nan")], [0.0]])

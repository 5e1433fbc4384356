"""Model cards: valid metadata, nothing that a text could break, and only what was measured."""

import dataclasses
import re

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from bcos_transformers import BcosExplainer, CardFacts, from_pretrained_bcos
from bcos_transformers.hub_folder import save_card
from bcos_transformers.model_card import eval_result_files, render_model_card
from conftest import bcos_model
from contract import ALL, tiny_model

HOSTILE = "<script>alert(1)</script> | `code` [link](x) ![i](y) *bold* ~~s~~ $x$ \\ \n---\n# Title\n```python\n"


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def full_facts(**changes) -> CardFacts:
    values = {
        "dataset": "SST-2",
        "results": {"accuracy": 0.847, "loss": 0.36},
        "conventional_results": {"accuracy": 0.895},
        "evaluated_on": "test split",
        "setup": "Seed 0.",
        "largest_residual": 2e-6,
        "licence": "apache-2.0",
        "language": ["en", "de"],
        "dataset_id": "stanfordnlp/sst2",
        "dataset_config": "default",
        "dataset_split": "test",
        "base_model": "org/base",
        "intended_use": "Reviews.",
        "limits": "Short texts only.",
        "date": "2026-01-01",
        "source_url": "https://example.org/numbers",
    }
    return CardFacts("org/name", **{**values, **changes})


def test_metadata_names_everything():
    card = render_model_card(bcos_model(id2label={0: "bad", 1: "good", 2: "so so"}), full_facts())
    data = ModelCard(card).data
    assert data.library_name == "transformers"
    assert data.base_model == "org/base"
    assert data.pipeline_tag == "text-classification"
    assert {"bcos", "explainable-ai"} <= set(data.tags)
    assert data.datasets == ["stanfordnlp/sst2"]
    assert data.language == ["en", "de"]
    assert [(r.metric_type, r.metric_value, r.dataset_type) for r in data.eval_results] == [
        ("accuracy", 0.847, "stanfordnlp/sst2"),
        ("loss", 0.36, "stanfordnlp/sst2"),
    ]
    assert "| accuracy | 84.7 % | 89.5 % |" in card
    assert "| loss | 0.36 | – |" in card
    assert "0 = bad, 1 = good, 2 = so so" in card
    for words in ("2e-06", "Seed 0.", "Reviews.", "Short texts only.", "Texts beyond 32 tokens", "trust_remote_code"):
        assert words in card


def test_without_measurements_it_says_so():
    card = render_model_card(bcos_model(), CardFacts("name"))
    assert "No accuracy was recorded" in card
    assert "Completeness" not in card
    assert "model-index" not in metadata(card)
    assert eval_result_files(CardFacts("name", results={"accuracy": 1.0})) == {}


def test_results_as_files():
    files = eval_result_files(full_facts())
    assert set(files) == {f".eval_results/bcos_stanfordnlp_sst2_{name}.yaml" for name in ("accuracy", "loss")}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/bcos_stanfordnlp_sst2_accuracy.yaml"]))
    assert (entry.dataset_id, entry.value, entry.date) == ("stanfordnlp/sst2", 0.847, "2026-01-01")


def test_hostile_texts_stay_texts():
    names = ("dataset", "evaluated_on", "setup", "intended_use", "limits", "licence", "dataset_id", "base_model")
    facts = full_facts(**dict.fromkeys(names, HOSTILE), results={HOSTILE: 0.5}, example_text=HOSTILE)
    model = bcos_model(id2label={0: HOSTILE, 1: "b", 2: "c"})
    card = render_model_card(model, facts, pictures=[("explanation.png", HOSTILE)])
    plain = render_model_card(bcos_model(id2label={0: "a", 1: "b", 2: "c"}), full_facts())
    body = card.split("\n---\n", 2)[-1]
    prose = "".join(re.split(r"^```python\n.*?^```", body, flags=re.DOTALL | re.MULTILINE))
    assert "<script>" not in prose
    assert "[link](x)" not in prose
    assert "\n# Title" not in card
    fences = [re.findall(r"^```.*", text, flags=re.MULTILINE) for text in (card, plain)]
    assert fences[0] == fences[1]
    assert metadata(card)["license"].startswith("<script>")
    assert re.findall(r"^# .*", prose, flags=re.MULTILINE) == ["# org/name"]
    for block in re.findall(r"^```python\n(.*?)^```", body, flags=re.DOTALL | re.MULTILINE):
        compile(block, "card", "exec")


@pytest.mark.parametrize(("name", "task"), ALL)
def test_every_head_has_code_that_compiles(name, task):
    card = render_model_card(tiny_model(name, task), CardFacts("org/name"))
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert len(blocks) == {"base": 1, "question-answering": 2}.get(task, 3)
    for block in blocks:
        compile(block, "card", "exec")
    assert ("bcos-text-classification" in card) == (task == "sequence-classification")
    assert metadata(card)["pipeline_tag"]


def test_faithfulness_is_a_table():
    line = {"model": "this | one", "method": "bcos", "comprehensiveness": 0.567, "sufficiency": -0.0194, "seqpg": None}
    facts = CardFacts("org/name", faithfulness=[{**line, "cost": 2.0}], faithfulness_of="60 texts")
    card = render_model_card(tiny_model("bert", "sequence-classification"), facts)
    assert "| 56.7 | -1.9 | – | 2.0 |" in card
    assert "this | one" not in card
    assert "Measured on 60 texts." in card
    assert (
        "| model | explanation | comprehensiveness | sufficiency | SeqPG | cost |\n|---|---|---|---|---|---|\n" in card
    )
    people = dataclasses.replace(facts, faithfulness=[{**line, "f1": 0.5}, {**line, "phrases": -0.25, "cost": 1.0}])
    card = render_model_card(tiny_model("bert", "sequence-classification"), people)
    assert "| model | explanation | comprehensiveness | sufficiency | SeqPG | F1 | phrases | cost |\n" in card
    assert "| 56.7 | -1.9 | – | 50.0 | – | – |" in card
    assert "| 56.7 | -1.9 | – | – | -25.0 | 1.0 |" in card
    assert "Agreement with what people marked" in card
    for wrong in ({"method": "bcos"}, {**line, "sufficiency": float("nan")}):
        with pytest.raises(ValueError, match="`faithfulness` of a card"):
            CardFacts("org/name", faithfulness=[wrong])


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"results": {"accuracy": float("nan")}}, ValueError),
        ({"results": {"accuracy": "0.9"}}, ValueError),
        ({"results": 0.9}, TypeError),
        ({"largest_residual": float("inf")}, ValueError),
        ({"dataset": None}, TypeError),
        ({"language": [1]}, TypeError),
    ],
)
def test_what_cannot_be_printed_is_refused(changes, error):
    with pytest.raises(error, match="of a card"):
        full_facts(**changes)
    with pytest.raises(ValueError, match="name"):
        CardFacts(" ")


def test_dropped_biases_and_a_picture_without_a_path(checkpoint, tokenizer, tmp_path):
    model = from_pretrained_bcos(checkpoint, task="sequence-classification", num_labels=2)
    explanation = BcosExplainer(model, tokenizer)("a good film")
    card = save_card(tmp_path, model, full_facts(), [explanation])
    assert re.search(r"\d+ biases dropped", card)
    assert str(checkpoint.parent) not in card
    assert (tmp_path / "explanation.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == card
    assert 'tokenizer(["a good film"]' in card

"""proto-lm travels: code, weights and prototypes by folder and by Hub, with and without the package."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

from bcos_transformers import (
    BcosHubCallback,
    CardFacts,
    ProtoExplainer,
    ProtoForSequenceClassification,
    load_bcos_model,
    push_to_hub,
    train_last_layer_only,
)
from bcos_transformers.hub_folder import save_card
from bcos_transformers.model_card import render_model_card
from hub_helpers import TEXT, logits, missing_code, run
from proto_toys import BINS, NAMES, TEXTS, embed_texts, project, proto_model

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
HOSTILE = "<script>alert(1)</script> | `code` [link](x) *bold* ~~s~~ $x$ \\ \n---\n# Title\n```python\n"
BACKBONES = {
    "conventional": ("bert", True, {"distance": "l2"}),
    "bcos-bert": ("bert", False, {"distance": "cosine"}),
    "bcos-roberta": (
        "roberta",
        False,
        {"distance": "cosine", "classifier_bias": True, "encoder": {"pad_token_id": 0}},
    ),
}


def projected(tokenizer, kind: str = "bcos-bert", **fields) -> ProtoForSequenceClassification:
    backbone, conventional, options = BACKBONES[kind]
    model = proto_model(backbone, conventional, **{"id2label": NAMES, **options, **fields}).float()
    project(model, tokenizer)
    return model


def check_prototypes(model, tokenizer) -> None:
    """Every prototype is the embedding of the text that it is said to be."""
    assert [row["text"] for row in model.config.prototypes] == TEXTS
    again = embed_texts(model, tokenizer, [row["text"] for row in model.config.prototypes])
    torch.testing.assert_close(model.prototypes.detach(), again, rtol=0, atol=1e-5)


WITHOUT_THE_PACKAGE = """
import json, re, contextlib, io
from huggingface_hub import ModelCard
def check(name, wanted, **options):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, **options)
    assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=True, **options)
    inputs = tokenizer(wanted["texts"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert same(model(**inputs).logits, wanted["logits"]), name
    explanation = model.explain(**inputs, target="all")
    for key in wanted["explanation"]:
        assert same(explanation[key].float(), wanted["explanation"][key].float()), (name, key)
    assert set(explanation) == set(wanted["explanation"])
    assert model.config.prototypes == wanted["prototypes"]
    for row, prototype in zip(model.config.prototypes, model.prototypes):
        with torch.no_grad():
            again = model(**tokenizer([row["text"]], return_tensors="pt")).pooled_embedding[0]
        assert (again - prototype).abs().max() < 1e-5, (name, row)
    return model
for kind in KINDS:
    wanted = torch.load(kind + ".pt")
    model = check(kind, wanted)
    if kind == "bcos-roberta":
        model.save_pretrained("again")
        transformers.AutoTokenizer.from_pretrained(kind, trust_remote_code=True).save_pretrained("again")
        lines = open("again/prototypes.jsonl", encoding="utf-8").read().splitlines()
        assert [json.loads(line) for line in lines] == wanted["prototypes"]
        check("again", wanted)
        check("tester/stock-bcos-roberta", wanted)
block = re.findall(r"```python\\n(.*?)```", ModelCard.load("tester/whole-bcos-bert").content, flags=re.DOTALL)[0]
names = {}
with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(block, names)
assert printed.getvalue().count("looks like") == printed.getvalue().count("tensor(") == 3
assert any(text in printed.getvalue() for text in wanted["texts"])
wanted = torch.load("bcos-bert.pt")
assert names["model"].config.prototypes == wanted["prototypes"] and names["revision"] == wanted["revision"]
with torch.no_grad():
    inputs = names["tokenizer"](wanted["texts"], padding=True, return_tensors="pt")
    assert same(names["model"](**inputs).logits, wanted["logits"])
print("all equal")
"""


def test_without_the_package_by_folder_and_by_hub(hub, tokenizer, tmp_path):
    for kind in BACKBONES:
        model = projected(tokenizer, kind)
        check_prototypes(model, tokenizer)
        before = model.config.prototypes
        model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
        wanted = {"texts": TEXTS, "logits": logits(model, **inputs), "prototypes": model.config.prototypes}
        wanted["explanation"] = dict(model.explain(**inputs, target="all"))
        if kind == "bcos-roberta":
            model.push_to_hub(f"tester/stock-{kind}")
            tokenizer.push_to_hub(f"tester/stock-{kind}")
            assert not missing_code(hub.files(f"tester/stock-{kind}"))
            assert "prototypes.jsonl" in hub.files(f"tester/stock-{kind}")
        commit = push_to_hub(model, tokenizer, f"tester/whole-{kind}", example_texts=[TEXT, "bad soup"])
        wanted["revision"] = commit.oid
        (only,) = hub.history(f"tester/whole-{kind}")
        assert only.sha == commit.oid
        files = hub.files(f"tester/whole-{kind}")
        assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "prototypes.jsonl"} <= files.keys()
        assert [json.loads(line) for line in files["prototypes.jsonl"].decode().splitlines()] == before
        assert not missing_code(files)
        assert model.config.prototypes is before
        torch.save(wanted, tmp_path / f"{kind}.pt")
    result = run(WITHOUT_THE_PACKAGE.replace("KINDS", repr(list(BACKBONES))), hub, tmp_path)
    assert "all equal" in result.stdout, result.stderr[-3000:]


def test_with_the_package(hub, tokenizer, tmp_path):
    model = projected(tokenizer)
    explanation = ProtoExplainer(model, tokenizer)(TEXT)
    commit = push_to_hub(
        model, tokenizer, "tester/flagless", facts=CardFacts("?", "reviews"), explanations=[explanation]
    )
    assert hub.files("tester/flagless")["explanation.png"].startswith(b"\x89PNG")
    assert model.name_or_path == "tester/flagless"
    for load in (AutoModelForSequenceClassification.from_pretrained, load_bcos_model):
        again = load("tester/flagless", revision=commit.oid)
        assert type(again) is ProtoForSequenceClassification
        check_prototypes(again, AutoTokenizer.from_pretrained("tester/flagless"))
    assert pipeline("text-classification", model="tester/flagless")(TEXT)[0]["label"] in NAMES.values()
    card = ModelCard.load("tester/flagless")
    card.validate()
    assert f"![Which prototypes “{TEXT}” looks like](explanation.png)" in card.content
    names = {"revision": commit.oid, "tokenizer": tokenizer}
    exec(code_blocks(card.content)[-1], names)
    assert names["explanation"].top(1)[0].text in TEXTS
    again.save_pretrained(tmp_path / "pushed", push_to_hub=True, repo_id="tester/saved", commit_message="On the way")
    assert (tmp_path / "pushed" / "prototypes.jsonl").read_bytes() == hub.files("tester/saved")["prototypes.jsonl"]
    assert hub.history("tester/saved")[-1].message == "On the way"


def test_prototypes_of_an_earlier_push_go(hub, tokenizer):
    model = projected(tokenizer)
    push_to_hub(model, tokenizer, "tester/replaced")
    assert "prototypes.jsonl" in hub.files("tester/replaced")
    model.config.prototypes = None
    push_to_hub(model, tokenizer, "tester/replaced")
    files = hub.files("tester/replaced")
    assert "prototypes.jsonl" not in files
    assert TEXTS[0].encode() not in files["config.json"] + files["README.md"]


def test_every_commit_of_a_trainer_has_code_and_prototypes(hub, tokenizer, tmp_path):
    rows = [{"text": text, "label": i % 3} for i, text in enumerate(TEXTS)]
    data = Dataset.from_list(rows).map(lambda row: tokenizer(row["text"]))
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        push_to_hub=True,
        hub_model_id="tester/trained",
        hub_strategy="every_save",
        hub_always_push=True,
        save_strategy="epoch",
        num_train_epochs=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = projected(tokenizer)
    train_last_layer_only(model)
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[BcosHubCallback()])
    trainer.train()
    trainer._finish_current_push()
    trainer.push_to_hub()
    commits = [commit for commit in hub.history("tester/trained") if "config.json" in commit.files]
    assert len(commits) >= 2
    for commit in commits:
        assert not missing_code(commit.files), commit.message
        assert commit.files["prototypes.jsonl"].count(b"\n") == 6, commit.message
    again = load_bcos_model("tester/trained")
    assert again.config.prototypes == model.config.prototypes
    callback = BcosHubCallback()
    state, control = SimpleNamespace(is_world_process_zero=True), SimpleNamespace(should_save=True)
    unprojected = SimpleNamespace(output_dir=str(tmp_path / "none"))
    callback.on_step_end(unprojected, state, control, model=proto_model())
    assert not list((tmp_path / "none").glob("*.jsonl"))


def code_blocks(card: str) -> list[str]:
    blocks = re.findall(r"^```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        compile(block, "card", "exec")
    return blocks


class TestCard:
    @pytest.mark.parametrize("kind", list(BACKBONES))
    def test_says_what_it_is(self, kind, tokenizer):
        model = projected(tokenizer, kind)
        card = render_model_card(model, CardFacts("org/name", "reviews", {"accuracy": 0.75}, "test split"))
        bcos = kind != "conventional"
        assert "A **proto-lm**" in card
        assert f"6 prototypes, 2 for each label, and the distance `{model.config.distance}`" in card
        assert "**This repository contains training texts**" in card
        assert "| 2 | good | the film is not good |" in card
        assert "0 = bad, 1 = good, 2 = so so" in card
        assert "arXiv:2311.01732" in card
        assert "| accuracy | 75.0 % |" in card
        for words in ("## Conversion", "arXiv:2502.12992", "splits exactly over the input tokens", "B = 1.5"):
            assert (words in card) == bcos, words
        assert "explained in windows" not in card
        assert "bcos-text-classification" not in card
        loading, pipe, package = code_blocks(card)
        assert "ProtoExplainer(model, tokenizer)" in package
        assert "trust_remote_code=True" in loading
        assert ("token_contributions" in loading) == bcos
        assert len(loading.splitlines()) <= 14
        assert 'pipeline("text-classification", model=name' in pipe
        data = ModelCard(card).data
        assert (data.pipeline_tag, data.library_name) == ("text-classification", "transformers")
        assert {"proto-lm", "explainable-ai"} <= set(data.tags)
        assert ("bcos" in data.tags) == bcos

    def test_without_texts_it_names_none(self):
        card = render_model_card(proto_model(conventional=True), CardFacts("name"))
        assert "training texts**" not in card
        assert "learned vectors that have not been replaced by training texts" in card
        assert "prototypes[j]" not in code_blocks(card)[0]

    def test_the_first_of_each_label(self, tokenizer):
        model = proto_model(num_prototypes=12, distance="l2")
        rows = [
            {"text": f"text {j} " + "x" * 300, "label": f"L{j // 4}", "index": j, "distance": 0.0} for j in range(12)
        ]
        model.config.prototypes = rows
        card = render_model_card(model, CardFacts("name"))
        listed = re.findall(r"^\| (\d+) \| (L\d) \| (.*) \|$", card, flags=re.MULTILINE)
        assert [(int(j), label) for j, label, _ in listed] == [(j, f"L{j // 4}") for j in range(12) if j % 4 < 3]
        assert all(len(text) < 210 and text.endswith("…") for _, _, text in listed)
        assert "The first of each label:" in card

    def test_a_regression(self, tokenizer):
        model = proto_model(**BINS)
        model.config.prototypes = [{"text": t, "label": 0.5, "index": 0, "distance": 0.0} for t in TEXTS]
        card = render_model_card(model, CardFacts("name"))
        assert "2 for each bin of the targets" in card
        assert "| 0 | 0.5 |" in card
        assert "they sum to the output" in card
        assert "Labels:" not in card
        code_blocks(card)

    def test_hostile_texts_stay_texts(self, tokenizer):
        model = projected(tokenizer, id2label={0: HOSTILE, 1: "b", 2: "c"})
        model.config.prototypes = [{**row, "text": HOSTILE} for row in model.config.prototypes]
        model.config.prototypes[0]["label"] = HOSTILE
        card = render_model_card(model, CardFacts("org/name", dataset=HOSTILE, example_text=HOSTILE))
        prose = "".join(re.split(r"^```python\n.*?^```", card.split("\n---\n", 2)[-1], flags=re.DOTALL | re.MULTILINE))
        assert "<script>" not in prose
        assert "[link](x)" not in prose
        assert "\n# Title" not in card
        assert all(re.sub(r"\\\|", "", line).count("|") == 4 for line in prose.splitlines() if line.startswith("| "))
        code_blocks(card)
        yaml.safe_load(card.split("---\n")[1])

    def test_is_written_beside_a_saved_model(self, tokenizer, tmp_path):
        model = projected(tokenizer)
        model.save_pretrained(tmp_path)
        card = save_card(tmp_path, model, CardFacts("org/name"))
        assert (tmp_path / "README.md").read_text("utf-8") == card


def test_what_is_refused_before_a_repository_exists(hub, tokenizer):
    model = projected(tokenizer)
    tokenizer.add_tokens([f"new{i}" for i in range(60)])
    with pytest.raises(ValueError, match="belongs to another model"):
        push_to_hub(model, tokenizer, "tester/no")
    with pytest.raises(TypeError, match="must be a tokenizer"):
        push_to_hub(model, None, "tester/no")
    assert "tester/no" not in hub.repos


def test_the_residual_of_the_example_texts_is_on_the_card(hub, tokenizer):
    push_to_hub(projected(tokenizer), tokenizer, "tester/residual", example_texts=[TEXT, ("a film", "the soup")])
    card = hub.files("tester/residual")["README.md"].decode()
    (seen,) = re.findall(r"max \|contribution\| seen: (\S+)\.\n", card)
    assert float(seen) < 1e-5
    assert json.dumps(TEXT) in card

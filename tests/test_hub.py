"""Pushing to and loading from a Hub on loopback, over HTTP."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, constants, parse_eval_result_entries
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    pipeline,
)

import bcos_transformers
from bcos_transformers import BcosExplainer
from bcos_transformers.hub import push_to_hub
from bcos_transformers.model_card import CardFacts
from conftest import bcos_model, make_tokenizer, tiny_config
from contract import tiny_inputs, tiny_model
from hub_helpers import TEXT, logits, missing_code, run, same
from hub_server import running_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
PACKAGED = [
    ("bert", "base"),
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("bert", "masked-lm"),
    ("bert", "question-answering"),
    ("gpt2", "causal-lm"),
]


@pytest.fixture
def model():
    return bcos_model(id2label={0: "bad", 1: "good", 2: "so so"}).float()


def test_one_commit_has_everything(hub, model, tokenizer):
    facts = CardFacts("?", "reviews", {"accuracy": 0.75}, "test split", dataset_id="org/reviews", licence="mit")
    before = json.dumps(model.config.to_dict(), default=str), tokenizer.init_kwargs.copy()
    commit = push_to_hub(model, tokenizer, "tester/whole", facts=facts, example_texts=[TEXT, "the soup was bad"])
    (only,) = hub.history("tester/whole")
    assert only.sha == commit.oid
    files = hub.files("tester/whole")
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    wanted |= {"modeling_bcos_bert.py", "bcos_layers.py", "explanation.png", "explanation_2.png"}
    assert wanted <= files.keys()
    assert not missing_code(files)
    for picture in ("explanation.png", "explanation_2.png"):
        assert files[picture].startswith(b"\x89PNG")
        assert f"]({picture})" in files["README.md"].decode()
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/bcos_org_reviews_accuracy.yaml"]))
    assert (entry.dataset_id, entry.value) == ("org/reviews", 0.75)
    assert facts.name == "?"
    assert model.name_or_path == "tester/whole"
    after = json.loads(json.dumps(model.config.to_dict(), default=str))
    assert tokenizer.init_kwargs == before[1]
    changed = {k for k, v in after.items() if json.loads(before[0]).get(k) != v}
    assert changed <= {"architectures", "auto_map", "custom_pipelines", "dtype"}  # as whenever a model is saved


def test_with_the_package_it_loads_without_the_flag(hub, model, tokenizer):
    commit = push_to_hub(model, tokenizer, "tester/flagless", example_texts=TEXT)
    again = AutoModelForSequenceClassification.from_pretrained("tester/flagless", revision=commit.oid)
    assert type(again) is bcos_transformers.BcosBertForSequenceClassification
    inputs = AutoTokenizer.from_pretrained("tester/flagless")([TEXT], return_tensors="pt")
    assert same(logits(again, **inputs), logits(model, **inputs))
    assert same(again.explain(**inputs).contributions, model.explain(**inputs).contributions)
    assert pipeline("text-classification", model="tester/flagless")(TEXT)[0]["label"] in model.config.id2label.values()
    card = ModelCard.load("tester/flagless")
    card.validate()
    assert card.data.pipeline_tag == "text-classification"
    blocks = re.findall(r"```python\n(.*?)```", card.content, flags=re.DOTALL)
    names = {"revision": commit.oid}
    exec(blocks[-1], names)
    assert names["explanation"].text == TEXT
    assert names["explanation"].scores == pytest.approx(
        BcosExplainer(model, tokenizer)(TEXT).scores, rel=1e-4, abs=1e-6
    )


def test_without_the_package_every_auto_class_tokenizer_pipeline_and_card(hub, tokenizer, tmp_path):
    for name, task in PACKAGED:
        torch.manual_seed(0)
        model = tiny_model(name, task).float()
        repo = f"tester/{task}"
        first = push_to_hub(model, tokenizer, repo)
        inputs = tiny_inputs(model)
        wanted = {"auto": model._auto_class, "inputs": inputs, "first": first.oid, "old": logits(model, **inputs)}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        # A smaller limit: the file of the first push must not be loaded in the place of the new ones.
        push_to_hub(model, tokenizer, repo, max_shard_size="2KB" if task != "base" else "50GB")
        wanted["new"] = logits(model, **inputs)
        if task != "base":
            wanted["contributions"] = model.explain(**inputs).contributions
            assert "model.safetensors.index.json" in hub.files(repo)
            assert "model.safetensors" not in hub.files(repo)
        torch.save(wanted, tmp_path / f"{task}.pt")
    push_to_hub(bcos_model().float(), tokenizer, "tester/secret", private=True)
    code = """
import io, re, contextlib
from huggingface_hub import ModelCard
def refused(call, *words):
    try:
        call()
    except Exception as error:
        for word in words:
            assert word in str(error), (word, str(error))
    else:
        raise AssertionError(words)
auto = transformers.AutoModelForSequenceClassification
refused(lambda: auto.from_pretrained("tester/sequence-classification", trust_remote_code=False), "trust_remote_code=True")
refused(lambda: auto.from_pretrained("tester/secret", trust_remote_code=True), "tester/secret", "private", "token")
auto.from_pretrained("tester/secret", trust_remote_code=True, token="hf_tester")
for task in TASKS:
    repo, wanted = "tester/" + task, torch.load(task + ".pt")
    auto = getattr(transformers, wanted["auto"])
    def check(key, **options):
        model = auto.from_pretrained(repo, trust_remote_code=True, **options)
        assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
        with torch.no_grad():
            assert same(model(**wanted["inputs"])[0], wanted[key]), (task, key)
        return model
    check("old", revision=wanted["first"])
    model = check("new")
    if "contributions" in wanted:
        assert same(model.explain(**wanted["inputs"]).contributions, wanted["contributions"]), task
    tokenizer = transformers.AutoTokenizer.from_pretrained(repo, trust_remote_code=True)
    assert tokenizer("a film")["input_ids"][0] == 2
    names = {}
    for block in re.findall(r"```python\\n(.*?)```", ModelCard.load(repo).content, flags=re.DOTALL):
        if "bcos_transformers" not in block:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(block, names)
            assert printed.getvalue() or "predict" in names, block
    assert re.fullmatch("[0-9a-f]{40}", names["revision"]) and names["revision"] != wanted["first"]
repo = "tester/sequence-classification"
pipe = transformers.pipeline(model=repo, trust_remote_code=True)
assert pipe.task == "bcos-text-classification", pipe.task
assert type(pipe).__module__.startswith("transformers_modules")
import json
assert json.loads(json.dumps(pipe("a good film")))[0]["explanation"]["words"] == ["a", "good", "film"]
print("all equal")
"""
    tasks = [task for _, task in PACKAGED]
    result = run(code.replace("TASKS", repr(tasks)), hub, tmp_path)
    assert "all equal" in result.stdout, result.stderr[-3000:]

    asked = len(hub.requests)
    code = """
for task in TASKS:
    wanted = torch.load(task + ".pt")
    auto = getattr(transformers, wanted["auto"])
    for options, key in (({}, "new"), ({"revision": wanted["first"]}, "old")):
        model = auto.from_pretrained("tester/" + task, trust_remote_code=True, **options)
        with torch.no_grad():
            assert same(model(**wanted["inputs"])[0], wanted[key]), task
    transformers.AutoTokenizer.from_pretrained("tester/" + task, trust_remote_code=True)
print("all equal offline")
"""
    result = run(code.replace("TASKS", repr(tasks)), hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "all equal offline" in result.stdout, result.stderr[-3000:]
    assert len(hub.requests) == asked


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        (r"PUT /large-files", 500, RuntimeError),
        (r"PUT /large-files", 0, Exception),
        (r"POST .*/preupload/", 403, HfHubHTTPError),
        (r"POST .*/commit/", 500, HfHubHTTPError),
        (r"POST .*/commit/", 0, Exception),
    ],
)
def test_a_push_that_is_interrupted_leaves_nothing(hub, model, tokenizer, fault, status, error):
    repo = f"tester/broken-{abs(hash((fault, status)))}"
    hub.large.clear()  # what is there already is not uploaded again
    hub.faults[fault] = status
    with pytest.raises(error) as raised:
        push_to_hub(model, tokenizer, repo)
    assert any("Nothing was committed" in note for note in raised.value.__notes__)
    assert hub.history(repo) == []
    assert hub.files(repo) == {}
    assert model.name_or_path == ""
    hub.faults.clear()
    first = push_to_hub(model, tokenizer, repo)
    hub.faults[fault] = status
    with pytest.raises(error):
        push_to_hub(bcos_model(seed=1).float(), tokenizer, repo, explanations=BcosExplainer(model, tokenizer)(TEXT))
    assert [commit.sha for commit in hub.history(repo)] == [first.oid]
    hub.faults.clear()
    push_to_hub(bcos_model(seed=1).float(), tokenizer, repo)
    assert len(hub.history(repo)) == 2


def test_a_hub_that_dies_in_the_upload(model, tokenizer, server, monkeypatch):
    with running_hub() as dying:
        monkeypatch.setattr(constants, "ENDPOINT", dying.url)
        dying.faults[r"^(PUT|POST .*/commit/|GET)"] = 0
        with pytest.raises(Exception) as raised:  # noqa: B017, PT011
            push_to_hub(model, tokenizer, "tester/dead")
        assert dying.history("tester/dead") == []
    assert isinstance(raised.value, OSError) or raised.type.__module__.startswith("httpx")


def test_what_can_be_refused_is_refused_before_a_repository_exists(hub, model, tokenizer, monkeypatch):
    conventional = BertForSequenceClassification(tiny_config())
    other = make_tokenizer()
    other.add_tokens([f"new{i}" for i in range(60)])
    explanations = BcosExplainer(model, tokenizer)(TEXT)
    refused = [
        (TypeError, "from_pretrained_bcos", (conventional, tokenizer, "tester/no"), {}),
        (TypeError, "must be a tokenizer", (model, None, "tester/no"), {}),
        (ValueError, "belongs to another model", (model, other, "tester/no"), {}),
        (ValueError, "belongs to another model", (bcos_model("base"), other, "tester/no"), {}),
        (ValueError, "no logit", (bcos_model("base"), tokenizer, "tester/no"), {"example_texts": TEXT}),
        (TypeError, "CardFacts", (model, tokenizer, "tester/no"), {"facts": {"accuracy": 1}}),
        (TypeError, "TextExplanation", (model, tokenizer, "tester/no"), {"explanations": [TEXT]}),
        (
            ValueError,
            "not both",
            (model, tokenizer, "tester/no"),
            {"explanations": explanations, "example_texts": TEXT},
        ),
        (HFValidationError, "tester/no/no", (model, tokenizer, "tester/no/no"), {}),
        (TypeError, "owner/name", (model, tokenizer, Path("no")), {}),
        (LocalTokenNotFoundError, "hf auth login", (model, tokenizer, "tester/no"), {"token": False}),
        (ValueError, "is a commit", (model, tokenizer, "tester/no"), {"revision": "0" * 40}),
        (ValueError, "license", (model, tokenizer, "tester/no"), {"facts": CardFacts("n", licence="my own")}),
    ]
    for error, words, arguments, options in refused:
        with pytest.raises(error, match=re.escape(words)):
            push_to_hub(*arguments, **options)
    adapted = get_peft_model(bcos_model().float(), LoraConfig(target_modules="all-linear", r=2, task_type="SEQ_CLS"))
    for pushed in (adapted, adapted.get_base_model()):
        with pytest.raises(ValueError, match="merge_and_unload"):
            push_to_hub(pushed, tokenizer, "tester/no")
    for package, extra_options in (("jinja2", {}), ("matplotlib.figure", {"example_texts": TEXT})):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r"bcos-transformers\[viz\]"):
                push_to_hub(model, tokenizer, "tester/no", **extra_options)
    assert "tester/no" not in hub.repos
    assert model.name_or_path == ""


def test_rights_privacy_branches_and_pull_requests(hub, model, tokenizer):
    push_to_hub(model, tokenizer, "short-name", private=True)
    assert hub.repos["tester/short-name"].private
    push_to_hub(model, tokenizer, "tester/short-name", private=True)  # it is
    with pytest.raises(HfHubHTTPError):
        push_to_hub(model, tokenizer, "tester/short-name", token="hf_stranger")
    with pytest.raises(OSError, match=r"private(.|\n)*token"):
        AutoModel.from_pretrained("tester/short-name", token="hf_stranger")
    push_to_hub(model, tokenizer, "tester/open")
    with pytest.raises(ValueError, match="is public"):
        push_to_hub(model, tokenizer, "tester/open", private=True)
    with pytest.raises(HfHubHTTPError, match="may not create"):
        push_to_hub(model, tokenizer, "elsewhere/open")

    main = hub.history("tester/open")[-1].sha
    other = bcos_model(seed=1).float()
    branch = push_to_hub(other, tokenizer, "tester/open", revision="next", commit_message="On a branch")
    request = push_to_hub(other, tokenizer, "tester/open", create_pr=True)
    assert other.name_or_path == ""  # it is not what `main` holds
    assert request.pr_url.endswith("/discussions/1")
    assert hub.history("tester/open")[-1].sha == main
    assert hub.history("tester/open", "next")[-1].message == "On a branch"
    inputs = tiny_inputs(model)
    for revision, wanted in (("next", other), (branch.oid, other), (main, model), ("main", model)):
        loaded = AutoModelForSequenceClassification.from_pretrained("tester/open", revision=revision)
        assert same(logits(loaded, **inputs), logits(wanted, **inputs)), revision


def test_files_of_others_stay(hub, model, tokenizer):
    push_to_hub(model, tokenizer, "tester/shared", example_texts=TEXT)
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes/mine.txt", repo_id="tester/shared")
    push_to_hub(model, tokenizer, "tester/shared", max_shard_size="2KB")
    files = hub.files("tester/shared")
    assert files["notes/mine.txt"] == b"mine"
    assert "explanation.png" not in files
    assert "explanation.png" not in files["README.md"].decode()


def test_a_commit_in_between_is_not_overwritten(hub, model, tokenizer, monkeypatch):
    push_to_hub(model, tokenizer, "tester/race")
    preupload = HfApi.preupload_lfs_files

    def slow(self, *arguments, **options):
        hub.repos["tester/race"].commit("main", "somebody else", {"README.md": b"theirs"})
        return preupload(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "preupload_lfs_files", slow)
    with pytest.raises(HfHubHTTPError) as raised:
        push_to_hub(bcos_model(seed=1).float(), tokenizer, "tester/race")
    assert "somebody else's" in raised.value.__notes__[-1]
    assert hub.files("tester/race") == {"README.md": b"theirs"}


def test_nothing_that_is_uploaded_names_a_path_of_this_machine(hub, checkpoint, tokenizer):
    model = bcos_transformers.from_pretrained_bcos(checkpoint, task="sequence-classification", num_labels=3)
    push_to_hub(model, AutoTokenizer.from_pretrained(checkpoint), "tester/discreet")
    files = hub.files("tester/discreet")
    assert not [name for name, content in files.items() if str(checkpoint.parent).encode() in content]
    assert "biases dropped" in files["README.md"].decode()


def test_stock_push_to_hub_still_works(hub, model, tokenizer):
    model.push_to_hub("tester/stock")
    tokenizer.push_to_hub("tester/stock")
    assert not missing_code(hub.files("tester/stock"))
    again = AutoModelForSequenceClassification.from_pretrained("tester/stock")
    assert torch.equal(again.classifier.weight, model.classifier.weight)

"""Pushing to and loading from a Hub on loopback, over HTTP."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.utils.hub
import yaml
from datasets import Dataset
from hub_server import running_hub
from huggingface_hub import HfApi, ModelCard, constants, parse_eval_result_entries
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from peft import LoraConfig, get_peft_model
from test_remote_code import BLOCK
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

import bcos_transformers
from bcos_transformers import BcosExplainer
from bcos_transformers.hub import BcosHubCallback, push_to_hub
from bcos_transformers.model_card import CardFacts
from conftest import bcos_model, make_tokenizer, tiny_config
from contract import tiny_inputs, tiny_model

# huggingface_hub's own upload of large files
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ROOT = Path(__file__).parents[1]
TEXT = "a very good film , not dull !"
PACKAGED = [
    ("bert", "base"),
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("bert", "masked-lm"),
    ("bert", "question-answering"),
    ("gpt2", "causal-lm"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The Hub that this process and its children know, and nothing of the user's own."""
    home = tmp_path_factory.mktemp("home")
    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        patched = {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": constants.HF_URL_HOSTS | {hub.url.removeprefix("http://")},
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in patched.items():
            patch.setattr(constants, name, value)
        patch.setattr(transformers.utils.hub, "_hf_api", None)
        patch.setenv("HF_TOKEN", "hf_tester")
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield hub


@pytest.fixture
def hub(server):
    yield server
    server.faults.clear()


@pytest.fixture
def model():
    return bcos_model(id2label={0: "bad", 1: "good", 2: "so so"}).float()


def logits(model, **inputs):
    with torch.no_grad():
        return model(**inputs)[0]


SAME = """
def same(a, b):
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)
"""


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to the last bits, which depend on where in memory the weights lie."""
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def run(code: str, hub, home: Path, **env: str) -> subprocess.CompletedProcess:
    """Runs `code` in a process that cannot import the package, with a cache of its own."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env = {
        **inherited,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": "",
        **env,
    }
    return subprocess.run(
        [sys.executable, "-c", BLOCK + SAME + code],
        capture_output=True,
        text=True,
        cwd=home,
        env=env,
        stdin=subprocess.DEVNULL,
    )


def missing_code(files: dict[str, bytes]) -> list[str]:
    """What the configurations of a commit name but the commit lacks, relative imports of the code included."""
    missing = []
    for path, content in files.items():
        if path.rpartition("/")[2] != "config.json":
            continue
        config, folder = json.loads(content), path.removesuffix("config.json")
        references = list(config.get("auto_map", {}).values())
        references += [entry["impl"] for entry in config.get("custom_pipelines", {}).values()]
        wanted = [reference.partition(".")[0] for reference in references]
        seen = set()
        while wanted:
            module = wanted.pop()
            if module in seen:
                continue
            seen.add(module)
            code = files.get(f"{folder}{module}.py")
            if code is None:
                missing.append(f"{folder}{module}.py")
            else:
                wanted += re.findall(r"^\s*from \.(\w+) import", code.decode(), flags=re.MULTILINE)
    return missing


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


class FinishedPush(TrainerCallback):
    """Waits for each push, so that no commit is left out for having the files of the next one already."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        self.trainer._finish_current_push()


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint"])
def test_every_commit_of_a_trainer_has_its_code(hub, model, tokenizer, tmp_path, strategy):
    rows = [{"text": f"the film was {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(8)]
    data = Dataset.from_list(rows).map(lambda row: tokenizer(row["text"]))
    repo = f"tester/trained-{strategy}"
    args = TrainingArguments(
        str(tmp_path / "out"),
        push_to_hub=True,
        hub_model_id=repo,
        hub_strategy=strategy,
        hub_always_push=True,
        save_strategy="epoch",
        num_train_epochs=2,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[BcosHubCallback()])
    trainer.add_callback(FinishedPush(trainer))
    trainer.train()
    trainer.push_to_hub()
    commits = hub.history(repo)
    with_config = [commit for commit in commits if "config.json" in commit.files]
    assert len(with_config) >= 3, [commit.message for commit in commits]
    assert any("step" in commit.message or "epoch" in commit.message for commit in with_config)
    for commit in commits:
        assert not missing_code(commit.files), commit.message
    assert not [path for path in os.listdir(args.output_dir) if path.startswith("_code")]
    if strategy == "checkpoint":
        assert "last-checkpoint/config.json" in commits[-1].files
    early = AutoModelForSequenceClassification.from_pretrained(repo, revision=with_config[0].sha)
    assert not torch.equal(early.classifier.weight, model.classifier.weight)


def test_the_callback_is_needed_and_for_bcos_models_only(tmp_path, model):
    """The stock Trainer alone uploads the configuration without the code."""
    model.save_pretrained(tmp_path)
    files = {"config.json": (tmp_path / "config.json").read_bytes()}
    assert missing_code(files)
    with pytest.raises(TypeError, match="from_pretrained_bcos"):
        BcosHubCallback().on_train_begin(None, None, None, model=BertForSequenceClassification(tiny_config()))


def test_an_adapter_alone_needs_no_code(tmp_path, model):
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2, task_type="SEQ_CLS"))
    state = SimpleNamespace(is_world_process_zero=True)
    args = SimpleNamespace(output_dir=str(tmp_path / "out"))
    BcosHubCallback().on_train_begin(args, state, None, model=adapted)
    assert not (tmp_path / "out").exists()
    BcosHubCallback().on_train_begin(args, state, None, model=bcos_model())
    assert (tmp_path / "out" / "modeling_bcos_bert.py").is_file()


def test_the_example_runs(hub, checkpoint, tmp_path, capsys, monkeypatch):
    import runpy

    monkeypatch.chdir(tmp_path)
    script = ROOT / "examples" / "push_and_pull.py"
    arguments = [script.name, "--model", str(checkpoint), "--repo-id", "tester/example", "--text", TEXT]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert "tester/example" in printed
    assert hub.history("tester/example")[0].sha in printed
    assert "equal" in printed
    assert "explanation.png" in hub.files("tester/example")

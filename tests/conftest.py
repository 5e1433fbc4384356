"""Tiny models built in code; nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
import transformers.utils.hub
from huggingface_hub import constants
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast, TrainingArguments

import bcos_transformers
from bcos_transformers import registration
from bcos_transformers.evaluation.baselines import AttributionMethod
from hub_server import running_hub

torch.set_num_threads(1)  # models this small only lose time by sharing their work
SHARED = Path(__file__).parents[2] / "shared"
WORDS = [
    "a",
    "the",
    "film",
    "food",
    "is",
    "was",
    "not",
    "very",
    "good",
    "bad",
    "funny",
    "dull",
    "gripp",
    "grip",
    "##ing",
    "##ly",
    "soup",
    "great",
    "loved",
    "hated",
    "it",
    "and",
    ".",
    ",",
    "!",
]  # noqa: SIM905
HEADS = ["sequence-classification", "token-classification", "masked-lm", "question-answering"]


def tiny_config(**overrides) -> BertConfig:
    """A conventional BERT of a few thousand parameters."""
    values = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.4,
    }
    return BertConfig(**{**values, **overrides})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A conventional pretrained checkpoint with biases that matter, and a tokenizer beside it."""
    torch.manual_seed(0)
    model = BertForPreTraining(tiny_config())
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("conventional")
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with BERT's special tokens."""
    vocabulary = {t: i for i, t in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)


@pytest.fixture
def explained(monkeypatch) -> list[str]:
    """Names of the attribution methods that explained, a name for every batch."""
    found: list[str] = []
    real = AttributionMethod.attribute

    def attribute(self, *arguments, **options):
        found.append(self.name)
        return real(self, *arguments, **options)

    monkeypatch.setattr(AttributionMethod, "attribute", attribute)
    return found


def training_arguments(folder="unused", **overrides) -> TrainingArguments:
    """For a short and quiet training on the CPU."""
    values = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }
    return TrainingArguments(**{**values, **overrides})


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


def bcos_model(task: str = "sequence-classification", seed: int = 0, attn: str = "sdpa", **fields):
    """A B-cos BERT with random weights, in float64 and evaluation mode."""
    torch.manual_seed(seed)
    values = tiny_config().to_dict()
    for name in ("model_type", "architectures", "id2label", "label2id"):
        values.pop(name, None)
    num_labels = 2 if task == "question-answering" else 3
    config = bcos_transformers.BcosBertConfig(**{**values, "num_labels": num_labels, "mask_token_id": 4, **fields})
    config._attn_implementation = attn
    model = registration.ARCHITECTURES["bert"].models[task](config)
    return model.double().eval()


def batch(rows: int = 3, tokens: int = 9, padded: bool = True, task: str = "", seed: int = 1) -> dict:
    """Random token ids; with `padded`, later rows are shorter and padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(1, rows):
            mask[row, tokens - 2 * row :] = 0
    if task == "masked-lm":
        ids[:, 2] = 4
    types = (torch.arange(tokens) > 3).long().expand(rows, -1)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types * mask}


def relative_residual(explanation) -> float:
    """Largest |explained − Σ contributions| / max |contribution|."""
    size = explanation.contributions.abs().amax(-1).clamp_min(1e-30)
    return ((explanation.values - explanation.contributions.sum(-1)).abs() / size).max().item()


needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared, which is not part of the project")


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

"""Packing of texts, and the two language-model examples from files with tiny models."""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import bcos_transformers
from bcos_transformers import BcosExplainer
from bcos_transformers.data import packing
from bcos_transformers.data.packing import DataArguments, Marks, load_blocks, load_texts, pack_dataset, pack_tokens
from bcos_transformers.language_modeling import (
    ModelArguments,
    PretrainingArguments,
    choose_block_size,
    masked_text,
)
from conftest import WORDS
from hub_helpers import missing_code

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import run_clm
import run_mlm

BOS, EOS = 1, 2


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Words, spaces as part of them, `<s>` in front of every text; one token a word."""
    words = [word for word in WORDS if not word.startswith("#") and word.isalpha()]
    vocabulary = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *words, *("▁" + word for word in words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    """Data sets are prepared below the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    tokenizer = llama_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    choose = random.Random(0)
    words = [word for word in WORDS if word.isalpha()]
    paths = {}
    for split, count in (("train", 60), ("validation", 12)):
        texts = [" ".join(choose.choices(words, k=choose.randint(3, 12))) for _ in range(count)]
        paths[split] = str(tmp_path / f"{split}.txt")
        Path(paths[split]).write_text("\n\n".join(texts))
        paths[f"{split}.jsonl"] = str(tmp_path / f"{split}.jsonl")
        Path(paths[f"{split}.jsonl"]).write_text("".join(json.dumps({"body": text, "n": 1}) + "\n" for text in texts))
    return paths


def documents(count: int = 40) -> list[list[int]]:
    choose = random.Random(1)
    return [[choose.randint(10, 99) for _ in range(choose.choice([0, 1, 3, 8, 25]))] for _ in range(count)]


@pytest.mark.parametrize("block_size", [1, 4, 7, 300])
def test_packing_loses_nothing_but_the_last_rest(block_size):
    given = documents()
    blocks = list(pack_tokens(given, block_size, Marks(before=(BOS,), after=(EOS,))))
    stream = [token for document in given if document for token in (BOS, *document, EOS)]
    assert all(len(block) == block_size for block in blocks)
    packed = [token for block in blocks for token in block]
    assert packed == stream[: len(packed)]
    assert len(stream) - len(packed) < block_size


def test_marks_of_blocks_count_in_their_size():
    blocks = list(pack_tokens([[5, 6, 7], [], [8, 9]], 5, Marks(after=(3,), start=(2,), end=(3,))))
    assert blocks == [[2, 5, 6, 7, 3], [2, 3, 8, 9, 3]]
    assert list(pack_tokens([[], []], 3, Marks(before=(BOS,), after=(EOS,)))) == []
    assert list(pack_tokens([[5], [6]], 1)) == [[5], [6]]
    with pytest.raises(ValueError, match="leaves no room"):
        list(pack_tokens([[5]], 2, Marks(start=(2,), end=(3,))))


def test_marks_follow_the_tokenizer(tokenizer):
    assert Marks.masked(tokenizer) == Marks(after=(3,), start=(2,), end=(3,))
    llama = llama_tokenizer()
    assert Marks.causal(llama) == Marks(before=(BOS,), after=(EOS,))
    llama.eos_token = None
    assert Marks.causal(llama) == Marks(before=(BOS,))
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "e": 1}, unk_token="a")))
    assert Marks.causal(bare) == Marks()
    bare.bos_token = bare.eos_token = "e"  # as GPT-2: one token for both, put nowhere by the tokenizer
    assert Marks.causal(bare) == Marks(after=(1,))


def test_streamed_blocks_are_the_same_blocks(files):
    tokenizer = llama_tokenizer()
    marks = Marks.causal(tokenizer)
    blocks = {}
    for streaming in (False, True):
        for file, column in ((files["train"], "text"), (files["train.jsonl"], "body")):
            data = load_texts(file, column, streaming=streaming)
            packed = pack_dataset(data, tokenizer, 8, marks, column, labels=True)
            blocks[streaming, column] = list(packed)
            assert list(packed) == blocks[streaming, column]  # a second pass
    first = blocks[False, "text"]
    assert all(other == first for other in blocks.values())
    assert all(block["labels"] == block["input_ids"] for block in first)
    texts = Path(files["train"]).read_text().split("\n\n")
    expected = [i for text in texts for i in (*tokenizer(text).input_ids, EOS)]
    packed = [token for block in first for token in block["input_ids"]]
    assert packed == expected[: len(packed)]
    assert len(expected) - len(packed) < 8


def test_batches_of_the_tokenizer_do_not_show():
    tokenizer = llama_tokenizer()
    texts = ["the film was good", "", None, "soup"] * 600  # more than one batch of 1,000
    blocks = list(pack_dataset(Dataset.from_dict({"text": texts}), tokenizer, 6, Marks.causal(tokenizer)))
    assert len(blocks) == 600 * (6 + 3) // 6
    assert list(blocks[0]) == ["input_ids"]
    assert blocks[0]["input_ids"][0] == BOS
    assert blocks[0]["input_ids"][-1] == EOS


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_a_data_set_with_splits(files, tmp_path, streaming):
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(Path(files[f"{split}.jsonl"]).read_text())
    arguments = DataArguments(dataset_name=str(folder), text_column="body", streaming=streaming)
    training = PretrainingArguments(use_cpu=True, max_steps=1)
    tokenizer = llama_tokenizer()
    train, validation = load_blocks(arguments, training, tokenizer, 8, Marks.causal(tokenizer))
    for blocks, split in ((train, "train"), (validation, "validation")):
        texts = load_texts(files[f"{split}.jsonl"], "body")
        expected = list(pack_dataset(texts, tokenizer, 8, Marks.causal(tokenizer), "body"))
        assert sorted(block["input_ids"] for block in blocks) == sorted(block["input_ids"] for block in expected)


def test_workers_lose_no_text_unseen(files, monkeypatch):
    stream = pack_dataset(load_texts(files["train"], streaming=True), llama_tokenizer(), 8, Marks())
    for workers in (1, 2):
        monkeypatch.setattr(packing, "get_worker_info", lambda n=workers: SimpleNamespace(num_workers=n))
        if workers == 1:
            assert len(list(stream)) > 1
        else:
            with pytest.raises(ValueError, match="one data loader worker at most, not by 2"):
                list(stream)


def test_reading_says_what_is_wrong(files, tmp_path):
    with pytest.raises(ValueError, match="no column 'text'; there are: body, n"):
        load_texts(files["train.jsonl"])
    with pytest.raises(ValueError, match="no column 'text'; there are: body, n"):
        load_texts(files["train.jsonl"], streaming=True)
    with pytest.raises(ValueError, match="all of one kind"):
        load_texts([files["train"], files["train.jsonl"]])
    with pytest.raises(ValueError, match="There is no file"):
        load_texts(str(tmp_path / "nowhere.txt"))
    with pytest.raises(ValueError, match="`sample_by`"):
        load_texts(files["train"], sample_by="word")
    assert len(load_texts(files["train"], sample_by="document")) == 1
    both = load_texts([files["train"], files["validation"]])
    assert len(both) == 72


def test_arguments_that_cannot_work_are_refused(files, checkpoint, llama_checkpoint):
    tokenizer = llama_tokenizer()
    train, validation = [files["train"]], [files["validation"]]

    def load(block_size: int = 8, max_steps: int = -1, workers: int = 0, **fields):
        training = PretrainingArguments(use_cpu=True, max_steps=max_steps, dataloader_num_workers=workers)
        return load_blocks(DataArguments(**fields), training, tokenizer, block_size, Marks())

    with pytest.raises(ValueError, match="Name the texts"):
        load()
    with pytest.raises(ValueError, match="--streaming needs --max_steps"):
        load(train_file=train, validation_file=validation, streaming=True)
    with pytest.raises(ValueError, match="--streaming needs --validation_file"):
        load(train_file=train, streaming=True, max_steps=2)
    with pytest.raises(ValueError, match="--dataloader_num_workers must be 0 or 1"):
        load(train_file=train, validation_file=validation, streaming=True, max_steps=2, workers=2)
    with pytest.raises(ValueError, match="validation data do not fill one block"):
        load(train_file=train, validation_file=validation, block_size=200)
    with pytest.raises(ValueError, match="training data do not fill one block"):
        load(train_file=validation, block_size=5000)
    alone, aside = load(train_file=train)
    together = pack_dataset(load_texts(train), tokenizer, 8, Marks())
    assert [*alone, *aside] == list(together)
    assert len(aside) == max(1, round(len(together) / 20))
    limited = load(train_file=train, validation_file=validation, max_eval_blocks=3)[1]
    streamed = load(train_file=train, validation_file=validation, max_eval_blocks=3, streaming=True, max_steps=1)[1]
    assert list(limited) == list(streamed)
    assert len(limited) == 3

    arguments = ModelArguments(model_name_or_path=str(llama_checkpoint))
    assert choose_block_size(arguments, DataArguments(), tokenizer) == 64
    with pytest.raises(ValueError, match="not between 2 and the 64 tokens"):
        choose_block_size(arguments, DataArguments(block_size=65), tokenizer)
    tokenizer.add_tokens([f"new{i}" for i in range(99)])
    with pytest.raises(ValueError, match="they do not fit"):
        choose_block_size(arguments, DataArguments(), tokenizer)


def test_explained_tokens_sum_to_the_logit(checkpoint, llama_checkpoint, tokenizer):
    text, position, word = masked_text(tokenizer, "the soup was gripping , it was very good")
    assert text == "the soup was gripping , [MASK] was very good"
    assert word == "it"
    model = bcos_transformers.from_pretrained_bcos(checkpoint, task="masked-lm").double().eval()
    explanation = BcosExplainer(model, tokenizer, granularity="token")(text, position=position)
    assert "[MASK]" in explanation.words
    for out in (explanation, explain_causal(llama_checkpoint)):
        total = sum(out.scores) + out.special_tokens_score
        assert total == pytest.approx(out.logit, rel=1e-9, abs=1e-9)
        assert abs(out.residual) < 1e-9 * max(map(abs, out.scores))
        assert 0 < out.probability < 1


def explain_causal(checkpoint: Path):
    model = bcos_transformers.from_pretrained_bcos(checkpoint, task="causal-lm").double().eval()
    explanation = BcosExplainer(model, llama_tokenizer(), granularity="token")("the film was good")
    assert explanation.words == ["the", "film", "was", "good"]
    return explanation


def run(monkeypatch, capsys, module, folder: Path, *arguments: str) -> str:
    """Runs an example's `main` in this process and returns what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    module.main()
    return capsys.readouterr().out


def perplexities(output: str) -> dict[str, float]:
    found = [
        line.rsplit(": ", 1) for line in output.splitlines() if line.startswith(("conventional", "right", "after"))
    ]
    return {name: float(value.replace(",", "")) for name, value in found}


COMMON = ("--output_dir", "out", "--disable_tqdm", "True", "--use_cpu", "True", "--explain_tokens", "12")


@pytest.mark.parametrize("streaming", [False, True])
def test_causal_example(llama_checkpoint, files, tmp_path, monkeypatch, capsys, streaming):
    data = ("--train_file", files["train"], "--validation_file", files["validation"], "--block_size", "16")
    if streaming:
        data = (*data, "--streaming", "--max_steps", "6", "--shuffle_buffer", "4")
    else:
        data = (*data, "--num_train_epochs", "2", "--anneal_fraction", "0.5", "--learning_rate", "1e-2")
    source = ("--model_name_or_path", str(llama_checkpoint))
    output = run(monkeypatch, capsys, run_clm, tmp_path, *source, *data, *COMMON)
    values = perplexities(output)
    assert list(values) == ["conventional", "right after conversion", "after training"]
    assert all(1 < value < 1e9 for value in values.values())
    assert values["after training"] < values["right after conversion"]
    assert "logit" in output
    assert "strongest contributions" in output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "BcosLlamaForCausalLM"
    assert model.config.use_cache
    assert model.config.b == 1.25
    assert (tmp_path / "out" / "tokenizer.json").exists()
    assert (tmp_path / "out" / "modeling_bcos_llama.py").exists()
    assert "trust_remote_code=True" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own upload of large files
def test_every_push_of_the_example_can_be_loaded(llama_checkpoint, files, tmp_path, monkeypatch, capsys, server):
    data = ("--train_file", files["train"], "--validation_file", files["validation"], "--block_size", "16")
    hub = ("--push_to_hub", "True", "--hub_model_id", "tester/stories", "--hub_strategy", "every_save")
    steps = ("--save_strategy", "steps", "--save_steps", "2", "--max_steps", "4")
    source = ("--model_name_or_path", str(llama_checkpoint))
    output = run(monkeypatch, capsys, run_clm, tmp_path, *source, *data, *hub, *steps, *COMMON)
    assert "Pushed: " in output
    commits = server.history("tester/stories")
    assert len(commits) > 1
    for commit in commits:
        assert not missing_code(commit.files), commit.message
    card = commits[-1].files["README.md"].decode()
    assert "type: perplexity" in card
    assert "right after conversion:" in card
    assert "explanation.png" in commits[-1].files
    AutoModelForCausalLM.from_pretrained("tester/stories")


@pytest.mark.parametrize("streaming", [False, True])
def test_masked_example(checkpoint, files, tmp_path, monkeypatch, capsys, streaming):
    data = ("--train_file", files["train.jsonl"], "--validation_file", files["validation.jsonl"])
    data = (*data, "--text_column", "body", "--block_size", "16", "--b", "1.1")
    data = (*data, "--streaming", "--max_steps", "6") if streaming else (*data, "--num_train_epochs", "2")
    source = ("--model_name_or_path", str(checkpoint))
    output = run(monkeypatch, capsys, run_mlm, tmp_path, *source, *data, *COMMON)
    values = perplexities(output)
    assert list(values) == ["conventional", "right after conversion", "after training"]
    assert all(1 < value < 1e9 for value in values.values())
    assert "[MASK]" in output
    assert "The word that was masked: " in output
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "BcosBertForMaskedLM"
    assert model.config.b == 1.1
    assert model.config.mask_token_id == 4


def test_validation_masks_stay_the_same(tokenizer):
    blocks = Dataset.from_dict({"input_ids": [[2, *range(5, 19), 3]] * 30})
    first, second = (run_mlm.mask_once(blocks, DataCollatorForLanguageModeling(tokenizer, seed=0)) for _ in range(2))
    assert first.to_list() == second.to_list()
    assert all(max(row["labels"]) >= 0 for row in first)
    assert len({tuple(row["input_ids"]) for row in first}) > 10
    collator = run_mlm.BlockMaskingCollator(DataCollatorForLanguageModeling(tokenizer))
    assert collator(first.to_list())["input_ids"].tolist() == first["input_ids"][:]
    anew = [collator(blocks.to_list())["labels"].tolist() for _ in range(2)]
    assert anew[0] != anew[1]


@pytest.mark.parametrize("module", [run_clm, run_mlm])
def test_mistakes_end_in_a_sentence(checkpoint, llama_checkpoint, files, tmp_path, monkeypatch, capsys, module):
    arguments = ("--train_file", files["train"], "--validation_file", files["validation"], "--streaming")
    source = llama_checkpoint if module is run_clm else checkpoint
    arguments = (*arguments, "--model_name_or_path", str(source), "--use_cpu", "True")
    with pytest.raises(SystemExit, match="^--streaming needs --max_steps: how long a stream is"):
        run(monkeypatch, capsys, module, tmp_path, *arguments)
    with pytest.raises(SystemExit, match="`b`"):
        run(monkeypatch, capsys, module, tmp_path, *arguments, "--max_steps", "1", "--block_size", "8", "--b", "0.5")


@pytest.mark.parametrize("module", [run_clm, run_mlm])
def test_help_is_readable(tmp_path, monkeypatch, capsys, module):
    with pytest.raises(SystemExit, match="^0$"):
        run(monkeypatch, capsys, module, tmp_path, "--help")
    output = capsys.readouterr().out
    for flag in ("--model_name_or_path", "--train_file", "--streaming", "--block_size", "--bcos_lm_head"):
        assert flag in output

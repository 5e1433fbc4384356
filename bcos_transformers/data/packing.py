"""Texts for language modelling: read from files, tokenized, joined and cut into blocks of one size.

Packing is a generator that carries the rest of one document over to the next, not a function of separate batches, so
tokens are lost at one place only: the last block of a data set is dropped if it is not full. A data set in memory and
the same one streamed give the same blocks in the same order, at every pass.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase, TrainingArguments

try:
    from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
except ImportError as error:
    raise ImportError("Language-model training needs datasets: pip install 'bcos-transformers[train]'.") from error

BUILDERS = {"txt": "text", "csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet"}
TEXT_UNITS = ("line", "paragraph", "document")
SET_ASIDE = 0.05


@dataclass
class DataArguments:
    """Which texts."""

    dataset_name: str | None = field(default=None, metadata={"help": "Data set on the Hub."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_file: list[str] | None = field(
        default=None, metadata={"help": "One or several txt, csv, json, jsonl or parquet files."}
    )
    validation_file: list[str] | None = field(default=None, metadata={"help": "The same, for the perplexities."})
    text_column: str = field(default="text", metadata={"help": "Name of the column with the text."})
    sample_by: str = field(
        default="paragraph", metadata={"help": "What a document of a txt file is: line, paragraph or document."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read and pack while training; needs --max_steps."})
    shuffle_buffer: int = field(default=1000, metadata={"help": "Blocks among which a stream is shuffled."})
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens of a block. Default: what the model can read, 1024 at most."}
    )
    max_eval_blocks: int | None = field(default=None, metadata={"help": "Evaluate on the first so many blocks."})
    explain_tokens: int = field(default=32, metadata={"help": "Length of the validation text that is explained."})


@dataclass(frozen=True)
class Marks:
    """Ids of the special tokens that packing adds.

    Attributes:
        before: in front of each document.
        after: behind each document.
        start: at the start of each block; part of its size.
        end: at the end of each block; part of its size.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    @classmethod
    def causal(cls, tokenizer: PreTrainedTokenizerBase) -> "Marks":
        """EOS behind each document where the tokenizer has one, and BOS in front where it puts one there itself."""
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        begins = bos is not None and bos != eos and tokenizer("").input_ids[:1] == [bos]
        return cls(before=(bos,) if begins else (), after=() if eos is None else (eos,))

    @classmethod
    def masked(cls, tokenizer: PreTrainedTokenizerBase) -> "Marks":
        """CLS at the start and SEP at the end of each block, SEP between documents, where the tokenizer has them."""
        cls_ids = () if tokenizer.cls_token_id is None else (tokenizer.cls_token_id,)
        sep_ids = () if tokenizer.sep_token_id is None else (tokenizer.sep_token_id,)
        return cls(after=sep_ids, start=cls_ids, end=sep_ids)


def load_texts(
    files: str | Sequence[str], text_column: str = "text", sample_by: str = "paragraph", streaming: bool = False
) -> Dataset | IterableDataset:
    """Reads texts from files of one kind.

    Args:
        files: one or several txt, csv, json, jsonl or parquet files, read in this order.
        text_column: name of the column with the text; a txt file has the one column `text`.
        sample_by: what a document of a txt file is: `"line"`, `"paragraph"` (blank lines between) or `"document"`
            (the file).
        streaming: read while iterating instead of before.

    Returns:
        A data set with the one column `text_column`.

    Raises:
        ValueError: no such file, an unknown or mixed kind of file, an unknown `sample_by`, or no such column.
    """
    files = [files] if isinstance(files, str) else list(files)
    kinds = {BUILDERS.get(Path(file).suffix.lstrip(".")) for file in files}
    if len(kinds) != 1 or None in kinds:
        raise ValueError(f"The files must be all of one kind out of {', '.join(BUILDERS)}: {', '.join(files)}.")
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise ValueError(f"There is no file {', '.join(missing)}.")
    if sample_by not in TEXT_UNITS:
        raise ValueError(f"`sample_by` must be one of {TEXT_UNITS}, got {sample_by!r}.")
    kind = kinds.pop()
    options = {"sample_by": sample_by} if kind == "text" else {}
    data = load_dataset(kind, data_files=files, split="train", streaming=streaming, **options)
    return text_only(data, text_column)


def text_only(data: Dataset | IterableDataset, text_column: str) -> Dataset | IterableDataset:
    """The data set with no column but the one with the text.

    Raises:
        ValueError: there is no such column.
    """
    present = data.column_names
    if present is None:  # a stream that has not been looked into
        present = list(next(iter(data), {text_column: ""}))
    if text_column not in present:
        raise ValueError(f"There is no column {text_column!r}; there are: {', '.join(present)}.")
    return data.select_columns([text_column])


def pack_tokens(
    documents: Iterable[Sequence[int]], block_size: int, marks: Marks | None = None
) -> Iterator[list[int]]:
    """Joins documents and cuts them into blocks.

    Args:
        documents: token ids of each document, without special tokens; empty documents leave no trace.
        block_size: tokens of a block, the marks at its start and end included.
        marks: special tokens to add; None adds none.

    Yields:
        Lists of `block_size` token ids. What is left at the end of the documents and does not fill a block is dropped.

    Raises:
        ValueError: the marks leave no room for a token.
    """
    marks = marks or Marks()
    room = block_size - len(marks.start) - len(marks.end)
    if room < 1:
        raise ValueError(f"`block_size` {block_size} leaves no room for text beside the special tokens of a block.")
    rest: list[int] = []
    for document in documents:
        if not len(document):
            continue
        rest += [*marks.before, *document, *marks.after]
        full = len(rest) - len(rest) % room
        for begin in range(0, full, room):
            yield [*marks.start, *rest[begin : begin + room], *marks.end]
        del rest[:full]


def pack_dataset(
    data: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    marks: Marks,
    text_column: str = "text",
    labels: bool = False,
) -> Dataset | IterableDataset:
    """Tokenizes texts and packs them; streamed texts give streamed blocks.

    A streamed result is one shard, for one data loader worker at most: each of several would see its share of the texts
    only, and all but one stop.

    Args:
        data: texts in the column `text_column`; a text that is None counts as empty.
        tokenizer: its special tokens are added by `marks` alone.
        block_size: tokens of a block.
        marks: special tokens to add, usually `Marks.causal(tokenizer)` or `Marks.masked(tokenizer)`.
        text_column: name of the column with the text.
        labels: add a column `labels`, the same as `input_ids`, for causal models.

    Returns:
        Blocks with the columns `input_ids` and, with `labels`, `labels`, each `(block_size,)`.

    Raises:
        ValueError: while iterating: a stream is read by several workers.
    """

    def tokenize(rows: dict) -> dict:
        texts = [text or "" for text in rows[text_column]]
        return {"input_ids": tokenizer(texts, add_special_tokens=False, verbose=False).input_ids}

    tokens = data.select_columns([text_column]).map(tokenize, batched=True, remove_columns=[text_column])
    columns = ("input_ids", "labels") if labels else ("input_ids",)
    features = Features({column: List(Value("int32")) for column in columns})
    arguments = {"tokens": tokens, "block_size": block_size, "marks": marks, "columns": columns}
    if isinstance(data, Dataset) and next(_blocks(**arguments), None) is None:  # from_generator refuses to be empty
        return Dataset.from_dict({column: [] for column in columns}, features)
    return type(data).from_generator(_blocks, features=features, gen_kwargs=arguments)


def _blocks(
    tokens: Dataset | IterableDataset, block_size: int, marks: Marks, columns: tuple[str, ...]
) -> Iterator[dict[str, list[int]]]:
    worker = get_worker_info()
    if isinstance(tokens, IterableDataset) and worker is not None and worker.num_workers > 1:
        raise ValueError(f"A packed stream is read by one data loader worker at most, not by {worker.num_workers}.")
    for block in pack_tokens((row["input_ids"] for row in tokens), block_size, marks):
        yield dict.fromkeys(columns, block)


def load_blocks(
    args: DataArguments,
    training: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    marks: Marks,
    labels: bool = False,
) -> tuple[Dataset | IterableDataset, Dataset]:
    """Blocks for training, streamed if that was asked for, and blocks for evaluation, which are held in memory.

    Without validation data the last twentieth of the blocks is set aside for evaluation.

    Args:
        args: which texts.
        training: how the training will go: steps, workers and seed matter to a stream.
        tokenizer: how texts become tokens.
        block_size: tokens of a block.
        marks: special tokens to add.
        labels: see `pack_dataset`.

    Raises:
        ValueError: no data, arguments that contradict each other, or less than one block of text.
    """
    if not args.dataset_name and not args.train_file:
        raise ValueError("Name the texts to train on: --train_file or --dataset_name.")
    if args.streaming and training.max_steps <= 0:
        raise ValueError("--streaming needs --max_steps: how long a stream is cannot be known before it ends.")
    if args.streaming and training.dataloader_num_workers > 1:
        raise ValueError("--streaming packs in one process: --dataloader_num_workers must be 0 or 1.")
    texts, validation = _texts(args)
    if args.streaming and validation is None:
        raise ValueError("--streaming needs --validation_file, or a data set that has a validation split.")

    def pack(data: Dataset | IterableDataset) -> Dataset | IterableDataset:
        return pack_dataset(data, tokenizer, block_size, marks, args.text_column, labels)

    blocks = pack(texts)
    if validation is None:
        rest = max(0, len(blocks) - max(1, round(SET_ASIDE * len(blocks))))
        blocks, held_out = blocks.select(range(rest)), blocks.select(range(rest, len(blocks)))
    else:
        held_out = pack(validation)
    if args.max_eval_blocks:
        held_out = held_out.take(args.max_eval_blocks)
    if isinstance(held_out, IterableDataset):
        held_out = Dataset.from_list(list(held_out), features=held_out.features)
    for name, part in (("training", blocks), ("validation", held_out)):
        if next(iter(part), None) is None:
            raise ValueError(f"The {name} data do not fill one block of {block_size} tokens (--block_size).")
    if args.streaming:
        blocks = blocks.shuffle(seed=training.seed, buffer_size=args.shuffle_buffer)
    return blocks, held_out


def _texts(args: DataArguments) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset | None]:
    if args.dataset_name:
        splits = load_dataset(args.dataset_name, args.dataset_config_name, streaming=args.streaming)
        if "train" not in splits:
            raise ValueError(f"{args.dataset_name} has no train split; there are: {', '.join(splits)}.")
        texts = text_only(splits["train"], args.text_column)
        if not args.validation_file:
            held_out = splits.get("validation")
            return texts, None if held_out is None else text_only(held_out, args.text_column)
    else:
        texts = load_texts(args.train_file, args.text_column, args.sample_by, args.streaming)
    if not args.validation_file:
        return texts, None
    return texts, load_texts(args.validation_file, args.text_column, args.sample_by, args.streaming)

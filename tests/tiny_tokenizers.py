"""Small tokenizers of every kind, trained in code."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

CORPUS = ["The film was gripping and funny, not dull!"] * 20 + ["don't re-use it 😀 naïve café 看好电影"] * 20


def byte_level(**options) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of GPT-2: spaces belong to the next word, characters may be several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.pop("add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=sorted(alphabet), show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def sentencepiece(split: bool = True) -> PreTrainedTokenizerFast:
    """Unigram over text in which spaces are `▁`; without `split` the whole text is one word to it, as for Llama."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


class SlowTokenizer(PreTrainedTokenizer):
    """Splits at spaces, in Python, and knows nothing of offsets."""

    vocab_files_names: dict = {}

    def __init__(self, words: list[str]) -> None:
        self.words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        names = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
        super().__init__(**names)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 1)

    def _convert_id_to_token(self, index: int) -> str:
        return self.words[index]

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [2, *token_ids_0, 3] + ([*token_ids_1, 3] if token_ids_1 else [])

    def get_special_tokens_mask(self, token_ids_0, token_ids_1=None, already_has_special_tokens=False):
        return [int(token in (0, 2, 3)) for token in token_ids_0]

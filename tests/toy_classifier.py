"""A classifier whose probabilities can be computed by hand: each token adds its weight to the logit of class 1."""

import torch
from torch import nn
from transformers import BertConfig
from transformers.modeling_outputs import SequenceClassifierOutput


class ToyClassifier(nn.Module):
    """`logits = [0, Σ weight(token)]` over the tokens that the attention mask keeps."""

    def __init__(self, weights: dict[int, float], vocabulary: int = 60) -> None:
        super().__init__()
        table = torch.zeros(vocabulary, dtype=torch.float64)
        for token, weight in weights.items():
            table[token] = weight
        self.embedding = nn.Embedding.from_pretrained(table[:, None])
        self.config = BertConfig(num_labels=2, vocab_size=vocabulary)
        self.device, self.dtype = torch.device("cpu"), torch.float64
        self.rows = 0

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embedding

    def forward(self, input_ids, attention_mask=None):
        self.rows += len(input_ids)
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        one = (self.embedding(input_ids)[..., 0] * keep).sum(-1)
        return SequenceClassifierOutput(logits=torch.stack([torch.zeros_like(one), one], dim=-1))

"""Which module of an architecture plays which role: one declarative table each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ArchitectureRoles:
    """How to read the module tree of one architecture. Names are matched from their end, dot by dot.

    Attributes:
        bcos: linear layers that become B-cos layers.
        query_key: projections whose outputs explanation mode freezes.
        linear: layers that are linear already and only lose their bias.
        query_key_value: fused projections, queries and keys first, which explanation mode freezes, then the values.
        lm_head: output layer of a language model: linear, or B-cos with `bcos_lm_head`.
        norm: `LayerNorm` and `RMSNorm` modules.
        gate: activations of the form `x · gate(x)` that follow a B-cos layer.
        mlp_gate: activations of gated MLPs, `act(gate) · up`, whose whole output is frozen.
        identity: nonlinearities of poolers and heads that are taken out.
        embeddings: embedding modules and the part of the input that each contributes.
        biases: parameters outside the roles above that are biases and go.
        before_attention: modules of a layer that work on what its attention reads, so on every token, even if only one
            token of the layer's output is wanted.
        layer_pattern: regular expression whose first group is the index of the layer in a module's name.
    """

    bcos: tuple[str, ...]
    norm: tuple[str, ...]
    embeddings: tuple[tuple[str, str], ...]
    query_key: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    query_key_value: tuple[str, ...] = ()
    lm_head: tuple[str, ...] = ()
    gate: tuple[str, ...] = ()
    mlp_gate: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    before_attention: tuple[str, ...] = ()
    layer_pattern: str = r"(?:^|\.)(?:layer|layers|h)\.(\d+)\."

    def role_of(self, name: str) -> str | None:
        """The role of the module called `name`, or None."""
        for role in ROLE_NAMES:
            if any(ends_with(name, ending) for ending in getattr(self, role)):
                return role
        return "embedding" if self.part_of(name) else None

    def part_of(self, name: str) -> str | None:
        """The part of the input that the embedding called `name` contributes, or None."""
        return next((part for ending, part in self.embeddings if ends_with(name, ending)), None)

    def works_before_attention(self, name: str) -> bool:
        """Whether the module called `name` feeds the attention of its layer."""
        return any(ends_with(name, ending) for ending in self.before_attention)


ROLE_NAMES = ("bcos", "query_key", "linear", "query_key_value", "lm_head", "norm", "gate", "mlp_gate", "identity")


def ends_with(name: str, ending: str) -> bool:
    """Whether `name` is `ending` or ends with it after a dot."""
    return name == ending or name.endswith("." + ending)


BERT_ROLES = ArchitectureRoles(
    bcos=(
        "intermediate.dense",
        "output.dense",
        "pooler.dense",
        "transform.dense",
        "classifier",
        "qa_outputs",
    ),
    query_key=("attention.self.query", "attention.self.key"),
    linear=("attention.self.value",),
    lm_head=("cls.predictions.decoder",),
    norm=("LayerNorm",),
    gate=("intermediate_act_fn", "transform_act_fn"),
    identity=("pooler.activation",),
    embeddings=(
        ("embeddings.word_embeddings", "word"),
        ("embeddings.position_embeddings", "position"),
        ("embeddings.token_type_embeddings", "token_type"),
    ),
    biases=("cls.predictions.bias",),
)

ROBERTA_ROLES = ArchitectureRoles(
    bcos=(
        "intermediate.dense",
        "output.dense",
        "pooler.dense",
        "lm_head.dense",
        "classifier",
        "classifier.dense",
        "classifier.out_proj",
        "qa_outputs",
    ),
    query_key=("attention.self.query", "attention.self.key"),
    linear=("attention.self.value",),
    lm_head=("lm_head.decoder",),
    norm=("LayerNorm", "lm_head.layer_norm"),
    gate=("intermediate_act_fn", "lm_head.activation"),
    identity=("pooler.activation",),
    embeddings=BERT_ROLES.embeddings,
    biases=("lm_head.bias",),
)

DISTILBERT_ROLES = ArchitectureRoles(
    bcos=(
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
        "pre_classifier",
        "classifier",
        "qa_outputs",
        "vocab_transform",
    ),
    query_key=("attention.q_lin", "attention.k_lin"),
    linear=("attention.v_lin",),
    lm_head=("vocab_projector",),
    norm=("LayerNorm", "sa_layer_norm", "output_layer_norm", "vocab_layer_norm"),
    gate=("activation",),
    embeddings=BERT_ROLES.embeddings[:2],
)

GPT2_ROLES = ArchitectureRoles(
    bcos=("attn.c_proj", "mlp.c_fc", "mlp.c_proj", "score", "classifier"),
    query_key_value=("attn.c_attn",),
    lm_head=("lm_head",),
    norm=("ln_1", "ln_2", "ln_f"),
    gate=("mlp.act",),
    embeddings=(("wte", "word"), ("wpe", "position")),
    before_attention=("ln_1",),
)

LLAMA_ROLES = ArchitectureRoles(
    bcos=("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "score"),
    query_key=("self_attn.q_proj", "self_attn.k_proj"),
    linear=("self_attn.v_proj",),
    lm_head=("lm_head",),
    norm=("input_layernorm", "post_attention_layernorm", "norm"),
    mlp_gate=("mlp.act_fn",),
    embeddings=(("embed_tokens", "word"),),
    before_attention=("input_layernorm",),
)

MODERNBERT_ROLES = ArchitectureRoles(
    bcos=("attn.Wo", "mlp.Wi", "mlp.Wo", "head.dense", "classifier"),
    query_key_value=("attn.Wqkv",),
    lm_head=("decoder",),
    norm=("embeddings.norm", "attn_norm", "mlp_norm", "final_norm", "head.norm"),
    gate=("head.act",),
    mlp_gate=("mlp.act",),
    embeddings=(("embeddings.tok_embeddings", "word"),),
    before_attention=("attn_norm",),
)

QWEN3_ROLES = ArchitectureRoles(
    bcos=("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "score"),
    query_key=("self_attn.q_proj", "self_attn.k_proj"),
    linear=("self_attn.v_proj",),
    lm_head=("lm_head",),
    norm=("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm", "norm"),
    mlp_gate=("mlp.act_fn",),
    embeddings=(("embed_tokens", "word"),),
    before_attention=("input_layernorm", "q_norm", "k_norm"),
)

ROLES: dict[str, ArchitectureRoles] = {
    "bcos-bert": BERT_ROLES,
    "bcos-roberta": ROBERTA_ROLES,
    "bcos-distilbert": DISTILBERT_ROLES,
    "bcos-gpt2": GPT2_ROLES,
    "bcos-llama": LLAMA_ROLES,
    "bcos-modernbert": MODERNBERT_ROLES,
    "bcos-qwen3": QWEN3_ROLES,
}

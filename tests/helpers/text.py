"""Tiny text models in float64, sentences, and the batches that they become."""

import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    LlamaConfig,
)

WORDS, CLASSES, WIDTH = 20, 3, 16
SHARED = dict(vocab_size=WORDS, num_labels=CLASSES, pad_token_id=0)


CONFIGS = {
    "bert": lambda **kw: BertConfig(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16,
        **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, **SHARED, **kw},
    ),
    "distilbert": lambda: DistilBertConfig(
        dim=WIDTH, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=16, dropout=0.0, attention_dropout=0.0,
        seq_classif_dropout=0.0, **SHARED,
    ),
    "electra": lambda: ElectraConfig(  # embeddings narrower than the network
        hidden_size=WIDTH, embedding_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SHARED,
    ),
    "gpt2": lambda: GPT2Config(
        n_embd=WIDTH, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1,
        eos_token_id=1, **SHARED,
    ),
    "llama": lambda: LlamaConfig(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=16, bos_token_id=1, eos_token_id=1, **SHARED,
    ),
}  # fmt: skip


def net(kind="bert", **kwargs):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(CONFIGS[kind](**kwargs)).double()


def sentences(n=32):
    """Token ids of 3 to 9 words and a class that the first word tells in most."""
    g = torch.Generator().manual_seed(5)
    rows = []
    for _ in range(n):
        ids = torch.randint(1, WORDS, (int(torch.randint(3, 10, (), generator=g)),), generator=g)
        rows.append({"input_ids": ids, "labels": ids[0] % CLASSES})
    return rows


def padded(rows, side="right"):
    longest = max(len(row["input_ids"]) for row in rows)
    out = {"input_ids": [], "attention_mask": []}
    for row in rows:
        room = longest - len(row["input_ids"])
        pad = (0, room) if side == "right" else (room, 0)
        out["input_ids"].append(F.pad(row["input_ids"], pad))
        out["attention_mask"].append(F.pad(torch.ones_like(row["input_ids"]), pad))
    batch = {name: torch.stack(values) for name, values in out.items()}
    return {**batch, "labels": torch.stack([row["labels"] for row in rows])}

"""Text models by name: the vocabulary learned from texts, how many tokens are read, and what a model is padded with."""

import pickle
import random
import shutil

import datasets
import pytest
import torch
from helpers.reviews import reviews
from helpers.text import CONFIGS
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, RobertaConfig

from robust_trainer.data.preprocess import kind_of, make_transform
from robust_trainer.data.texts import tell_cut
from robust_trainer.models.text_models import build_text_model, positions, train_tokenizer
from robust_trainer.models.zoo import load_model, model_kinds

TEXTS = [text for text, _ in reviews(60)]


def test_the_vocabulary_depends_on_the_texts_and_not_on_their_order():
    """Ties are broken alike in every process, else a checkpoint would be read with another vocabulary than it was written with."""
    first = train_tokenizer(TEXTS, 20).get_vocab()
    shuffled = list(TEXTS)
    for seed in range(5):
        random.Random(seed).shuffle(shuffled)
        assert train_tokenizer(shuffled, 20).get_vocab() == first
    assert {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "film"} <= set(first) and first["[PAD]"] == 0
    tokenizer = train_tokenizer(TEXTS, 20)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def saved(folder, config, tokenizer):
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_how_many_tokens_are_read(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 10**30)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    bert = saved(tmp_path / "bert", CONFIGS["bert"](vocab_size=len(tokenizer)), tokenizer)
    roberta = saved(tmp_path / "roberta", RobertaConfig(max_position_embeddings=18, pad_token_id=1, **size), tokenizer)
    for name in (bert, roberta):  # RoBERTa numbers 18 positions from 2
        model, found = build_text_model(name, ["a", "b"])
        assert positions(model) == found.model_max_length == 16
        longest = found("film " * 50, truncation=True, return_tensors="pt", return_token_type_ids=False)
        assert longest["input_ids"].shape == (1, 16) and model(**longest).logits.shape == (1, 2)
        assert build_text_model(name, ["a", "b"], max_length=5)[1].model_max_length == 5
        for wrong in (2, 17):
            with pytest.raises(ValueError, match=rf"max_length={wrong} must be in \[3, 16\]"):
                build_text_model(name, ["a", "b"], max_length=wrong)
    assert build_text_model("small-bert", ["a", "b"], TEXTS)[1].model_max_length == 128
    with pytest.raises(ValueError, match="has 1 class"):
        build_text_model("small-bert", ["a"], TEXTS)


def test_a_decoder_without_a_token_to_pad_with(tmp_path):
    """Padded to the batch, a text has the logits that it has alone."""
    tokenizer = train_tokenizer(TEXTS, 16)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    config = CONFIGS["gpt2"]()
    config.vocab_size, config.pad_token_id, config.eos_token_id = len(tokenizer), None, tokenizer.eos_token_id
    name = saved(tmp_path / "gpt", config, tokenizer)
    assert model_kinds(name) == {"text"}
    model, found = build_text_model(name, ["a", "b"])
    model = model.eval()
    rows = [found(text, return_token_type_ids=False) for text in ("good", "a film of rather dull this")]
    together = model(**DataCollatorWithPadding(found)(rows)).logits
    alone = [model(**{name: torch.tensor([value]) for name, value in row.items()}).logits[0] for row in rows]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(name)
    with pytest.raises(ValueError, match="without a token to pad with"):
        build_text_model(name, ["a", "b"])


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 16)
    name = saved(tmp_path, CONFIGS["bert"](vocab_size=len(tokenizer) - 1), tokenizer)
    with pytest.raises(ValueError, match=f"embeds {len(tokenizer) - 1} tokens but its tokenizer has {len(tokenizer)}"):
        build_text_model(name, ["a", "b"])


def test_fresh_weights_and_a_new_head(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("robust_trainer.models.pretrained.logger.warning", lambda text: said.append(text))
    model, tokenizer = build_text_model("small-bert", ["x", "y", "z"], TEXTS, max_length=16, hidden_size=16)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    torch.manual_seed(1)
    build_text_model(str(tmp_path), ["a", "b", "c"])
    assert not said
    tuned, _ = build_text_model(str(tmp_path), ["a", "b"])
    assert said == [f"model={str(tmp_path)!r} has fresh weights in classifier; the rest is pretrained"]
    fresh, _ = build_text_model(str(tmp_path), ["a", "b"], from_scratch=True)
    old, new, none = (m.bert.encoder.layer[1].output.dense.weight for m in (model, tuned, fresh))
    assert torch.equal(old, new) and not torch.equal(old, none)
    assert tuned.config.id2label == fresh.config.id2label == {0: "a", 1: "b"} and tuned.classifier.out_features == 2
    other = CONFIGS["electra"]()
    other.vocab_size = len(tokenizer)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other")
    build_text_model(str(tmp_path / "other"), ["a", "b"])
    assert "more layers: is it of another architecture?" in said[1]
    again, processor = load_model(str(tmp_path))
    assert kind_of(processor) == "text" and torch.equal(again.classifier.weight, model.classifier.weight)


def test_rows_become_the_tokens_that_are_read_and_cut_ones_are_counted(monkeypatch):
    said = []
    monkeypatch.setattr("robust_trainer.data.texts.logger.warning", lambda text: said.append(text))
    texts = [*TEXTS, "", "good " * 9, "good " * 10, "good " * 40]
    data = datasets.Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(len(texts))], "more": texts})
    tokenizer = train_tokenizer(TEXTS, 11)
    transform = pickle.loads(pickle.dumps(make_transform(None, tokenizer)))
    rows = transform.apply_to(data)
    full = [tokenizer(text, truncation=False)["input_ids"] for text in texts]
    assert [row["input_ids"] for row in rows] == [ids if len(ids) <= 11 else [*ids[:10], ids[-1]] for ids in full]
    assert [row["labels"] for row in rows] == data["label"][:] and set(rows[0]) == {"input_ids", "attention_mask", "labels"}
    tell_cut({"train": data, "test": data.select(range(3))}, tokenizer, ", mend")
    long = [len(ids) for ids in full if len(ids) > 11]
    assert said[0].startswith(
        f"split 'train': {len(long)} of {len(texts)} texts have more than 11 tokens (the longest {max(long)})"
    )
    assert said[0].endswith("only the first 11 are read, mend.")
    said.clear()
    tokenizer.model_max_length = 42
    tell_cut({"train": data}, tokenizer)
    assert not said

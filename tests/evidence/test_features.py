"""Pooled features of a data set: what they are, by definition, and that a pass leaves no trace."""

from __future__ import annotations

import re

import datasets
import numpy as np
import pytest
import torch
from helpers.audits import blobs, image_set
from helpers.toy import Logits, logits_module, resnet, vit
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ResNetModel,
    T5Config,
    T5Model,
    ViTModel,
)

from robust_trainer.data.fingerprint import fingerprint
from robust_trainer.evidence.features import encode
from robust_trainer.models.text_models import train_tokenizer
from robust_trainer.models.zoo import PlainProcessor

WORDS = "the a film was very good bad not only slow and funny but also sad".split()


def fails(*parts):
    return pytest.raises(ValueError, match="^" + "".join(f"(?=.*{re.escape(part)})" for part in parts) + r"[^\n]+$")


@pytest.fixture(scope="module")
def pictures():
    pixels, truth, _ = blobs(37, size=(8, 8))
    return image_set(pixels, label=truth.tolist())


@pytest.fixture(scope="module")
def processor():
    return PlainProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(37)]
    return datasets.Dataset.from_dict({"text": rows, "label": [i % 2 for i in range(37)]})


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts["text"], 16)


def bert(kind=BertModel, **kwargs):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 200}
    return kind(BertConfig(**sizes, max_position_embeddings=16, **kwargs))


def one_by_one(call, data, processor):
    """Each row alone, without padding, in evaluation mode."""
    out = []
    with torch.no_grad():
        for row in data:
            inputs = processor(row["text"] if "text" in row else row["image"], return_tensors="pt")
            out.append(call(inputs).flatten())
    return torch.stack(out).numpy()


def test_of_an_image_encoder_its_pooling_or_the_mean_over_patches(pictures, processor):
    network = ResNetModel(resnet().config).eval()
    expected = one_by_one(lambda x: network(**x).pooler_output, pictures, processor)
    assert np.allclose(encode(network, pictures, processing_class=processor, batch_size=8), expected, atol=1e-5)
    network = ViTModel(vit().config).eval()  # its pooling has a linear layer of its own
    expected = one_by_one(lambda x: network(**x).last_hidden_state.mean(1), pictures, processor)
    assert np.allclose(encode(network, pictures, processing_class=processor, batch_size=8), expected, atol=1e-5)
    network = ViTModel(vit().config, add_pooling_layer=False).eval()
    assert encode(network, pictures, processing_class=processor).shape == (37, 16)


@pytest.mark.parametrize("length", [1, 5, 64])
def test_of_a_text_encoder_the_mean_over_its_tokens(texts, tokenizer, length):
    network = bert().eval()
    expected = one_by_one(lambda x: network(**x).last_hidden_state.mean(1), texts, tokenizer)
    found = encode(network, texts, processing_class=tokenizer, column="text", batch_size=length)
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-5)


def test_of_a_classifier_the_input_of_its_last_linear_layer(pictures, processor, texts, tokenizer):
    network = vit().eval()
    expected = one_by_one(lambda x: network.vit(**x).last_hidden_state[:, 0], pictures, processor)
    assert np.allclose(encode(network, pictures, processing_class=processor), expected, atol=1e-5)
    network = bert(BertForSequenceClassification).eval()
    expected = one_by_one(lambda x: network.bert(**x).pooler_output, texts, tokenizer)
    assert np.allclose(encode(network, texts, processing_class=tokenizer, column="text"), expected, atol=1e-5)
    network = logits_module()
    found = encode(network, pictures, processing_class=processor)
    assert found.shape == (37, 24)
    network.head = nn.Identity()  # its last layer taken off
    assert np.allclose(encode(network, pictures, processing_class=processor), found, atol=1e-6)


def test_of_models_with_two_sides_the_one_that_reads_the_data(pictures, processor, texts, tokenizer):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "vocab_size": 200}
    network = T5Model(T5Config(**sizes)).eval()
    expected = one_by_one(
        lambda x: network.get_encoder()(x["input_ids"], x["attention_mask"]).last_hidden_state.mean(1), texts, tokenizer
    )
    assert np.allclose(encode(network, texts, processing_class=tokenizer, column="text"), expected, atol=1e-5)
    both = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text = {**both, "vocab_size": 200, "max_position_embeddings": 16, "eos_token_id": tokenizer.sep_token_id}
    config = CLIPConfig(text_config=text, vision_config={**both, "image_size": 8, "patch_size": 4}, projection_dim=12)
    network = CLIPModel(config).eval()
    assert encode(network, pictures, processing_class=processor).shape == (37, 12)
    assert encode(network, texts, processing_class=tokenizer, column="text").shape == (37, 12)


def test_rows_that_are_inputs_already_need_no_processor(pictures, processor, texts, tokenizer):
    network = resnet().eval()
    expected = encode(network, pictures, processing_class=processor)
    pixels = [processor(row["image"], return_tensors="np")["pixel_values"][0] for row in pictures]
    ready = datasets.Dataset.from_dict({"pixel_values": pixels, "label": pictures["label"][:]}).with_format("torch")
    assert np.allclose(encode(network, ready), expected, atol=1e-5)
    with fails("ResNetForImageClassification takes", "the data set has ['image', 'label']", "processing_class"):
        encode(network, pictures)
    ids = texts.map(lambda row: dict(tokenizer(row["text"])))
    with fails("make no batch", "processing_class"):
        encode(bert(), ids)


def test_a_pass_leaves_no_trace(pictures, processor):
    network = resnet().train()
    network.classifier[1].weight.grad = torch.ones_like(network.classifier[1].weight)
    before, state = fingerprint(network), torch.random.get_rng_state()
    first = encode(network, pictures, processing_class=processor, batch_size=8)
    assert fingerprint(network) == before and torch.equal(torch.random.get_rng_state(), state)
    assert all(m.training for m in network.modules()) and bool((network.classifier[1].weight.grad == 1).all())
    assert not any(m._forward_hooks for m in network.modules())
    assert np.array_equal(encode(network, pictures, processing_class=processor, batch_size=8), first)
    with pytest.raises(RuntimeError):
        encode(Broken().train(), pictures, processing_class=processor)


class Broken(Logits):
    def forward(self, pixel_values):
        raise RuntimeError("broken")


class Strange(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, pixel_values):
        return self.answer(pixel_values)


def test_mistakes_are_told_in_one_line(pictures, processor, texts, tokenizer):
    with fails("Strange returned ['loss']", "expected logits"):
        encode(Strange(lambda x: {"loss": x.mean()}), pictures, processing_class=processor)
    with fails("batch_size=0"):
        encode(resnet(), pictures, processing_class=processor, batch_size=0)
    with fails("is missing", "row 1"):
        encode(
            resnet(), image_set([None if i == 1 else np.zeros((8, 8, 3), np.uint8) for i in range(3)]), processing_class=processor
        )
    with fails("'text' is missing", "row 0"):
        encode(bert(), datasets.Dataset.from_dict({"text": [None, "a"]}), processing_class=tokenizer, column="text")
    with fails("takes", "pixel_values", "input_ids"):
        encode(resnet(), texts, processing_class=tokenizer, column="text")

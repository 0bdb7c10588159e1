"""Networks whose features are wanted, opened from folders: with a head or without, for images or texts."""

from __future__ import annotations

import json
import re

import pytest
import torch
from helpers.toy import resnet, vit
from transformers import BertConfig, BertForSequenceClassification, BertModel, ResNetModel, ViTModel

from robust_trainer.models.encoders import load_encoder
from robust_trainer.models.small_networks import SmallCNN, SmallCNNConfig
from robust_trainer.models.text_models import train_tokenizer
from robust_trainer.models.zoo import PlainProcessor


def fails(*parts):
    return pytest.raises(ValueError, match="^" + "".join(f"(?=.*{re.escape(part)})" for part in parts) + r"[^\n]+$")


@pytest.fixture
def save(tmp_path):
    def write(network, processor=None):
        network.save_pretrained(tmp_path)
        if processor is None:
            processor = PlainProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        processor.save_pretrained(tmp_path)
        return str(tmp_path)

    return write


def bert(kind=BertModel):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 300}
    return kind(BertConfig(**sizes, max_position_embeddings=40))


def test_what_was_saved_as_a_classifier_is_opened_as_one(save):
    assert type(load_encoder(save(vit()), "image")[0]).__name__ == "ViTForImageClassification"
    tiny = SmallCNN(SmallCNNConfig(num_channels=3, image_size=8))
    assert isinstance(load_encoder(save(tiny), "image")[0], SmallCNN)


def test_of_other_networks_the_encoder_is_opened_with_its_own_weights(save):
    network = ResNetModel(resnet().config)
    found, processor = load_encoder(save(network), "image")
    assert isinstance(found, ResNetModel) and processor.size["height"] == 8
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.state_dict().items())


def test_a_text_encoder_reads_as_many_tokens_as_it_takes(save):
    tokenizer = train_tokenizer(["a few words of a text"], 1000)
    folder = save(bert(), tokenizer)
    found, read = load_encoder(folder, "text")
    assert isinstance(found, BertModel) and read.model_max_length == 40
    assert load_encoder(folder, "text", max_length=10)[1].model_max_length == 10
    with fails("max_length=41 must be in"):
        load_encoder(folder, "text", max_length=41)
    with fails("takes texts, the data are images"):
        load_encoder(folder, "image")
    assert isinstance(load_encoder(save(bert(BertForSequenceClassification), tokenizer), "text")[0], BertForSequenceClassification)


def test_a_network_without_its_weights_is_refused(save, tmp_path):
    folder = save(ViTModel(vit().config))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 8}))
    with fails("has no weights for", "ViTModel", "say nothing"):
        load_encoder(folder, "image")


def test_mistakes_are_told_in_one_line(save):
    with fails("model='small-cnn' is not pretrained"):
        load_encoder("small-cnn", "image")
    with fails("model='small-bert' is not pretrained", "text encoder"):
        load_encoder("small-bert", "text")
    with fails("takes images, the data are texts"):
        load_encoder(save(vit()), "text")
    with fails("max_length=5 is for texts"):
        load_encoder(save(vit()), "image", max_length=5)
    with fails("model='/no/such' could not be loaded"):
        load_encoder("/no/such", "image")

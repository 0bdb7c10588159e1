"""What the Trainer and its users may ask of one network, asked of several."""

import datasets
import numpy as np
import peft
import pytest
import torch
from helpers.text import CONFIGS, WORDS, net, sentences
from helpers.toy import Logits, images, robust, settings, vit
from tokenizers import Tokenizer, models
from torch import nn
from transformers import AutoModelForSequenceClassification, BartConfig, BartForSequenceClassification, PreTrainedTokenizerFast

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.models.peers import PeerModel, make_peers


def tokenizer():
    words = models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w2")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="w0", eos_token="w1")


def rows(end=()):
    ids = [{"input_ids": [*row["input_ids"].tolist(), *end], "labels": int(row["labels"])} for row in sentences(16)]
    return datasets.Dataset.from_list(ids)


def trained(tmp_path, model, data=None, **kwargs):
    args = RobustConfig(**{**settings(tmp_path), "max_steps": 2, "method": "co-prl", **kwargs})
    made = RobustTrainer(model, args, train_dataset=rows() if data is None else data, processing_class=tokenizer())
    made.train()
    return made


def test_special_tokens_and_use_cache_reach_every_network(tmp_path):
    config = CONFIGS["gpt2"]()
    config.pad_token_id = None
    for model in (AutoModelForSequenceClassification.from_config(config), PeerModel.of([net("gpt2"), net("gpt2")])):
        trainer = trained(tmp_path, model)
        for own in (trainer.model.config, *(peer.config for peer in trainer.model.peers)):
            assert own.pad_token_id == 0 and own.eos_token_id == 1 and own.use_cache is False
        assert trainer.model.config.to_dict()["peer"]["pad_token_id"] == 0 and "_networks" not in trainer.model.config.to_dict()
        assert trainer.model.config.vocab_size == WORDS and not hasattr(trainer.model.config, "no_such_thing")


def test_noise_on_embeddings_reaches_every_network(tmp_path):
    """NEFTune: training differs from one without, in both networks, and the hooks are gone afterwards."""
    plain, noisy = (trained(tmp_path, net("bert").float(), neftune_noise_alpha=alpha) for alpha in (None, 5.0))
    for a, b in zip(plain.model.peers, noisy.model.peers):
        assert not torch.equal(a.classifier.weight, b.classifier.weight)
        embeddings = b.get_input_embeddings()
        assert not embeddings._forward_hooks and not hasattr(embeddings, "neftune_noise_alpha")


def test_embeddings_checkpointing_and_counts_are_each_networks_own():
    one = net("bert").float()
    one.add_model_tags(["mine"])
    one.config._name_or_path = "org/base"
    both = make_peers(one, 2, seed=0)
    assert both.model_tags == ["mine"] and both.config.name_or_path == "org/base"
    both.resize_token_embeddings(WORDS + 4)
    assert [peer.get_input_embeddings().num_embeddings for peer in both.peers] == [WORDS + 4] * 2
    assert both.config.vocab_size == WORDS + 4
    both.activation_checkpointing_enable(every_n_layers=2)
    layers = [[layer.gradient_checkpointing for layer in peer.bert.encoder.layer] for peer in both.peers]
    one.activation_checkpointing_enable(every_n_layers=2)
    assert layers[0] == layers[1] == [layer.gradient_checkpointing for layer in one.bert.encoder.layer] and not all(layers[0])
    assert both.num_parameters(exclude_embeddings=True) == 2 * one.num_parameters(exclude_embeddings=True)
    one.config.id2label = {0: "a", 1: "b", 2: "c"}  # the networks made from a model share its config
    assert both.peers[1].config.id2label == one.config.id2label


class Numbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x).squeeze(-1)


class Tuples(Numbers):
    """As the Trainer's own toy returns them: the loss first, where labels are given."""

    def forward(self, x, labels=None):
        y = super().forward(x)
        return (y,) if labels is None else (nn.functional.mse_loss(y, labels), y)


@pytest.mark.parametrize(
    "method,model", [("prl", Numbers), ("prl", Tuples), ("co-prl", Numbers), ("co-prl", Tuples), ("co-teaching", Numbers)]
)
def test_one_output_may_come_squeezed(tmp_path, method, model):
    rng = np.random.default_rng(0)
    data = datasets.Dataset.from_dict({"x": rng.random((16, 3)).tolist(), "labels": rng.random(16).tolist()}).with_format("torch")
    trainer = robust(
        tmp_path, model(), data, method=method, problem_type="regression", max_steps=2,
        trainer={"eval_dataset": data, "compute_metrics": lambda p: {"mse": float(np.square(p.predictions - p.label_ids).mean())}},
    )  # fmt: skip
    trainer.train()
    metrics = trainer.evaluate()
    if method == "prl":
        assert metrics["eval_mse"] == pytest.approx(metrics["eval_loss"], rel=1e-5)
    else:  # a plain module's loss is of the mean, the networks' own losses have a mean
        mean = metrics["eval_mse"] if model is Numbers else (metrics["eval_peer0_mse"] + metrics["eval_peer1_mse"]) / 2
        assert metrics["eval_loss"] == pytest.approx(mean, rel=1e-5)
    assert ("eval_peer1_mse" in metrics) == (method != "prl") and trainer.predict(data).predictions.shape == (16,)


def test_adapters_of_no_task_keep_their_columns_and_labels(tmp_path):
    """The signature of PEFT's wrapper takes anything: the base model's tells which columns count."""
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "query"], modules_to_save=["classifier"])
    args = RobustConfig(**settings(tmp_path, max_steps=1), method="co-prl")

    def adapted():
        base = vit()
        base.is_quantized = True  # which the Trainer takes with adapters
        return peft.get_peft_model(base, lora)

    trainer = RobustTrainer(model_init=adapted, args=args, train_dataset=images(16))
    trainer.train()
    assert trainer.label_names == ["labels"] and trainer.model.main_input_name == "pixel_values"
    assert "pixel_values" in trainer._signature_columns


class Words(nn.Module):
    """A plain module on token ids."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.EmbeddingBag(WORDS, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        return self.head(self.words(input_ids))


def test_metrics_see_a_plain_modules_inputs(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"input_ids": rng.integers(1, WORDS, (16, 5)).tolist(), "labels": rng.integers(0, 3, 16).tolist()}
    data = datasets.Dataset.from_dict(columns).with_format("torch")
    trainer = robust(
        tmp_path, Words(), data, method="co-prl", max_steps=1, include_for_metrics=["inputs"], include_num_input_tokens_seen="all",
        trainer={"eval_dataset": data, "compute_metrics": lambda p: {"inputs": int(np.sum(p.inputs))}},
    )  # fmt: skip
    trainer.train()
    assert trainer.evaluate()["eval_inputs"] == np.sum(columns["input_ids"]) and trainer.state.num_input_tokens_seen == 40


def test_tied_weights_and_changed_modules(tmp_path):
    config = BartConfig(
        vocab_size=WORDS, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32, num_labels=3, pad_token_id=0, eos_token_id=1,
        bos_token_id=3, decoder_start_token_id=1,
    )  # fmt: skip
    data = rows(end=[1]).map(lambda row: {"input_ids": [3 if i == 1 else i for i in row["input_ids"][:-1]] + [1]})
    trainer = trained(tmp_path, BartForSequenceClassification(config), data, export="ensemble")
    assert trainer.model.config.is_encoder_decoder
    trainer.save_model()
    saved = PeerModel.from_pretrained(tmp_path)
    for a, b in zip(trainer.model.peers, saved.peers):
        assert torch.equal(a.model.shared.weight, b.model.shared.weight)
        assert b.model.encoder.embed_tokens.weight is b.model.shared.weight
    assert trainer.model._no_split_modules == trainer.model.peers[0]._no_split_modules != set()

    frozen = vit()
    for parameter in frozen.vit.parameters():
        parameter.requires_grad = False
    both = make_peers(frozen, 2, seed=0)
    for name, other in both.peers[1].named_parameters():
        mine = both.peers[0].get_parameter(name)
        assert other.requires_grad == mine.requires_grad and (mine.requires_grad or torch.equal(mine, other))
    swapped = vit()
    swapped.classifier = nn.Linear(16, 7)
    with pytest.raises(ValueError, match=r"was changed after it was built \(classifier.bias\).*pass model_init"):
        make_peers(swapped, 2, seed=0)


def test_what_one_network_lacks_several_lack(tmp_path):
    for method in ("prl", "co-prl"):
        quantized = vit()
        quantized.is_quantized = True
        with pytest.raises(ValueError, match="purely quantized models"):
            robust(tmp_path, quantized, method=method)
        with pytest.raises(AttributeError, match="'Logits' object has no attribute 'get_input_embeddings'"):
            robust(tmp_path, Logits(), method=method, neftune_noise_alpha=1.0).train()
    assert make_peers(Logits(), 2, seed=0).main_input_name == "pixel_values"

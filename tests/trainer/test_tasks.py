"""Models of other tasks than one label a sample: they work, or are refused in one line before the first step."""

import datasets
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import robust
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
    YolosConfig,
    YolosForObjectDetection,
)

N, WORDS = 8, 6
BERT = BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=16
)  # fmt: skip
IDS = torch.randint(1, 20, (N, WORDS), generator=torch.Generator().manual_seed(0))
IMAGES = torch.zeros(N, 3, 8, 8).tolist()
TEXT_ATTACK = dict(scope="sample", eps=0.3, step_size=0.1)


def rows(**columns):
    return datasets.Dataset.from_dict(columns).with_format("torch")


REFUSED = {
    "tokens": (
        lambda: BertForTokenClassification(BERT), rows(input_ids=IDS.tolist(), labels=IDS.clamp_max(1).tolist()),
        "a label for each token",
    ),
    "span": (
        lambda: BertForQuestionAnswering(BERT), rows(input_ids=IDS.tolist(), start_positions=[1] * N, end_positions=[2] * N),
        "a span of the text",
    ),
    "next token": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16)),
        rows(input_ids=IDS.tolist(), labels=IDS.tolist()), "the next token",
    ),
    "masked": (lambda: BertForMaskedLM(BERT), rows(input_ids=IDS.tolist(), labels=IDS.tolist()), "the masked tokens"),
    "sequence": (
        lambda: T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
        rows(input_ids=IDS.tolist(), labels=IDS.tolist()), "a text",
    ),
    "pixels": (
        lambda: SegformerForSemanticSegmentation(
            SegformerConfig(
                num_encoder_blocks=1, depths=[1], sr_ratios=[1], hidden_sizes=[8], patch_sizes=[3], strides=[2],
                num_attention_heads=[1], mlp_ratios=[1], decoder_hidden_size=8,
            )
        ),
        rows(pixel_values=IMAGES, labels=torch.zeros(N, 8, 8, dtype=torch.long).tolist()), "a class for each pixel",
    ),
    "boxes": (
        lambda: YolosForObjectDetection(
            YolosConfig(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=[8, 8], patch_size=4,
                num_detection_tokens=2,
            )
        ),
        rows(pixel_values=IMAGES, labels=[{"class_labels": [0], "boxes": [[0.5, 0.5, 0.1, 0.1]]}] * N), "a set of boxes",
    ),
}  # fmt: skip


@every_row("case", REFUSED)
def test_other_tasks_are_refused_at_set_up(tmp_path, case):
    make, data, told = REFUSED[case]
    trainer = robust(tmp_path, make(), data, method="prl", noise_rate=0.2, max_steps=1)
    with pytest.raises(ValueError, match=f"answers with {told}, method 'prl' weighs samples of one label") as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and trainer.state.global_step == 0


def choices():
    ids = torch.randint(1, 20, (N, 3, WORDS), generator=torch.Generator().manual_seed(0))
    return rows(input_ids=ids.tolist(), labels=[0, 1, 2, 0] * 2)


@every_row("method", ["pgd-at", "trades", "prl+nrat", "at"])
def test_an_attack_moves_one_text_a_sample(tmp_path, method):
    trainer = robust(tmp_path, BertForMultipleChoice(BERT), choices(), method=method, max_steps=1, **TEXT_ATTACK)
    with pytest.raises(ValueError, match="reads several texts a sample") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)


def test_without_an_attack_the_choice_is_a_class(tmp_path):
    robust(tmp_path, BertForMultipleChoice(BERT), choices(), method="prl", noise_rate=0.2, max_steps=2).train()


def test_a_model_of_ones_own_that_reads_several_texts(tmp_path):
    class Chooses(BertForMultipleChoice):
        """Another name, the same inputs."""

    with pytest.raises(ValueError, match=r"input_ids have shape \(8, 3, 6\), an attack moves texts of shape \(B, T\)"):
        robust(tmp_path, Chooses(BERT), choices(), method="pgd-at", max_steps=1, **TEXT_ATTACK).train()


@every_row("method", ["prl", "pgd-at"])
def test_the_next_sentence_is_one_label(tmp_path, method):
    data = rows(input_ids=IDS.tolist(), labels=[0, 1] * (N // 2))
    more = dict(noise_rate=0.2) if method == "prl" else TEXT_ATTACK
    robust(tmp_path, BertForNextSentencePrediction(BERT), data, method=method, max_steps=1, **more).train()


class Words(nn.Module):
    """A module that no mapping knows: a class for each token, or a start and an end."""

    def __init__(self, span):
        super().__init__()
        self.words, self.span = nn.Embedding(20, 2), span

    def forward(self, input_ids, labels=None, start_positions=None, end_positions=None):
        logits = self.words(input_ids)
        return (logits[..., 0], logits[..., 1]) if self.span else logits


def test_several_labels_in_a_batch_of_an_own_module(tmp_path):
    """The first of them alone would have been trained on."""
    data = rows(input_ids=IDS.tolist(), start_positions=[1] * N, end_positions=[2] * N)
    trainer = robust(
        tmp_path, Words(True), data, method="prl", noise_rate=0.2, max_steps=1, label_names=["start_positions", "end_positions"],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"the batch has 2 kinds of labels \(start_positions, end_positions\)"):
        trainer.train()


def test_a_label_for_each_token_of_an_own_module(tmp_path):
    data = rows(input_ids=IDS.tolist(), labels=IDS.tolist())
    with pytest.raises(ValueError, match="several class numbers a sample") as caught:
        robust(tmp_path, Words(False), data, method="prl", noise_rate=0.2, max_steps=1).train()
    assert "problem_type" not in str(caught.value)

"""Sentences: a tiny BERT with a padding collator, and the example from end to end."""

import runpy
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerFast

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.evaluation.accuracy import compute_accuracy

GOOD, BAD = ["fine", "good", "great", "lovely"], ["awful", "bad", "dull", "poor"]
FILLER = ["a", "film", "it", "is", "of", "rather", "the", "this"]
EXAMPLE = Path(__file__).parents[2] / "examples" / "text_classification.py"


def sentences(n: int = 48, noisy: float = 0.25, seed: int = 0) -> datasets.Dataset:
    """Sentences of 3 to 12 words, one of which tells the class; a share has the other label."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 2, n)
    wrong = rng.permutation(n) < round(noisy * n)
    text = []
    for c in clean:
        words = list(rng.choice(FILLER, rng.integers(2, 12)))
        words.insert(rng.integers(0, len(words) + 1), str(rng.choice((BAD, GOOD)[c])))
        text.append(" ".join(words))
    rows = {"text": text, "label": np.where(wrong, 1 - clean, clean).tolist(), "is_corrupted": wrong.tolist()}
    return datasets.Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=["bad", "good"]))


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", *FILLER, *GOOD, *BAD]
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=found, pad_token="[PAD]", unk_token="[UNK]")


def trainer_for(folder, *, train=None, epochs=2, **settings):
    torch.manual_seed(0)
    words = tokenizer()
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, pad_token_id=0, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip

    def tokenize(rows):
        return words(rows["text"], return_token_type_ids=False)

    args = RobustConfig(
        output_dir=str(folder), num_train_epochs=epochs, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, logging_strategy="epoch", **{"per_device_train_batch_size": 8, **settings},
    )  # fmt: skip
    train = sentences() if train is None else train
    return RobustTrainer(
        model=model, args=args, train_dataset=train.map(tokenize, batched=True),
        eval_dataset=sentences(24, 0.0, seed=1).map(tokenize, batched=True), processing_class=words,
        data_collator=DataCollatorWithPadding(words), compute_metrics=compute_accuracy,
    )  # fmt: skip


@pytest.mark.parametrize("method,strategy", [("standard", "random"), ("spl", "group_by_length"), ("prl", "sequential")])
def test_rows_of_the_ledger_are_the_sentences(method, strategy, tmp_path):
    trainer = trainer_for(tmp_path, method=method, train_sampling_strategy=strategy)
    seen = []
    forward = trainer.model.forward

    def watched(input_ids, attention_mask, **kwargs):
        if trainer.model.training:
            seen.append((input_ids, attention_mask))
        return forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    trainer.model.forward = watched
    trainer.train()
    rows = trainer.ledger.to_dataset()
    assert rows["label"][:] == trainer.train_dataset["label"][:]
    assert rows["seen"][:] == [2] * 48
    assert rows["is_corrupted"][:] == trainer.train_dataset["is_corrupted"][:]
    shapes = {ids.shape for ids, _ in seen}
    assert len(shapes) > 1  # padded to the batch, not to the data set
    assert all(((ids == 0) == (mask == 0)).all() for ids, mask in seen)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_index_of_a_score_is_its_sentence(strategy, tmp_path):
    """With a learning rate of zero the ledger's scores are those of the sentences, looked at one by one."""
    trainer = trainer_for(tmp_path, method="spl", train_sampling_strategy=strategy, epochs=1, learning_rate=0.0)
    trainer.train()
    model = trainer.model.eval()
    for row, told in zip(trainer.train_dataset, trainer.ledger.to_dataset()):
        with torch.no_grad():
            loss = model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["label"]])).loss
        assert told["last_score"] == pytest.approx(float(loss), abs=1e-5)


def test_filter_drops_wrong_labels_and_evaluation_works(tmp_path):
    train = sentences(512)
    batch = {"per_device_train_batch_size": 32, "learning_rate": 3e-3}
    trainer = trainer_for(tmp_path, train=train, epochs=8, method="prl", noise_rate=0.25, drop_ramp_epochs=4, **batch)
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9
    assert trainer.predict(trainer.eval_dataset).predictions.shape == (24, 2)
    found = trainer.distrusted_samples()
    wrong = np.asarray(train["is_corrupted"][:])
    assert wrong[found["index"][:20]].mean() > 0.9
    assert trainer.ledger.detection()["auroc"] > 0.9
    assert train[found["index"][0]]["label"] == found["label"][0]


def test_no_method_is_the_plain_trainer(tmp_path):
    trainer = trainer_for(tmp_path, epochs=1)
    trainer.train()
    assert trainer.ledger is None
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1


@pytest.mark.parametrize("columns", [("text", "label"), ("review", "verdict")])
def test_example(columns, tmp_path, monkeypatch, capsys):
    text, label = columns
    data = sentences(60)
    names = data.features["label"].names
    table = datasets.Dataset.from_dict({text: data["text"][:], label: [names[i] for i in data["label"][:]], "more": [0] * 60})
    table.to_csv(tmp_path / "reviews.csv")
    flags = f"--dataset {tmp_path / 'reviews.csv'} --text_column {text} --label_column {label} --output_dir {tmp_path / 'out'} "
    flags += "--method prl --noise_rate 0.3 --drop_schedule constant --use_cpu 1 --num_train_epochs 1 --disable_tqdm 1 "
    flags += "--save_strategy no --dataloader_pin_memory 0"
    monkeypatch.setattr(sys, "argv", ["text_classification.py", *flags.split()])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    told = capsys.readouterr().out
    assert "eval_accuracy" in told
    assert "of 48 labels distrusted" in told
    assert "given bad, predicted good" in told or "given good, predicted bad" in told
    distrusted = datasets.Dataset.from_csv(str(tmp_path / "out" / "distrusted.csv"), cache_dir=str(tmp_path / "cache"))
    assert len(distrusted) > 0
    assert set(distrusted["distrusted"][:]) == {True}
    assert (tmp_path / "out" / "tokenizer.json").is_file()

"""Sounds: tiny models of waveforms and of spectrograms pass through training, the methods, auto and the audit."""

import numpy as np
import pytest
from helpers.sounds import KINDS, WIDTH, extractor, net, sounds

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.corruptions import ToneTrigger, poison
from robust_trainer.data.audio import AudioTransform
from robust_trainer.evaluation.accuracy import compute_accuracy
from robust_trainer.evidence.features import encode


def trainer_for(folder, kind="wav2vec2", *, train=None, epochs=1, model=None, **settings):
    processor = extractor(kind)
    transform = AudioTransform(processor)
    args = RobustConfig(
        output_dir=str(folder), num_train_epochs=epochs, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        dataloader_pin_memory=False, remove_unused_columns=False, logging_strategy="epoch",
        **{"per_device_train_batch_size": 8, **settings},
    )  # fmt: skip
    model, train = net(kind) if model is None else model, sounds() if train is None else train
    return RobustTrainer(
        model=model, args=args, train_dataset=transform.apply_to(train),
        eval_dataset=transform.apply_to(sounds(16, 1)), processing_class=processor, compute_metrics=compute_accuracy,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["standard", "prl", "auto"])
def test_every_kind_of_model_trains(kind, method, tmp_path):
    trainer = trainer_for(tmp_path, kind, method=method, **({"noise_rate": 0.2} if method == "prl" else {}))
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"]) and 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    assert trainer.ledger.to_dataset()["seen"][:] == [1] * 32
    assert trainer.ledger.to_dataset()["label"][:] == sounds()["label"][:]


@pytest.mark.parametrize("method", ["spl", "co-prl", "co-teaching"])
def test_other_methods_train(method, tmp_path):
    trainer = trainer_for(tmp_path, method=method, **({"noise_rate": 0.2} if method != "spl" else {}))
    trainer.train()
    assert trainer.ledger.to_dataset()["seen"][:] == [1] * 32


@pytest.mark.parametrize("method", ["pgd-at", "prl-at", "trades"])
@pytest.mark.parametrize("normalised", [True, False])
def test_attacks_move_samples_within_eps_and_no_padding(method, normalised, tmp_path):
    more = {"scope": "sample", "noise_rate": 0.1} if method == "prl-at" else {}
    batches = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    trainer = trainer_for(tmp_path, method=method, eps=0.02, **batches, **more)
    trainer.processing_class.do_normalize = normalised
    seen, forward = [], trainer.model.forward

    def watched(input_values, attention_mask, **kwargs):
        if trainer.model.training:
            seen.append((input_values.detach().clone(), attention_mask))
        return forward(input_values=input_values, attention_mask=attention_mask, **kwargs)

    trainer.model.forward = watched
    trainer.train()
    processor, own = extractor("wav2vec2"), []
    processor.do_normalize = normalised
    for row in AudioTransform(processor).apply_to(sounds()):
        own.append(np.asarray(row["input_values"]))
    moved = 0
    for waves, mask in seen:
        for wave, size in zip(waves.numpy(), mask.sum(1).tolist()):
            away = min(np.abs(wave[:size] - o).max() for o in own if len(o) == size)
            assert away <= 0.02 + 1e-5 and not wave[size:].any()
            moved += away > 1e-3
            assert normalised or np.abs(wave).max() <= 1.0
    assert moved >= len(own) / 2


@pytest.mark.parametrize(
    "kind, settings, told",
    [
        ("ast", {"method": "pgd-at"}, "a perturbed spectrogram is the spectrogram of no sound"),
        ("whisper", {"method": "trades"}, "'input_features' is (8, 16, 100)"),
        ("wav2vec2", {"method": "pgd-at", "image_mean": [0.5], "image_std": [0.5]}, "image_mean is for images"),
        ("wav2vec2", {"method": "pgd-at", "scope": "batch"}, "set scope='sample'"),
    ],
)
def test_what_sounds_have_not_is_refused_in_one_line(kind, settings, told, tmp_path):
    with pytest.raises(ValueError) as caught:
        trainer_for(tmp_path, kind, **settings).train()
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_auto_finds_the_rows_with_a_tone(tmp_path):
    """It is heard at another time in each of them, and its rows alone carry a pattern."""
    clean, tone = sounds(200, 3, shortest=800, longest=1600), ToneTrigger(2500.0, 0.05, -20, "anywhere")
    train = poison(clean, trigger=tone, rate=0.1, label_rule="all-to-one")
    more = {"learning_rate": 6e-3, "per_device_train_batch_size": 25}
    trainer = trainer_for(tmp_path, train=train, method="auto", epochs=8, **more)
    trainer.train()
    rows = trainer.ledger.to_dataset()
    carrier, hit = np.asarray(rows["carrier"][:]).astype(bool), np.asarray(train["is_corrupted"][:])
    assert carrier[hit].mean() > 0.9 and carrier[~hit].mean() < 0.02


def test_a_frozen_encoder_is_pooled_over_what_is_no_padding():
    """Features of a batch are those of each sound alone: neither padding nor the other sounds count."""
    for kind in ("wav2vec2", "hubert"):
        body, processor, data = net(kind).eval().base_model, extractor(kind), sounds(6)
        together = encode(body, data, processing_class=processor, column="audio", batch_size=6)
        alone = encode(body, data, processing_class=processor, column="audio", batch_size=1)
        np.testing.assert_allclose(together, alone, atol=1e-4)
        assert together.shape == (6, WIDTH) and np.ptp(together, axis=0).max() > 0

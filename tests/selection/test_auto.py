"""noise_rate="auto" through the trainer: found, logged, stored, resumed, the same however the step is cut."""

import copy

import pytest
import torch
from helpers.toy import curve, images, logits_module, robust

AUTO = dict(
    noise_rate="auto",
    num_train_epochs=8,
    per_device_train_batch_size=40,
    learning_rate=2e-2,
    logging_strategy="epoch",
    drop_ramp_epochs=2,
)


@pytest.mark.parametrize("method,noise", [("prl", 0.0), ("co-prl", 0.3), ("prl-memory", 0.3), ("prl-joint", 0.3)])
def test_finds_the_rate_and_drops_it(tmp_path, method, noise):
    memory = {"memory": "ema", "per_class": True} if method == "prl-memory" else {}
    settings = {**AUTO, **memory, **({"noise_rate": "confident-joint"} if method == "prl-joint" else {})}
    trainer = robust(tmp_path, logits_module(), images(400, noisy=noise), method=method.split("-m")[0].split("-j")[0], **settings)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    found = trainer.estimated_noise_rate
    # 160 samples held out: a standard error of 3.6 points at 30 %
    assert noise - 0.03 <= found.rate <= noise + 0.12 and found.low <= found.rate <= found.high
    assert "noise_rate" not in rows[0] and rows[0]["kept_fraction"] == 1.0
    assert rows[-1]["noise_rate"] == found.rate and {"noise_rate_low", "noise_rate_high"} <= set(rows[-1])
    if noise:
        assert rows[-1]["kept_corrupted"] < 0.2
    else:
        assert rows[-1]["kept_fraction"] > 0.93


def test_held_out_samples_are_not_trained_on(tmp_path):
    """Before the first estimate the trajectory does not depend on the labels of the held-out samples."""
    data = images(100)
    curves = []
    for flip in (False, True):
        changed = data
        if flip:
            probe = robust(tmp_path, logits_module(), data, method="prl", **{**AUTO, "max_steps": 1})
            probe.train()
            held = probe._robust_step.weights.estimator.hold_out(torch.arange(100))
            assert 0 < held.sum() < 100
            labels = torch.as_tensor(data["labels"][:]).clone()
            labels[held] = (labels[held] + 1) % 4
            changed = data.remove_columns("labels").add_column("labels", labels.numpy()).with_format("torch")
        steps = {**AUTO, "max_steps": 3, "logging_strategy": "steps"}
        trainer = robust(tmp_path, logits_module(), changed, method="prl", **steps)
        trainer.train()
        curves.append(curve(trainer))
        rows = trainer.ledger.to_dataset()
        assert not any(rows["distrusted"][:])  # held out is not distrusted
    assert curves[0] == curves[1]


def test_accumulation_and_resume(tmp_path):
    data = images(200, noisy=0.3)
    common = dict(method="prl", **{**AUTO, "save_strategy": "epoch"})
    whole = robust(tmp_path / "a", logits_module(), data, **common)
    whole.train()
    assert 0.27 < whole.estimated_noise_rate.rate < 0.5
    cut = {**common, "per_device_train_batch_size": 20, "gradient_accumulation_steps": 2}
    parts = robust(tmp_path / "b", logits_module(), data, **cut)
    parts.train()
    resumed = [robust(tmp_path / "a", logits_module(), data, **common) for _ in range(2)]
    for trainer, step in zip(resumed, (10, 30)):  # before the first estimate, and after holding out
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{step}"))
    for other, same in ((resumed[0], True), (resumed[1], True), (parts, False)):
        assert other.estimated_noise_rate == whole.estimated_noise_rate or not same
        assert other.estimated_noise_rate.rate == pytest.approx(whole.estimated_noise_rate.rate, abs=0.02)
        ends = [copy.deepcopy(t.model.state_dict()) for t in (whole, other)]
        close = torch.equal if same else lambda a, b: torch.allclose(a, b, atol=5e-3)
        assert all(close(v, ends[1][k]) for k, v in ends[0].items())


def test_a_model_that_learns_nothing_drops_nobody(tmp_path, caplog):
    """Labels at random: no estimate, a warning, everybody kept."""
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        trainer = robust(tmp_path, logits_module(), images(200, noisy=0.0, shuffled=True), method="prl", **AUTO)
        trainer.train()
    finally:
        logging.disable_propagation()
    assert trainer.estimated_noise_rate is None
    assert all(row["kept_fraction"] == 1.0 for row in trainer.state.log_history if "loss" in row)
    assert sum("hardly better than chance" in record.message for record in caplog.records) == 1


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"noise_rate='auto' does not go with an attack.*as 0.45"):
        robust(tmp_path, method="prl-at", noise_rate="auto")
    with pytest.raises(ValueError, match=r"noise_rate='atuo' must be in \[0, 1\), or 'auto' or 'confident-joint'"):
        robust(tmp_path, method="prl", noise_rate="atuo")
    assert robust(tmp_path, method="prl", noise_rate="0.2").recipe().selection.noise_rate == 0.2
    stream = images().to_iterable_dataset()
    with pytest.raises(ValueError, match=r"a noise_rate in numbers"):
        robust(tmp_path, data=stream, method="prl", noise_rate="auto", max_steps=2).train()

"""Bugs found in review, each with the test that failed before its mend."""

import logging
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from helpers.tables import every_row
from helpers.toy import NORMALISATION, Logits, config, curve, images, logits_module, robust, settings, vit
from transformers import Trainer, TrainingArguments

from robust_trainer import RobustConfig, RobustTrainer
from robust_trainer.ledger.ledger import auroc
from robust_trainer.models.heads import head_of


class Rows(torch.utils.data.Dataset):
    extra = "seen"

    def __init__(self, rows=None):
        self.rows, self.epochs = rows or [dict(r) for r in images(16).select_columns(["pixel_values", "labels"])], []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_the_data_sets_own_attributes_stay_reachable(tmp_path):
    data = Rows()
    trainer = robust(tmp_path, vit(), data, method="prl")
    trainer.train()
    assert set(data.epochs) == {0, 1} and trainer.callback_handler.train_dataloader.dataset.extra == "seen"


def test_own_loss_is_used_in_the_evaluation_of_a_bare_module(tmp_path):
    def doubled(outputs, labels, num_items_in_batch=None):
        return 2 * torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    still = dict(method="standard", max_steps=1, learning_rate=0.0)
    both = [
        robust(tmp_path, logits_module(), **still, trainer={"eval_dataset": images(16), **extra})
        for extra in ({}, {"compute_loss_func": doubled})
    ]
    for trainer in both:
        trainer.train()
    assert both[1].evaluate()["eval_loss"] == pytest.approx(2 * both[0].evaluate()["eval_loss"], rel=1e-5)


def test_a_method_cannot_be_bypassed_silently(tmp_path):
    class OwnLoss(RobustTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            return model(**{k: v for k, v in inputs.items() if k in ("pixel_values", "labels")}).loss

    class OwnLoader(RobustTrainer):
        def get_train_dataloader(self):
            return Trainer.get_train_dataloader(self)

    for cls, told in ((OwnLoss, "compute_loss"), (OwnLoader, "get_train_dataloader")):
        args = RobustConfig(**settings(tmp_path, method="prl", **NORMALISATION))
        with pytest.raises(ValueError, match=told):
            cls(vit(), args, train_dataset=images(16)).train()


@every_row("case", ["own loss", "twice", "own step", "changed batch", "popped labels"])
def test_what_a_method_would_not_see_is_told_in_one_line(tmp_path, case):
    """A model without ``**kwargs`` under a compute_loss of the user's; and calls that a planned step does not expect."""

    class Mine(RobustTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            if case == "own loss":
                assert sorted(inputs) == ["labels", "pixel_values"]
                return torch.nn.functional.cross_entropy(model(inputs["pixel_values"]), inputs["labels"])
            if case == "twice":
                super().compute_loss(model, inputs)
            if case == "changed batch":
                inputs = {**inputs, "pixel_values": inputs["pixel_values"] * 0.5}
            if case == "popped labels":
                inputs.pop("labels")
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        def training_step(self, model, inputs, num_items_in_batch=None):
            if case == "own step":
                model.train()
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
                self.accelerator.backward(loss)
                return loss.detach()
            return super().training_step(model, inputs, num_items_in_batch)

    told = {
        "own loss": "Mine overrides compute_loss without calling super",
        "twice": "Mine calls compute_loss twice for a batch, or not from Trainer.training_step",
        "own step": "Mine calls compute_loss twice for a batch, or not from Trainer.training_step",
        "changed batch": "Mine changes 'pixel_values' of the batch before super",
        "popped labels": "Mine changes 'labels' of the batch before super",
    }
    args = RobustConfig(**settings(tmp_path, method="prl", noise_rate=0.2))
    with pytest.raises(ValueError, match=told[case]) as caught:
        Mine(logits_module(), args, train_dataset=images(16)).train()
    assert "\n" not in str(caught.value)


@every_row("config", [None, {}, {"num_labels": 4}, SimpleNamespace(), "text"])
@every_row("method", ["prl", "co-prl"])
def test_a_module_whose_config_is_none_or_no_config(tmp_path, config, method):
    class Configured(Logits):
        def __init__(self):
            super().__init__()
            self.config = config

    if method == "prl" and isinstance(config, dict | str):
        return  # the Trainer itself sets config.use_cache, with or without a method
    trainer = robust(
        tmp_path, Configured(), images(16), method=method, noise_rate=0.2, problem_type="single_label_classification", max_steps=2,
    )  # fmt: skip
    trainer.train()
    assert len(curve(trainer)) == 2 and head_of(Configured()).out_features == 4


def test_a_column_named_sample_index_reaches_the_model(tmp_path):
    seen = []

    class Takes(Logits):
        def forward(self, pixel_values, sample_index=None):
            seen.append(sample_index)
            return super().forward(pixel_values)

    data = images(16).add_column("sample_index", list(range(100, 116)))
    robust(tmp_path, Takes(), data, method="prl", num_train_epochs=1).train()
    assert sorted(int(i) for batch in seen for i in batch) == list(range(100, 116))


def test_dropped_samples_with_infinite_logits_leave_the_weights_finite(tmp_path):
    class Explodes(Logits):
        def forward(self, pixel_values):
            z = super().forward(pixel_values)
            hot = (pixel_values.amax((1, 2, 3)) > 0.99).unsqueeze(1)
            return z.masked_fill(hot, float("inf"))

    torch.manual_seed(0)
    rows = [dict(r) for r in images(32).select_columns(["pixel_values", "labels"])]
    rows[3]["pixel_values"] = torch.ones(3, 8, 8)
    trainer = robust(tmp_path, Explodes(), rows, method="prl", noise_rate=0.25, drop_schedule="constant")
    trainer.train()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_diverged_run_can_still_be_logged():
    assert auroc(torch.tensor([float("nan"), 1.0, 0.0]), torch.tensor([True, False, True])) is None


def test_resume_with_other_settings_is_told(tmp_path):
    robust(tmp_path, method="prl", noise_rate=0.25, save_strategy="epoch").train()
    with pytest.raises(ValueError, match="noise_rate=0.25.*this run has.*0.4"):
        robust(tmp_path, method="prl", noise_rate=0.4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_damaged_state_is_told(tmp_path):
    robust(tmp_path, method="prl", save_strategy="epoch").train()
    (tmp_path / "checkpoint-6" / "robust_state.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="robust_state.safetensors.*damaged"):
        robust(tmp_path, method="prl").train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


def test_a_plain_save_leaves_no_stale_state(tmp_path):
    trainer = robust(tmp_path, vit(), method="prl")
    trainer.train()
    trainer.save_model(str(tmp_path / "m"))
    plain = RobustTrainer(vit(), TrainingArguments(**settings(tmp_path)), train_dataset=images())
    plain.save_model(str(tmp_path / "m"))
    assert not (tmp_path / "m" / "robust_state.safetensors").exists()


def test_labels_encoded_by_a_transform(tmp_path):
    names = ["a", "b", "c", "d"]
    data = images(16).with_format(None)
    data = data.remove_columns("labels").add_column("labels", [names[i % 4] for i in range(16)])

    def encode(batch):
        return {"pixel_values": torch.tensor(np.array(batch["pixel_values"])), "labels": [names.index(y) for y in batch["labels"]]}

    data.set_transform(encode)
    trainer = robust(tmp_path, vit(), data, method="prl", remove_unused_columns=False)
    trainer.train()
    assert int(trainer.ledger.seen.min()) == 2


def test_a_config_that_does_not_tell_the_classes(tmp_path):
    from transformers import PreTrainedConfig

    model = logits_module()
    model.config = PreTrainedConfig()  # num_labels is its default of 2, the head has 4
    trainer = robust(tmp_path, model, method="prl")
    trainer.train()
    assert int(trainer.ledger.label.max()) == 3


@every_row(
    "setting,told",
    [
        ({"per_class": "no"}, "per_class='no' must be true or false"),
        ({"noise_rate": [0.1]}, r"noise_rate=\[0.1\] must be"),
        ({"noise_rate": "a tenth"}, "noise_rate=.a tenth. must be"),
        ({"noise_rate": True}, "noise_rate=True must be"),
        ({"eps": "a tenth"}, "eps='a tenth' is no finite number"),
        ({"steps": 2.0}, "steps=2.0 must be a whole number"),
        ({"norm": ["linf"]}, "norm=.* is unknown"),
    ],
)
def test_settings_of_the_wrong_type(tmp_path, setting, told):
    with pytest.raises(ValueError, match=told):
        config(output_dir=str(tmp_path), method="prl-at", **setting)


def test_image_mean_as_one_number_and_without_use(tmp_path):
    with pytest.raises(ValueError, match="image_mean=0.5 must be a list"):
        RobustConfig(output_dir=str(tmp_path), method="prl-at", image_mean=0.5, image_std=[0.5])


def test_int32_and_bool_labels_train(tmp_path):
    for dtype in (torch.int32, torch.bool):
        rows = [{"pixel_values": r["pixel_values"], "labels": (r["labels"] % 2).to(dtype)} for r in images(16)]
        trainer = robust(tmp_path, vit(), Rows(rows), method="prl-at-memory", memory_after_epochs=1)
        trainer.train()
        assert int(trainer.ledger.seen.min()) == 2


def test_unknown_label_in_a_stream_is_told(tmp_path):
    rows = images(16).with_format(None).remove_columns("labels").add_column("labels", [-100] * 16).with_format("torch")
    with pytest.raises(ValueError, match="label -100"):
        robust(tmp_path, vit(), rows.to_iterable_dataset(), method="prl", max_steps=2).train()


def test_read_only_output_is_the_parents_business_without_a_method(tmp_path):
    (tmp_path / "file").write_text("")
    RobustConfig(output_dir=str(tmp_path / "file" / "run"))


def test_truth_that_is_no_bool_is_told(tmp_path):
    data = images(16).with_format(None).remove_columns("is_corrupted").add_column("is_corrupted", ["no"] * 16)
    with pytest.raises(ValueError, match="is_corrupted.*expected"):
        robust(tmp_path, vit(), data.with_format("torch"), method="prl").train()


def test_uint8_images_are_told(tmp_path):
    rows = [{"pixel_values": torch.zeros(3, 8, 8, dtype=torch.uint8), "labels": 0}] * 16
    with pytest.raises(ValueError, match="'pixel_values' is torch.uint8"):
        robust(tmp_path, vit(), Rows(rows), method="prl-at").train()


def test_after_training_the_loader_is_the_plain_one(tmp_path):
    trainer = robust(tmp_path, vit(), images(16), method="prl")
    trainer.train()
    assert set(next(iter(trainer.get_train_dataloader()))) == {"pixel_values", "labels"}


def test_none_label_names_its_row(tmp_path):
    rows = [{"pixel_values": torch.zeros(3, 8, 8), "labels": None if i == 5 else 0} for i in range(16)]
    with pytest.raises(ValueError, match="'labels' is None in training row 5"):
        robust(tmp_path, vit(), Rows(rows), method="prl").train()


def test_dataset_dict_is_told(tmp_path):
    with pytest.raises(ValueError, match="DatasetDict.*train_dataset="):
        robust(tmp_path, vit(), datasets.DatasetDict(train=images(16)), method="prl").train()


def test_a_bare_module_resumes_into_memory(tmp_path):
    """The number of classes is known from the first forward only; a resumed epoch is decided before it."""
    common = dict(method="prl-at-memory", drop_ramp_steps=4, num_train_epochs=3, save_strategy="epoch")
    straight = robust(tmp_path, **common)
    straight.train()
    resumed = robust(tmp_path, **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert torch.equal(straight.ledger.keep, resumed.ledger.keep) and not bool(resumed.ledger.keep.all())
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in straight.model.state_dict().items())


def test_a_radius_of_another_norm_is_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("robust_trainer"), "propagate", True)
    with caplog.at_level("WARNING"):
        robust(tmp_path / "a", method="pgd-at", steps=1, max_steps=1, **NORMALISATION).train()
        assert "moves an image next to nothing" not in caplog.text
        robust(tmp_path / "b", method="pgd-at", norm="l1", steps=1, max_steps=1, **NORMALISATION).train()
    assert "eps=0.0314 of method 'pgd-at' in norm='l1' moves an image next to nothing: papers take 12" in caplog.text

"""The semi-supervised defence: stage one from options to a backbone, both stages by one command and by the example."""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robust_trainer import RobustConfig
from robust_trainer.cli.main import main
from robust_trainer.cli.options import DataOptions, ModelOptions
from robust_trainer.cli.pretraining import DEFAULT_EPOCHS, ContrastiveOptions, unlabelled_images
from robust_trainer.data.load import load_data
from robust_trainer.models.heads import head_of
from robust_trainer.models.zoo import load_model

ROOT = Path(__file__).parents[2]
SMALL = [
    "--max_train_samples", "60", "--max_test_samples", "30", "--model", "plain-cnn", "--use_cpu", "true",
    "--num_train_epochs", "2", "--disable_tqdm", "true", "--contrastive_batch_size", "32",
    "--contrastive_views", "simclr-digits",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """160 digits to train on and 30 to test, saved."""
    folder = str(tmp_path_factory.mktemp("data") / "digits")
    load_data("digits", max_train_samples=160, max_test_samples=30).save_to_disk(folder)
    return folder


def run(data: str, folder: Path, *flags: str, epochs: str = "2") -> dict:
    assert main(["train", "--dataset", data, *SMALL, "--contrastive_epochs", epochs, "--output_dir", str(folder), *flags]) in (
        None,
        0,
    )
    return json.loads((folder / "results.json").read_text())["runs"][0]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(str(folder))[0].state_dict())


def test_one_command_does_both_stages(data, tmp_path, capsys):
    record = run(
        data, tmp_path, "--method", "prl-simclr-sn", "--spectral_cap", "0.3", "--unlabelled", "rest", "--corrupt", "pairflip"
    )
    first = record["contrastive"]
    assert (first["images"], first["unlabelled"], first["epochs"]) == (60, 100, 2)
    assert [row["epoch"] for row in first["losses"]] == [1, 2] and first["losses"][1]["loss"] < first["losses"][0]["loss"]
    assert "SimCLR: 160 images, 2 epochs, loss" in capsys.readouterr().out
    one, two = weights(tmp_path / "simclr"), weights(tmp_path)
    assert {k for k in one if not torch.equal(one[k], two[k])} == {"head.weight", "head.bias"}
    model, _ = load_model(str(tmp_path))
    assert torch.linalg.matrix_norm(head_of(model).weight.detach(), 2) <= 0.3 * (1 + 1e-5)
    fresh = run(data, tmp_path / "without", "--method", "prl-simclr-sn", "--spectral_cap", "0.3", epochs="0")
    assert "contrastive" not in fresh
    assert not torch.equal(weights(tmp_path / "without")["features.0.weight"], two["features.0.weight"])


def test_a_finished_first_stage_is_taken_up(data, tmp_path, capsys):
    flags = ("--method", "spl-simclr", "--save_strategy", "epoch")
    run(data, tmp_path, *flags)
    before = weights(tmp_path)
    stamp = (tmp_path / "simclr" / "model.safetensors").stat().st_mtime_ns
    resume = ("--resume_from_checkpoint", str(min(tmp_path.glob("checkpoint-*"), key=lambda f: int(f.name[11:]))))
    run(data, tmp_path, *flags, *resume)
    after = weights(tmp_path)
    assert (tmp_path / "simclr" / "model.safetensors").stat().st_mtime_ns == stamp
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert (
        main(["train", "--dataset", data, *SMALL, "--output_dir", str(tmp_path), *flags, *resume, "--contrastive_epochs", "3"]) == 2
    )
    assert "was pre-trained with epochs=2.0, now 3.0: resume with the same settings and data." in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_does_what_the_command_does(tmp_path, monkeypatch, capsys):
    flags = ["--method", "prl-simclr", "--max_train_samples", "120", "--max_test_samples", "60", "--num_train_epochs", "1",
             "--contrastive_epochs", "1", "--use_cpu", "true", "--disable_tqdm", "true"]  # fmt: skip
    config = str(ROOT / "examples" / "simclr_digits.yaml")
    monkeypatch.setattr(sys, "argv", ["semi_supervised_defence", config, *flags, "--output_dir", str(tmp_path / "a")])
    runpy.run_path(str(ROOT / "examples" / "semi_supervised_defence.py"), run_name="__main__")
    main(["train", config, *flags, "--output_dir", str(tmp_path / "b")])
    a, b = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("head")), "the backbones are the same"
    assert "poison_accuracy" in capsys.readouterr().out


def epochs(method: str | None, tmp_path: Path, model: str = "small-cnn", **given) -> float:
    args = RobustConfig(output_dir=str(tmp_path), method=method, use_cpu=True, report_to=[])
    return ContrastiveOptions(**given).epochs(args, ModelOptions(model=model))


def test_when_the_first_stage_runs(tmp_path):
    assert epochs("prl-simclr", tmp_path) == DEFAULT_EPOCHS == epochs("gce-simclr-sn", tmp_path)
    assert epochs("prl-simclr", tmp_path, "some/vit") == 0  # trained before
    assert epochs("prl-simclr", tmp_path, "some/vit", contrastive_epochs=3) == 3
    assert epochs("prl", tmp_path) == epochs(None, tmp_path) == 0
    for method in ("spl", None):  # the switch, whatever the method
        args = RobustConfig(output_dir=str(tmp_path), method=method, freeze_backbone=True, use_cpu=True, report_to=[])
        assert ContrastiveOptions(contrastive_epochs=3).epochs(args, ModelOptions()) == 3
        assert ContrastiveOptions().epochs(args, ModelOptions()) == 0
    for method, given, told in (
        ("prl", {"contrastive_epochs": 3}, "contrastive_epochs=3 has no effect with method 'prl'"),
        (None, {"unlabelled": "rest"}, "unlabelled='rest' has no effect with method 'none'"),
        ("prl-simclr", {"contrastive_epochs": -1}, "contrastive_epochs=-1"),
    ):
        with pytest.raises(ValueError) as error:
            epochs(method, tmp_path, **given)
        assert told in str(error.value) and "\n" not in str(error.value)


def test_the_rest_is_what_is_left_out(data):
    options = ContrastiveOptions(unlabelled="rest")
    rest = unlabelled_images(options, DataOptions(dataset=data, max_train_samples=50, split_seed=4))
    own = load_data(data, max_train_samples=50, seed=4)["train"]
    seen = lambda rows: [np.asarray(image).tobytes() for image in rows["image"][:]]  # noqa: E731
    every = seen(load_data(data)["train"])
    assert rest is not None and sorted(seen(rest) + seen(own)) == sorted(every) and len(rest) == 110
    assert unlabelled_images(ContrastiveOptions(), DataOptions(dataset="digits")) is None
    assert len(unlabelled_images(ContrastiveOptions(unlabelled="digits"), DataOptions(dataset="digits")) or ()) == 1400
    with pytest.raises(ValueError, match="leaves none of 1400 images out") as error:
        unlabelled_images(options, DataOptions(dataset="digits"))
    assert "\n" not in str(error.value)


def test_the_benchmark_keeps_labels_of_a_share(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import backdoor
    import semi_supervised

    images = backdoor.Images(torch.arange(40.0).view(40, 1, 1, 1), torch.arange(40), torch.arange(40) % 4 == 0)
    part = semi_supervised.labelled_part(images, 0.25, 3)
    assert len(part.labels) == 10 and (part.labels.diff() > 0).all()
    assert torch.equal(part.pixels.flatten().long(), part.labels) and torch.equal(part.corrupted, part.labels % 4 == 0)
    assert semi_supervised.labelled_part(images, 1.0, 3) is images
    other = semi_supervised.labelled_part(images, 0.25, 4)
    assert not torch.equal(part.labels, other.labels)

    args = backdoor.parse(["--config", str(ROOT / "benchmarks" / "configs" / "digits_simclr.yaml"), "--contrastive_epochs", "1"])
    assert isinstance(args, argparse.Namespace) and args.semi
    found = semi_supervised.Backbones(args, [str(i) for i in range(10)])
    pixels = torch.rand(140, 1, 8, 8) * 2 - 1
    one = found.weights(pixels, "patch", 0.25, 0)
    assert found.weights(pixels * 0, "patch", 0.25, 0) is one  # trained once for both methods
    two = semi_supervised.Backbones(args, [str(i) for i in range(10)]).weights(pixels, "patch", 0.25, 0)
    assert all(torch.equal(one[k], two[k]) for k in one)
    plain = backdoor.parse(["--data", "digits"])
    settings = backdoor.run_settings(plain, "patch", 0.25, "prl", 0)
    assert set(settings["protocol"]) == set(backdoor.PROTOCOL)  # runs that were done before keep their keys
    assert backdoor.run_settings(args, "patch", 0.25, "prl", 0)["protocol"]["labelled_share"] == 0.2

"""What the command line does where nothing is said, and what it refuses before any work."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers.tables import every_row
from PIL import Image
from safetensors.torch import load_file

from robust_trainer.cli import main as command
from robust_trainer.cli import training_stages
from robust_trainer.cli.main import COMMANDS, main, one_line
from robust_trainer.cli.train import DEFAULT_METHOD, DEFAULT_WITHOUT_CLASSES, default_method
from robust_trainer.config import RobustConfig, check_writable
from robust_trainer.models.zoo import build_model, load_model


def fails(capsys, *words: str) -> str:
    """The one line of a refusal; libraries may have shown progress before."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    err = capsys.readouterr().err
    told = [line for line in err.splitlines() if line.startswith("robust-trainer: error: ")]
    assert len(told) == 1 and "Traceback" not in err
    return told[0]


FEW = ["--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", "8", "--model", "plain-cnn", "--image_size", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    draw = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [Image.fromarray(draw.integers(0, 255, (8, 8), dtype=np.uint8)) for _ in range(24)]
    split = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 12}, features=features)
    folder = tmp_path_factory.mktemp("data") / "small"
    datasets.DatasetDict(train=split, test=split.select(range(8))).save_to_disk(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A training of two epochs with nothing else said, and what it printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main(["train", "--dataset", data, "--output_dir", str(folder), "--num_train_epochs", "2", *FEW]) == 0
    return folder, told.getvalue()


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def test_without_a_method_labels_are_judged_and_it_is_said(trained):
    folder, told = trained
    first = told.splitlines()[0]
    assert first.startswith("method auto (none is named): labels are judged before training") and "--method standard" in first
    (record,) = json.loads((folder / "results.json").read_text())["runs"]
    assert record["method"] == DEFAULT_METHOD == "auto" and (folder / "ledger.parquet").is_file()
    # 24 rows are too few to judge by: that is told by the command, results.json and the report, and nothing is done
    assert record["labels"]["kind"] == "unknown" and record["labels"]["left_out"] == record["labels"]["relabelled"] == 0
    assert f"labels: {record['labels']['found']} {record['labels']['done']}" in told
    assert record["labels"]["done"] in (folder / "report.html").read_text()


@every_row(
    "problem, method",
    [
        (None, "auto"), ("single_label_classification", "auto"), ("regression", "standard"),
        ("multi_label_classification", "standard"),
    ],
)  # fmt: skip
def test_where_a_sample_has_no_single_class_no_label_is_judged(problem, method, tmp_path):
    assert default_method(RobustConfig(output_dir=str(tmp_path), problem_type=problem)) == method
    assert DEFAULT_WITHOUT_CLASSES == "standard"


def test_a_method_that_is_named_is_taken(data, tmp_path, capsys):
    assert (
        main(["train", "--dataset", data, "--output_dir", str(tmp_path / "o"), "--method", "none", "--max_steps", "1", *FEW]) == 0
    )
    assert "none is named" not in capsys.readouterr().out and not (tmp_path / "o/ledger.parquet").exists()
    for name, value in (("noise_rate", "0.2"), ("eps", "8/255")):  # auto is told no rate and attacks nobody
        words = ["train", "--dataset", data, "--output_dir", str(tmp_path / "p"), f"--{name}", value]
        assert f"{name}=" in (told := fails(capsys, *words)) and "has no effect without a method: set method=..." in told


def test_settings_of_the_default_method_need_no_method(data, tmp_path, capsys):
    words = ["train", "--dataset", data, "--max_steps", "1", *FEW]
    own = ["--looks", "1", "--relabel_from", "1", "--find_patterns", "false", "--set", "class_floor=3"]
    assert main([*words, "--output_dir", str(tmp_path / "o"), *own]) == 0
    assert "method auto (none is named)" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "o/results.json").read_text())["runs"]
    settings = {"looks": 1, "relabel_from": 1.0, "find_patterns": False, "class_floor": 3}
    assert settings.items() <= record["settings"].items()
    for name, value in (("looks", "0"), ("relabel_from", "2"), ("find_patterns", "maybe")):
        assert f"{name}" in fails(capsys, *words, "--output_dir", str(tmp_path / "p"), f"--{name}", value)
    assert not (tmp_path / "p").exists()


def test_every_epoch_is_kept_and_a_run_goes_on(run, data, capsys):
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    end = load_file(run / "model.safetensors")
    shutil.rmtree(run / "checkpoint-6")
    for name in ("model.safetensors", "results.json", "ledger.parquet"):
        (run / name).unlink()  # as killed in the second epoch
    words = ["train", "--dataset", data, "--output_dir", str(run), "--num_train_epochs", "2", *FEW]
    told = fails(capsys, *words)
    assert "holds checkpoint-3 of an earlier command" in told and "--resume_from_checkpoint true" in told
    assert main([*words, "--resume_from_checkpoint", "true"]) == 0
    again = load_file(run / "model.safetensors")
    assert all(torch.equal(end[name], again[name]) for name in end) and "epoch 2" in capsys.readouterr().out
    assert "has no checkpoint: leave it out" in fails(capsys, *words[:4], str(run / "no"), *FEW, "--resume_from_checkpoint", "True")


def test_a_resume_that_has_nothing_left_to_train_says_so(run, data, monkeypatch):
    """Seen before: with fewer epochs than the checkpoint has, the old figures came as if the run had trained."""
    words = ["train", "--dataset", data, "--output_dir", str(run), "--resume_from_checkpoint", "true", *FEW]
    said = []
    monkeypatch.setattr(training_stages.logger, "warning", said.append)
    assert main([*words, "--num_train_epochs", "1"]) == 0
    assert (
        sum(
            "checkpoint-6' has 6 steps behind it, as many as this run takes or more: nothing was left to train" in line
            for line in said
        )
        == 1
    )


def test_what_is_there_is_not_written_over(run, data, capsys, tmp_path):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = ["train", "--dataset", data, "--output_dir", str(run), "--max_steps", "1", *FEW]
    assert "holds results.json of an earlier command: give another folder" in fails(capsys, *words)
    assert "holds results.json" in fails(capsys, "demo", "--output_dir", str(run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert main([*words, "--overwrite"]) == 0
    assert json.loads((run / "results.json").read_text())["runs"][0]["curves"][-1]["epoch"] < 1
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"], "not of the earlier run"
    made = ["corrupt", "--dataset", data, "--output_dir", str(tmp_path / "made"), "--corrupt"]
    assert main([*made, "patch"]) == 0
    assert "holds corruption.json" in fails(capsys, *made, "symmetric")
    assert main([*made, "symmetric", "--overwrite"]) == 0
    assert not (tmp_path / "made/test_triggered").exists(), "of the earlier command"
    assert "holds the data set to corrupt" in fails(
        capsys,
        "corrupt",
        "--dataset",
        str(tmp_path / "made"),
        "--output_dir",
        str(tmp_path / "made"),
        "--poison",
        "urp",
        "--overwrite",
    )


def test_images_of_the_user_are_no_earlier_output(data, tmp_path, capsys):
    """A folder of images has train and test, too: even --overwrite removes nothing that no command made."""
    (tmp_path / "pictures/train/cat").mkdir(parents=True)
    (tmp_path / "pictures/train/cat/1.png").write_bytes(b"mine")
    words = ["corrupt", "--dataset", data, "--output_dir", str(tmp_path / "pictures"), "--corrupt", "symmetric"]
    assert "holds train of an earlier command" in fails(capsys, *words)
    assert "holds 'train', which no command made" in fails(capsys, *words, "--overwrite")
    assert (tmp_path / "pictures/train/cat/1.png").read_bytes() == b"mine"


@every_row("name", ["train", "corrupt", "evaluate", "paths"])
def test_no_data_set_is_assumed(name, run, capsys, tmp_path):
    (run / "results.json").unlink(missing_ok=True)
    words = {"train": [], "corrupt": ["--corrupt", "symmetric"]}.get(name, ["--run", str(run)])
    out = ["--output_dir", str(tmp_path / "o")] if name in ("train", "corrupt") else []
    told = fails(capsys, name, *words, *out)
    assert "give --dataset" in told and not (tmp_path / "o").exists()


# ---- folders -----------------------------------------------------------------------------------------------------------------


@every_row(
    "folder, told",
    [
        ("", "is no folder"), ("  ", "is no folder"), ("file", "Not a directory"), ("file/below", "Not a directory"),
        ("x" * 300, "File name too long"), ("nowhere-link", "No such file"), ("a\0b", "null byte"), ("loop/a", "symbolic links"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_is_found_before_the_work(folder, told, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere-link").symlink_to("nowhere/at/all")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError) as error:
        check_writable(str(tmp_path / folder) if folder.strip() else folder)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "nowhere-link"]


def test_every_command_looks_at_its_folder_first(run, data, capsys, tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n5,6\n")
    (tmp_path / "file").write_text("x")
    for module in ("stages", "pretraining"):
        monkeypatch.setattr(f"robust_trainer.cli.{module}.load_data", None)
    monkeypatch.setattr("robust_trainer.cli.anomaly.read_table", None)
    out = ["--output_dir", str(tmp_path / "file/below")]
    for words in (
        ["train", "--dataset", data, "--method", "none", *out], ["corrupt", "--dataset", data, "--corrupt", "symmetric", *out],
        ["demo", *out], ["anomaly", str(tmp_path / "t.csv"), *out], ["audit", str(run), *out],
        ["evaluate", str(run), "--output", str(tmp_path / "file/below/e.json")],
    ):  # fmt: skip
        assert "is not writable" in fails(capsys, *words), words
    assert "is a folder: give a file" in fails(capsys, "evaluate", str(run), "--output", str(tmp_path))


def test_a_disk_without_room_is_found_too(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: Full())
    with pytest.raises(ValueError, match="No space left on device"):
        check_writable(str(tmp_path))


# ---- models with code --------------------------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from robust_trainer.models.small_networks import PlainCNN, PlainCNNConfig
Path({mark!r}).write_text("run")
class MineConfig(PlainCNNConfig):
    model_type = "mine"
class Mine(PlainCNN):
    config_class = MineConfig
"""


@pytest.fixture
def with_code(tmp_path):
    """A model whose folder brings Python code, which leaves a mark where it is run."""
    folder = tmp_path / "with-code"
    model, processor = build_model("plain-cnn", ["a", "b"], channels=1, image_size=8)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForImageClassification": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    return folder


def test_code_of_a_model_is_run_only_where_it_is_trusted(with_code, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    out = ["--output_dir", str(tmp_path / "o")]
    words = ["train", "--dataset", data, "--model", str(with_code), "--max_steps", "1", *FEW[:5], *out]
    told = fails(capsys, *words)
    assert "brings Python code of its own, which is not run: give --trust_remote_code" in told
    assert "--trust_remote_code" in fails(capsys, "evaluate", str(with_code), "--dataset", data)
    assert "--trust_remote_code" in fails(capsys, "paths", str(with_code), "--dataset", data)
    with pytest.raises(ValueError, match="which is not run: choose another model"):
        load_model(str(with_code), trust_remote_code=None)
    assert not (tmp_path / "mark").exists()
    model, _ = load_model(str(with_code), trust_remote_code=True)
    assert type(model).__name__ == "Mine" and (tmp_path / "mark").read_text() == "run"


# ---- how a command ends ------------------------------------------------------------------------------------------------------


@every_row(
    "error, told",
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "run/model.safetensors"),
            "'run/model.safetensors': No space left on device: make",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "'x': Permission denied: mend"),
        (MemoryError("Unable to allocate 7.3 TiB"), "not enough memory (Unable to allocate 7.3 TiB): give fewer"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't\nallocate"), "not enough memory ([enforce fail]"),
        (ImportError("it needs wandb:\npip install wandb"), "it needs wandb: pip install wandb"),
        (OSError("just words"), "just words"),
        (RuntimeError("a fault of ours"), None),
        (KeyError("a fault of ours"), None),
        (ImportError("a fault of ours", name="robust_trainer.models.zoo"), None),
    ],
)
def test_what_no_program_can_help_is_one_line(error, told, capsys, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(command, "run", fail)
    if told is None:
        assert one_line(error) is None
        with pytest.raises(type(error)):
            main(["env"])
    else:
        assert told in fails(capsys, "env")


@every_row("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
def test_a_launcher_s_variables_are_numbers(name, capsys, monkeypatch):
    monkeypatch.setenv(name, "first")
    assert f"{name}='first' in the environment is no whole number" in fails(capsys, "env")


def test_a_reader_that_goes_away_stops_no_work(tmp_path):
    """``robust-trainer ... | head -1``: seen before as "Broken pipe", and the work lost."""
    code = "import sys\nfrom robust_trainer.reporting.console import say\n"
    code += "for i in range(20000): say('a line of the output')\nopen(sys.argv[1], 'w').write('done')\n"
    words = [sys.executable, "-c", code, str(tmp_path / "done")]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "a line of the output\n"
    process.stdout.close()
    told = process.stderr.read()
    assert process.wait(60) == 0 and (tmp_path / "done").read_text() == "done"
    assert told.count("\n") == 1 and "the work goes on without printing" in told


def test_the_words_after_a_command_are_told(capsys):
    assert main([]) == 2 and "usage" in capsys.readouterr().out
    for name in COMMANDS:
        assert "did you mean" in fails(capsys, name[:-1] + "x") or len(name) < 5


# ---- found by the fuzz run -----------------------------------------------------------------------------------------------------


@every_row(
    "name, value",
    [
        ("size", {"height": 1e308, "width": 8}), ("size", {"height": 10**9, "width": 8}), ("size", {"height": True, "width": 8}),
        ("image_mean", [None]), ("image_std", [0]), ("image_mean", ["x"]), ("rescale_factor", float("nan")), ("rescale_factor", []),
    ],
)  # fmt: skip
def test_a_processor_that_no_image_can_have(name, value, run, capsys):
    """Case 292: TypeError in Pillow; a side of 1e9 pixels: killed, out of memory."""
    path = run / "preprocessor_config.json"
    whole = path.read_text()
    path.write_text(json.dumps({**json.loads(whole), name: value}))
    told = fails(capsys, "evaluate", run)
    path.write_text(whole)
    assert "preprocessor_config.json" in told or "could not be loaded by AutoImageProcessor" in told


@every_row(
    "words, told",
    [
        (["--per_device_train_batch_size=0"], "per_device_train_batch_size=0 must be at least 1"),
        (["--gradient_accumulation_steps", "-1"], "gradient_accumulation_steps=-1 must be at least 1"),
        (["--eval_accumulation_steps", "0"], "eval_accumulation_steps=0 must be at least 1"),
        (["--accelerator_config", '{"a": 1}'], "got an unexpected keyword argument 'a'): look at the ones in JSON"),
        (["--dataloader_drop_last", "true"], "would leave test samples out of the figures"),
        (["--dataloader_num_workers", "99999999999999999999"], "must be in [0, 1024]"),
        (["--label_smoothing_factor", "1e9"], "label_smoothing_factor=1000000000.0 must be in [0, 1]"),
        (["--lr_scheduler_kwargs", '{"a": 1}'], "does not fit lr_scheduler_type=linear"),
        (["--bf16_full_eval"], "bf16_full_eval=True: model='small-cnn' takes numbers of 32 bits"),
        (["--lr_scheduler_kwargs", "x"], "lr_scheduler_kwargs='x' does not fit"),
        (["--label_names", "x"], "label_names=['x'] leaves no accuracy to measure"),
        (["--prediction_loss_only", "true"], "prediction_loss_only=True leaves no accuracy to measure"),
        (["--batch_eval_metrics", "true"], "batch_eval_metrics=True leaves no accuracy to measure"),
    ],
)
def test_options_that_cannot_be(words, told, data, tmp_path, capsys):
    assert told in fails(capsys, "train", "--dataset", data, "--output_dir", tmp_path / "o", *FEW[:3], *words)

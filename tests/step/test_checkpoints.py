"""A checkpoint is gone on from where it is whole and of this run's data; what is not is told with the one that is."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers.processes import Child
from helpers.toy import images, resnet, robust
from safetensors import safe_open

from robust_trainer.step.checkpoints import MARK, STATE_FILE

SAVING = dict(method="prl", save_strategy="epoch", num_train_epochs=3)
DATA = images(16)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    trainer = robust(folder, data=DATA, **SAVING)
    trainer.train()
    return folder, trainer


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished[0], tmp_path / "run"))


def resume(run, checkpoint, data=None, **kwargs):
    trainer = robust(run, data=DATA if data is None else data, **{**SAVING, **kwargs})
    trainer.train(resume_from_checkpoint=checkpoint if checkpoint is True else str(checkpoint))
    return trainer


# ---- one run, one data set -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["order", "rows", "one label"])
def test_other_data_is_refused(run, other):
    data = DATA
    if other == "one label":
        labels = data["labels"][:].tolist()
        data = data.remove_columns("labels").add_column("labels", [(labels[0] + 1) % 4, *labels[1:]])
    other_data = {"order": data.shuffle(seed=1), "rows": images(14), "one label": data}[other]
    with pytest.raises(ValueError, match=r"the ledger was made on another data set \(16 rows, .*\), this one has 1"):
        resume(run, run / "checkpoint-4", other_data)


@pytest.mark.parametrize("method", ["prl", None])
def test_weights_of_another_model_are_told_in_one_line(tmp_path, method):
    """Seen before: a RuntimeError of many lines, as where a folder of images has another number of classes by now."""
    kind = dict(method=method, **({} if method else dict(image_mean=None, image_std=None)))
    robust(tmp_path, resnet(), DATA, **{**SAVING, **kind, "num_train_epochs": 1}).train()
    other = resnet()
    other.classifier[-1] = torch.nn.Linear(other.classifier[-1].in_features, 9)
    with pytest.raises(ValueError, match="holds the weights of another model .*resume with the model and the data") as told:
        resume(tmp_path, True, model=other, **kind)
    assert "\n" not in str(told.value)


def test_a_run_keeps_its_id_and_no_other_has_it(run, finished):
    first = finished[1].ledger.run["id"]
    with safe_open(run / "checkpoint-2" / STATE_FILE, framework="pt") as handle:
        assert json.loads(handle.metadata()["run"])["id"] == first
    assert resume(run, run / "checkpoint-4").ledger.run["id"] == first
    again = robust(run.parent / "again", data=DATA, **{**SAVING, "num_train_epochs": 1})
    before = torch.get_rng_state()
    again.train()
    assert len(first) == 12 and again.ledger.run["id"] != first and not torch.equal(before, torch.get_rng_state())


# ---- killed while saving ---------------------------------------------------------------------------------------------------------


def kill_while_saving(out, name):
    """A training whose process is gone when the second checkpoint's file ``name`` is half written."""

    def dies(path, half):
        if Path(path).parent.name == "checkpoint-4" and Path(path).name == name:
            Path(path).write_bytes(half)
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = robust(out, data=DATA, **SAVING)
    save, write = torch.save, type(trainer.state).save_to_json
    torch.save = lambda x, path, *a, **k: (dies(path, b"PK\x03\x04half"), save(x, path, *a, **k))
    type(trainer.state).save_to_json = lambda self, path: (dies(path, b'{"epoch": 2'), write(self, path))
    trainer.train()


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json"])
def test_killed_while_saving(tmp_path, finished, name):
    assert Child(kill_while_saving, tmp_path, name, log=tmp_path / "log.txt").wait() == -signal.SIGKILL
    half, whole = tmp_path / "checkpoint-4", tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match=f"checkpoint '{half}' is incomplete .trainer_state.json.*resume from '{whole}'"):
        resume(tmp_path, half)
    resumed = resume(tmp_path, True)
    assert all(torch.equal(v, resumed.model.state_dict()[k]) for k, v in finished[1].model.state_dict().items())
    assert torch.equal(resumed.ledger.keep, finished[1].ledger.keep)


def test_one_saved_over_an_older_one_is_not_taken_for_it(run):
    """The same step of an earlier run: every old file is there, with the sizes that its mark says."""
    assert Child(kill_while_saving, run, "optimizer.pt", log=run / "log.txt").wait() == -signal.SIGKILL
    with pytest.raises(ValueError, match="checkpoint-4' is incomplete"):
        resume(run, run / "checkpoint-4")


# ---- files that are missing or damaged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors", STATE_FILE]
)
def test_a_missing_file_is_told_not_replaced(run, name, marked):
    checkpoint = run / "checkpoint-6"
    (checkpoint / name).unlink()
    if not marked:  # of an earlier version, or of the plain Trainer
        (checkpoint / MARK).unlink()
    words = "made by method=None" if name == STATE_FILE and not marked else f"incomplete .*{'weights' if name[0] == 'm' else name}"
    with pytest.raises(ValueError, match=words):
        resume(run, checkpoint)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "rng_state.pth", "trainer_state.json"])
def test_a_cut_off_file_is_told(run, name, marked):
    path = run / "checkpoint-6" / name
    path.write_bytes(path.read_bytes()[:-9])
    if not marked:
        (path.parent / MARK).unlink()
    with pytest.raises(ValueError, match=f"incomplete .{name} is damaged.*resume from '{run / 'checkpoint-4'}', the newest whole"):
        resume(run, path.parent)


@pytest.mark.parametrize(
    "name, value",
    [("total_flos", {}), ("global_step", 5), ("epoch", "x"), ("max_steps", True), ("log_history", [1]), ("stateful_callbacks", [])],
)
def test_a_state_that_the_trainer_did_not_write_is_told(run, name, value):
    """Found by the fuzz run, case 112: TypeError in the Trainer; a changed step went on from elsewhere without a word."""
    path = run / "checkpoint-6" / "trainer_state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=f"trainer_state.json is damaged: {name}=.*resume from '{run / 'checkpoint-4'}'"):
        resume(run, path.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_damage_that_keeps_the_length_is_told(run, name):
    """Found by the fuzz run, case 1065: "Expecting value: line 2 column 1", without a file."""
    path = run / "checkpoint-6" / name
    whole = path.read_bytes()
    path.write_bytes(whole[::-1])
    with pytest.raises(ValueError, match=f"{name} is damaged.*resume from '{run / 'checkpoint-4'}'"):
        resume(run, path.parent)
    path.write_bytes(whole)
    (path.parent / "config.json").write_text("[" * 9)
    (path.parent / MARK).unlink()
    with pytest.raises(ValueError, match="config.json is damaged"):
        resume(run, path.parent)


def test_damage_within_a_file_is_told(run):
    """Found by the fuzz run, case 1797: PytorchStreamReader's RuntimeError."""
    path = run / "checkpoint-6" / "optimizer.pt"
    whole = path.read_bytes()
    at = whole.index(b"data.pkl") + 40
    path.write_bytes(whole[:at] + bytes(byte ^ 255 for byte in whole[at : at + 60]) + whole[at + 60 :])
    with pytest.raises(ValueError, match="checkpoint '.*checkpoint-6' is damaged"):
        resume(run, path.parent)


def test_without_a_mark_a_whole_checkpoint_is_taken(run):
    (run / "checkpoint-6" / MARK).write_text("[" * 10_000)
    (run / "checkpoint-4" / MARK).unlink()
    assert resume(run, run / "checkpoint-6").state.global_step == resume(run, run / "checkpoint-4").state.global_step == 6


def test_no_whole_checkpoint_is_left(run):
    for folder in run.glob("checkpoint-*"):
        (folder / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-6' is incomplete .*: no whole one is left, start a new run"):
        resume(run, True)


def test_what_is_no_checkpoint_is_told_as_the_trainer_does(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("missing", "empty", "checkpoint-7"):
        with pytest.raises(ValueError, match="Can't find a valid checkpoint at"):
            resume(tmp_path / "run", tmp_path / folder)
    (tmp_path / "run").mkdir(exist_ok=True)
    with pytest.raises(ValueError, match="No valid checkpoint found in output directory"):
        resume(tmp_path / "run", True)


def test_without_a_method_it_is_the_trainers_resume(tmp_path):
    plain = dict(model=resnet(), method=None, image_mean=None, image_std=None)
    robust(tmp_path, data=DATA, **{**SAVING, **plain}).train()
    assert not (tmp_path / "checkpoint-4" / MARK).exists()
    (tmp_path / "checkpoint-4" / "rng_state.pth").unlink()
    assert resume(tmp_path, tmp_path / "checkpoint-4", **plain).state.global_step == 6


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_full_disk_is_told(tmp_path, name):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4" / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"checkpoint-4' could not be written \(.*resume from .*checkpoint-2"):
        robust(tmp_path, data=DATA, **SAVING).train()

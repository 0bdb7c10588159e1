"""What is kept for later is written whole or not at all, and never through a link."""

import json
import os

import pytest
import torch

from robust_trainer.attacks.records import Records
from robust_trainer.callbacks.best_weights import RECORD, save_best
from robust_trainer.corruptions.poisons.card import write_card
from robust_trainer.reporting.atomic_files import remove_unfinished, replacing, replacing_files
from robust_trainer.reporting.resumable import Work

CARD = {
    "poison": "urp", "summary": "noise", "source": "here", "norm": "l2", "eps": 0.5, "seed": 0, "settings": {}, "model": "none",
    "realised": {f"{n}_{k}": 0.1 for n in ("linf", "l2", "l1") for k in ("max", "mean")}, "model_accuracy": None, "rows": 3,
    "self_check": None,
}  # fmt: skip
WRITERS = {
    "part.safetensors": lambda folder: Work(folder, {"a": 1}).save("part", {"x": torch.ones(2)}),
    "task.json": lambda folder: Work(folder, {"a": 1}),
    "records.jsonl": lambda folder: Records({"eps": 0.1}, folder / "records.jsonl"),
    "README.md": lambda folder: write_card(folder, CARD),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_is_replaced_not_followed(tmp_path, name):
    other = tmp_path / "other"
    other.write_text('{"a": 1}' if name == "task.json" else '{"kind": "robust-trainer evaluation", "eps": 0.1}\n')
    before, folder = other.read_text(), tmp_path / "folder"
    folder.mkdir()
    (folder / name).symlink_to(other)
    WRITERS[name](folder)
    assert not (folder / name).is_symlink() and (folder / name).stat().st_size > 0
    assert other.read_text() == before and not list(folder.glob(".*.unfinished"))


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / "a"
    path.write_text("before")
    with pytest.raises(RuntimeError), replacing(path) as new:
        new.write_text("half")
        raise RuntimeError
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_best_weights_of_a_plain_module_are_whole(tmp_path):
    save_best(tmp_path / "best", torch.nn.Linear(2, 2), None, {"epoch": 1.0})
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == sorted([RECORD, "model.safetensors"])
    assert json.loads((tmp_path / "best" / RECORD).read_text()) == {"epoch": 1.0}


def files(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(new, word, *more):
    (new / "parts").mkdir(parents=True)
    for name in ("config", "weights", "parts/0", *more):
        (new / name).write_text(word)


def test_files_that_belong_together_come_together_or_not_at_all(tmp_path, monkeypatch):
    folder, elsewhere = tmp_path / "model", tmp_path / "elsewhere"
    with replacing_files(folder, "config") as new:
        write(new, "old", "parts/1")
    old = files(folder)
    assert set(old.values()) == {"old"} and set(old) == {"config", "weights", "parts/0", "parts/1"}
    with pytest.raises(RuntimeError), replacing_files(folder, "config") as new:
        write(new, "half")
        raise RuntimeError
    assert files(folder) == old
    elsewhere.write_text("precious")
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(elsewhere)
    (folder / "mine").write_text("mine")
    with replacing_files(folder, "config") as new:
        write(new, "new")
    assert elsewhere.read_text() == "precious" and not (folder / "weights").is_symlink()
    assert files(folder) == {"config": "new", "weights": "new", "parts/0": "new", "mine": "mine"}
    with replacing_files(folder, "config", alone=True) as new:
        write(new, "alone")
    assert "mine" not in files(folder)


def test_stopped_while_they_move_there_is_no_mark(tmp_path, monkeypatch):
    folder, real = tmp_path / "model", os.replace
    with replacing_files(folder, "config") as new:
        write(new, "old")

    def dies(a, b):
        if b.name == "weights":
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt), replacing_files(folder, "config") as new:
        write(new, "new")
    assert "config" not in files(folder), "old weights are not taken for a whole model of the new config"
    monkeypatch.undo()
    (folder / ".config.files.unfinished").mkdir()
    (folder / ".config.files.unfinished" / "stale").touch()
    with replacing_files(folder, "config") as new:
        write(new, "new")
    assert set(files(folder)) == {"config", "weights", "parts/0"}
    (folder / ".x.unfinished").mkdir()
    remove_unfinished(folder)
    assert not (folder / ".x.unfinished").exists()

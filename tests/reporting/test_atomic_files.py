"""What is kept for later is written whole or not at all, and never through a link."""

import json

import pytest
import torch

from robust_trainer.attacks.records import Records
from robust_trainer.callbacks.best_weights import RECORD, save_best
from robust_trainer.corruptions.poisons.card import write_card
from robust_trainer.reporting.atomic_files import replacing
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

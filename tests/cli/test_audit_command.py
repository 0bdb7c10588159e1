"""robust-trainer audit as a user types it: what it writes, what it says, its one-line errors, and being killed half-way."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from helpers.one_line import fails
from helpers.processes import Child
from helpers.toy import Logits, images, robust

from robust_trainer.audit import GROUPS
from robust_trainer.cli.audit import CARD, DETECTED
from robust_trainer.cli.audit_files import CLEANED, FIGURES, REPORT, TABLE
from robust_trainer.cli.main import main
from robust_trainer.data.load import load_data
from robust_trainer.reporting import parquet_files as files
from robust_trainer.reporting.untrusted import Table

NOISE = ["--corrupt", "symmetric", "--corrupt_rate", "0.3"]
SIZE = ["--max_train_samples", "160", "--max_test_samples", "32"]
TINY = [*SIZE, "--num_train_epochs", "2", "--disable_tqdm", "true", "--use_cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    data = load_data("digits", max_train_samples=200, max_test_samples=40)
    data.save_to_disk(str(folder.parent / "data"))  # read faster than the digits are made
    words = ["--method", "standard", "--learning_rate", "3e-3", "--per_device_train_batch_size", "16", *TINY, *NOISE]
    assert main(["train", "--dataset", str(folder.parent / "data"), "--output_dir", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def audited(trained, tmp_path_factory):
    """The run with an audit, made in a folder that is gone now, and what was said of it."""
    folder = Path(shutil.copytree(trained, tmp_path_factory.mktemp("audited") / "run"))
    with contextlib.redirect_stdout(io.StringIO()) as told:
        assert main(["audit", str(folder)]) == 0
    return folder, told.getvalue()


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def audit(capsys, *words):
    capsys.readouterr()
    assert main(["audit", *map(str, words)]) == 0
    return capsys.readouterr().out


def table(folder):
    return datasets.Dataset.from_parquet(str(folder / TABLE))


def test_an_audit_writes_its_files(audited, trained):
    run, told = audited
    folder = run / "audit"
    assert {p.name for p in folder.iterdir()} == {TABLE, REPORT, CARD, FIGURES, CLEANED}
    assert f"written to {folder}: {TABLE}, {REPORT}, {CARD}, {FIGURES}, {CLEANED}/" in told and "share" in told
    rows, figures = table(folder), json.loads((folder / FIGURES).read_text())
    flagged = np.asarray(rows["flagged"][:])
    assert len(rows) == 160 and figures["samples"] == 160 and figures["flagged"] == flagged.sum() > 0
    assert f"({100 * flagged.mean():.1f} %)" in told and set(rows["group"][:]) <= set(GROUPS)
    assert sum(figures["groups"].values()) == 160 and np.allclose(np.sum(figures["transition"], 1), 1, atol=1e-4)
    left = load_data(str(folder / CLEANED))
    assert len(left["train"]) == 160 - flagged.sum() and len(left["test"]) == 32
    true = load_data(str(trained.parent / "data"), max_train_samples=160)["train"]
    corrupted = np.asarray(true["label"][:]) != np.asarray(rows["label"][:])
    assert (corrupted == np.asarray(rows["is_corrupted"][:])).all() and corrupted.sum() == 48
    card = (folder / CLEANED / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["configs"] and "robust-trainer audit" in card
    assert REPORT in told and (folder / REPORT).stat().st_size > 10_000 and "robust-trainer audit" in (folder / CARD).read_text()


def test_an_audit_is_written_anew(audited, capsys, tmp_path):
    run = Path(shutil.copytree(audited[0], tmp_path / "run"))
    folder, before = run / "audit", np.asarray(table(run / "audit")["flagged"][:])
    (folder / ".report.html.abc.unfinished").write_text("half")
    (folder / CLEANED / ".train.parquet.abc.unfinished").write_text("half")
    (run / ".ledger.parquet.abc.unfinished").write_text("of the run, not of the audit")
    audit(capsys, "--run", run, "--clean", "relabel", "--relabel_confidence", "0.05", "--look", "false")
    assert not [p for p in folder.rglob("*.unfinished")] and (run / ".ledger.parquet.abc.unfinished").exists()
    left = load_data(str(folder / CLEANED))["train"]
    assert len(left) > 160 - before.sum() and {"image", "label", "is_corrupted"} <= set(left.column_names)
    again = table(folder)
    assert (
        set(again["group"][:]) == {"fine", "unclear"} and "No inputs" in json.loads((folder / FIGURES).read_text())["groups_told"]
    )
    assert again["flagged"][:] == before.tolist()


def test_thresholds_and_other_folders(run, capsys, tmp_path):
    strict, loose = tmp_path / "deep/strict", tmp_path / "loose"
    told = audit(capsys, run, "--threshold", "0.7", "--clean", "none", "--output_dir", strict)
    assert not (run / "audit").exists() and not (strict / CLEANED).exists() and CLEANED not in told
    audit(capsys, run, "--threshold", "0.3", "--clean", "none", "--output_dir", loose)
    few, many = (np.asarray(table(f)["flagged"][:]) for f in (strict, loose))
    assert few.sum() < many.sum() and many[few].all()
    assert json.loads((strict / FIGURES).read_text())["threshold"] == 0.7
    suspicion, groups = np.asarray(table(strict)["suspicion"][:]), np.asarray(table(strict)["group"][:])
    assert ((suspicion >= 0.7) | (groups == "triggered")).tolist() == few.tolist()


def test_nothing_is_cleaned_by_a_run_that_saw_a_part_unless_forced(trained, capsys, tmp_path):
    folder, data = tmp_path / "short", str(trained.parent / "data")
    words = ["--method", "prl", "--max_steps", "4", "--per_device_train_batch_size", "16", *TINY, *NOISE]
    assert main(["train", "--dataset", data, "--output_dir", str(folder), *words]) == 0
    told = audit(capsys, folder)
    assert not (folder / "audit" / CLEANED).exists() and (folder / "audit" / REPORT).exists() and f"{CLEANED}/" not in told
    assert "no cleaned data set: 96 of 160 samples were never visited" in told and "--force true" in told
    figures = json.loads((folder / "audit" / FIGURES).read_text())
    assert figures["groups"]["unseen"] == 96 and len(figures["cautions_that_forbid_cleaning"]) >= 1
    assert "never visited" in (folder / "audit" / CARD).read_text() and "never visited" in (folder / "audit" / REPORT).read_text()
    told = audit(capsys, folder, "--force", "true")
    left = load_data(str(folder / "audit" / CLEANED))["train"]
    assert f"{CLEANED}/" in told and len(left) >= 96 and "never visited" in (folder / "audit" / CLEANED / "README.md").read_text()
    audit(capsys, folder)  # the forced set of an earlier audit goes
    assert not (folder / "audit" / CLEANED).exists()


def test_detectors_are_run_to_compare(run, capsys):
    told = audit(capsys, run, "--detectors", "spectral", "spectral-code", "fct", "--clean", "none")
    found = datasets.Dataset.from_parquet(str(run / "audit" / DETECTED))
    assert len(found) == 160 and {"spectral_score", "spectral_flagged", "fct_score"} <= set(found.column_names) and DETECTED in told
    flagged = np.asarray(table(run / "audit")["flagged"][:])
    assert 0 < sum(found["spectral_flagged"][:]) < 80 and "precision %" in told and "spectral-code" in told
    assert (np.asarray(found["flagged"][:]) == flagged).all()


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_mistakes_are_one_line_and_write_nothing(run, capsys, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    plain = tmp_path / "plain"
    datasets.Dataset.from_dict({"text": ["a"] * 20, "label": [0, 1] * 10}).save_to_disk(str(plain))
    before = files_of(run)
    wrong = [
        (["audit", str(empty)], "it is empty"), (["audit", str(run.parent)], f"it holds 1: give it, {run}."),
        (["audit", str(run / "results.json")], "holds what an earlier command found, expected options"),
        (["audit", str(tmp_path / "no")], "is no folder"),
        (["audit", str(run / "ledger.parquet")], "is no folder"),
        (["audit", str(run), "--max_train_samples", "100"], "has 100 rows"),
        (["audit", str(run), "--corrupt_seed", "9"], "another data set"), (["audit", str(run), "--split_seed", "9"], "fingerprint"),
        (["audit", str(run), "--dataset", str(plain)], "another data set"),
        (["audit", str(run), "--dataset", "./nowhere"], "does not exist"),
        (["audit", str(run), "--threshold", "2"], "threshold=2.0"), (["audit", str(run), "--threshold", "nan"], "threshold=nan"),
        (["audit", str(run), "--clean", "burn"], "clean='burn'"),
        (["audit", str(run), "--detectors", "spectral", "magic"], "'magic' is unknown"),
        (["audit", str(run), "--detectors", "scan"], "'scan' is unknown here"),
        (["audit", str(run), "--clean", "relabel", "--relabel_confidence", "7"], "relabel_confidence=7.0"),
        (["audit", str(run), "--relabel_confidence", "0"], "relabel_confidence=0.0"),
        (["audit", str(run), "--per_class", "-1"], "per_class"),
        (["audit", str(run), "--detectors", "spectral", "--detector_rate", "3"], "rate"),
        (["audit", str(run), "--nonsense", "1"], "nonsense"),
        (["audit", str(run), "--output_dir", str(run / "ledger.parquet")], "ledger.parquet"),
    ]  # fmt: skip
    for words, told in wrong:
        assert told in fails(capsys, *words), words
        assert files_of(run) == before, words
    (run / "results.json").unlink()
    assert "detectors need the data" in fails(capsys, "audit", str(run), "--detectors", "spectral")


def test_a_damaged_ledger_is_one_line(run, capsys):
    (run / "ledger.parquet").write_bytes((run / "ledger.parquet").read_bytes()[:-100])
    assert "is damaged" in fails(capsys, "audit", str(run))
    (run / "ledger.parquet").unlink()
    audit(capsys, run, "--clean", "none")  # the state beside the model knows as much
    assert len(table(run / "audit")) == 160


def test_a_model_is_trained_on_what_is_left(audited, tmp_path):
    words = ["--dataset", str(audited[0] / "audit" / CLEANED), "--method", "standard", "--num_train_epochs", "1", *TINY[6:]]
    assert main(["train", "--output_dir", str(tmp_path / "again"), *words]) == 0


def test_a_set_of_which_nothing_is_left(run, capsys):
    """The figures are written all the same; there is no cleaned set."""
    rows = datasets.Dataset.from_parquet(str(run / "ledger.parquet"))
    facts = Table(run / "ledger.parquet").facts()
    low = rows.remove_columns("aum").add_column("aum", np.full(160, -50, np.float32).tolist())
    files.write_parquet(low.select_columns(rows.column_names), run / "ledger.parquet", facts)
    assert "flags all 160 samples" in fails(capsys, "audit", str(run))
    assert table(run / "audit")["flagged"][:] == [True] * 160 and not (run / "audit" / CLEANED).exists()


def test_a_script_of_the_user_is_audited_without_data(capsys, tmp_path):
    trainer = robust(tmp_path, Logits(), images(48), method="standard")
    trainer.train()
    trainer.save_model(str(tmp_path / "mine"))
    (tmp_path / "mine/results.json").write_text('{"accuracy": 0.9}')  # the user's own
    told = audit(capsys, tmp_path / "mine")
    assert "no data set known" in told and "give --dataset" in told
    folder = tmp_path / "mine/audit"
    assert {p.name for p in folder.iterdir()} == {TABLE, REPORT, CARD, FIGURES}
    assert len(table(folder)) == 48 and "is_corrupted" not in table(folder).column_names
    assert "another data set" in fails(capsys, "audit", str(tmp_path / "mine"), "--dataset", "digits")


# ---- killed ----------------------------------------------------------------------------------------------------------------


def killed(words, doom, log) -> int:
    """Runs the command in a process in which ``doom`` has been called, and returns how it ended."""

    def work():
        doom()
        raise SystemExit(main(words))

    return Child(work, log=log).wait()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def before_moving(name):
    """Killed when the file is written whole, but not in its place yet."""
    real = os.replace

    def replace(old, new):
        if Path(new).name == name:
            die()
        return real(old, new)

    os.replace = replace


def half_written(name):
    """Killed in the middle of writing a text."""
    real = Path.write_text

    def write_text(self, text, *args, **kwargs):
        if name in self.name:
            real(self, text[: len(text) // 2], *args, **kwargs)
            die()
        return real(self, text, *args, **kwargs)

    Path.write_text = write_text


WRITTEN = [TABLE, REPORT, CARD, FIGURES, "train.parquet", "test.parquet", "removed.csv", "README.md"]


@pytest.mark.parametrize("how,name", [
    (before_moving, TABLE), (half_written, FIGURES), (before_moving, "train.parquet"),
])  # fmt: skip
def test_a_killed_audit_leaves_whole_files(how, name, audited, capsys, tmp_path):
    run = Path(shutil.copytree(audited[0], tmp_path / "run"))
    folder = run / "audit"
    before = files_of(folder)
    words = ["audit", str(run), "--threshold", "0.4", "--look", "false", "--per_class", "1"]
    assert killed(words, lambda: how(name), tmp_path / "log.txt") == -signal.SIGKILL
    after = files_of(folder)
    unfinished = [path for path in after if path.endswith(".unfinished")]
    assert len(unfinished) == 1 and name in unfinished[0]
    changed = {Path(path).name for path in before if after[path] != before[path]}
    assert set(before) <= set(after) and changed <= set(WRITTEN[: WRITTEN.index(name)])
    if name == TABLE:
        assert not changed
    assert (TABLE in changed) == (name != TABLE) and (REPORT in changed) == (name not in (TABLE, REPORT))
    assert main(words) == 0
    whole = files_of(folder)
    assert not [path for path in whole if path.endswith(".unfinished")] and set(whole) == set(before)
    assert name == TABLE or whole[TABLE] == after[TABLE]
    capsys.readouterr()

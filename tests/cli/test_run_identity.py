"""A folder holds one run: what an earlier one left goes, what is of another one is refused, two at once are told."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pytest

from robust_trainer.cli import training_stages
from robust_trainer.cli.main import main
from robust_trainer.cli.outputs import remove_earlier
from robust_trainer.data.load import load_data
from robust_trainer.evaluation.path_table import PathLengths
from robust_trainer.reporting.locks import hold, release
from robust_trainer.reporting.untrusted import Table

TINY = ["--num_train_epochs", "1", "--disable_tqdm", "true", "--use_cpu", "--per_device_train_batch_size", "16"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    load_data("digits", max_train_samples=32, max_test_samples=16).save_to_disk(str(folder))
    return folder


def train(data, folder, *words, method="prl"):
    noise = ["--noise_rate", "0.2"] if method == "prl" else []
    return ["train", "--dataset", str(data), "--output_dir", str(folder), "--method", method, *noise, *TINY, *words]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(train(data, folder)) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refused(capsys, *words):
    """The last line on the standard error, after the progress bars of what was loaded."""
    capsys.readouterr()
    assert main(list(words)) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("robust-trainer: error: ") and "Traceback" not in "".join(told)
    return told[-1]


def facts(run):
    return json.loads((run / "results.json").read_text())["run"]


def test_one_id_is_everywhere(run, capsys):
    told = facts(run)
    assert told["id"] == Table(run / "ledger.parquet").facts()["id"] and told["method"] == "prl" and told["rows"] == 32
    assert told["fingerprint"] == Table(run / "ledger.parquet").facts()["fingerprint"] != told["test_fingerprint"]
    assert main(["paths", str(run), "--max_steps", "2"]) == 0 and main(["evaluate", str(run)]) == 0
    assert Table(run / "paths.parquet").facts(b"PANDAS_ATTRS")["run"] == told["id"]
    assert json.loads((run / "evaluation.json").read_text())["id"] == told["id"]
    assert main(["audit", str(run)]) == 0
    assert json.loads((run / "audit/audit.json").read_text())["run"]["id"] == told["id"]
    assert not [path for path in run.rglob(".*")], "neither locks nor unfinished files are left"


def test_an_earlier_runs_files_go_when_one_starts(data, run, capsys):
    """prl, then without a method into the same folder: its ledger and its longer run's checkpoints are not the new one's."""
    (run / "checkpoint-900").mkdir()
    (run / "notes.txt").write_text("mine")
    (run / "paths.parquet").touch()
    (run / "evaluation.json").touch()
    assert main(train(data, run, "--overwrite", "true", method="none")) == 0
    assert not any((run / name).exists() for name in ("ledger.parquet", "robust_state.safetensors", "checkpoint-900"))
    assert not (run / "paths.parquet").exists() and not (run / "evaluation.json").exists() and (run / "notes.txt").exists()
    assert "has no ledger" in refused(capsys, "audit", str(run))


def test_going_on_keeps_whole_checkpoints_alone(data, run):
    whole = run / "checkpoint-2"
    for number, name in ((1, "trainer_state.json"), (3, "optimizer.pt"), (4, "model.safetensors")):
        (shutil.copytree(whole, run / f"checkpoint-{number}") / name).unlink()
    remove_earlier(run, going_on=True)
    assert [path.name for path in sorted(run.glob("checkpoint-*"))] == ["checkpoint-2"] and not (run / "results.json").exists()
    remove_earlier(run, going_on=False)
    assert not whole.exists()


def test_what_is_of_another_run_is_refused(run, tmp_path, capsys):
    mine, other = facts(run)["id"], "0123456789ab"
    n = np.arange(32)
    PathLengths(n, n / 2, n, -np.ones(32, int), n, 0.01, "linf", 9, (), other).to_parquet(tmp_path / "p.parquet")
    told = refused(capsys, "audit", str(run), "--paths", str(tmp_path / "p.parquet"))
    assert f"is of run {other}, the ledger of run={str(run)!r} of run {mine}" in told
    content = json.loads((run / "results.json").read_text())
    content["run"]["id"] = other
    (run / "results.json").write_text(json.dumps(content))
    told = refused(capsys, "audit", str(run))
    assert f"holds two trainings: results.json is of run {other}, the ledger of run {mine}" in told
    for command in ("evaluate", "paths"):
        assert f"the model (robust_state.safetensors) of run {mine}" in refused(capsys, command, str(run))
    content["run"] = 5
    (run / "results.json").write_text(json.dumps(content))
    assert "results.json is of run unknown" in refused(capsys, "audit", str(run))


def test_data_that_changed_since_are_refused(data, run, tmp_path, capsys):
    place = Path(json.loads((run / "results.json").read_text())["options"]["dataset"])
    before = shutil.copytree(place, tmp_path / "before")
    now = datasets.load_from_disk(str(before))
    try:
        shutil.rmtree(place)
        now["train"], now["test"] = now["train"].shuffle(seed=1), now["test"].shuffle(seed=1)
        now.save_to_disk(str(place))
        for command in ("evaluate", "paths"):
            assert "is not what run=" in refused(capsys, command, str(run))
        assert "another data set" in refused(capsys, "audit", str(run))
        assert main(["evaluate", str(run), "--dataset", str(place)]) == 0  # named: taken as it is
    finally:
        shutil.rmtree(place)
        shutil.copytree(before, place)


def test_two_runs_into_one_folder(data, tmp_path, capsys):
    folder = tmp_path / "run"
    child = os.fork()
    if not child:  # it runs nothing of torch
        hold(folder)
        (tmp_path / "held").touch()
        time.sleep(120)
        os._exit(0)
    end = time.monotonic() + 60
    try:
        while not (tmp_path / "held").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        noise = ["--corrupt", "symmetric", "--dataset", str(data)]
        for words in (train(data, folder), ["demo"], ["corrupt", *noise], ["anomaly", str(tmp_path / "no.csv")]):
            told = refused(capsys, *words, *(["--output_dir", str(folder)] if words[0] != "train" else []))
            assert f"{str(folder)!r} is written to by process {child} on" in told
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    hold(folder)  # the dead process's lock is nobody's
    release()


def test_a_mistake_leaves_what_was_there(data, run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    refused(capsys, *train(data, run, "--overwrite", "true", "--model", str(run / "nowhere")))
    refused(capsys, *train(data, run, "--overwrite", "true", "--dataset_config", "x", "--label_column", "nowhere"))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    release()


def test_the_model_is_written_beside_and_not_through_links(data, tmp_path, monkeypatch):
    precious = tmp_path / "precious.safetensors"
    precious.write_bytes(b"weights of somebody else")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "training_args.bin"):
        (folder / name).symlink_to(precious)

    def dies(*a, **k):
        raise RuntimeError("stopped")

    monkeypatch.setattr(training_stages, "identity", dies)
    with pytest.raises(RuntimeError, match="stopped"):
        main(train(data, folder, "--overwrite", "true"))
    assert precious.read_bytes() == b"weights of somebody else"
    assert (folder / "config.json").is_file() and not (folder / "model.safetensors").is_symlink()
    assert not (folder / "results.json").exists(), "the last file of a run is not there: it is not finished"

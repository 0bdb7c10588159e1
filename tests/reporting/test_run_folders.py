"""What is said of a folder that is given as a run, or as a data set, and is something else."""

from __future__ import annotations

import pytest

from robust_trainer.audit import load_ledger
from robust_trainer.audit.load import ledger_file
from robust_trainer.data.load import load_data
from robust_trainer.models.zoo import load_model

EVALUATE = (load_model, "holds no saved model")
AUDIT = (load_ledger, "has no ledger")


def told(call, folder):
    with pytest.raises(ValueError) as refused:
        call(str(folder))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def make(*files):
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")


@pytest.mark.parametrize("call, lacks", [EVALUATE, AUDIT])
def test_a_folder_of_runs_names_them(call, lacks, tmp_path):
    """As the demo leaves it: a folder of each run, and the results of all."""
    runs = [tmp_path / f"run{i:02}" for i in range(14)]
    make(tmp_path / "results.json", *(run / "ledger.parquet" for run in runs[:9]), *(run / "config.json" for run in runs[9:]))
    (tmp_path / "other").mkdir()
    message = told(call, tmp_path)
    assert lacks in message and "it holds 14: give one, " in message and message.endswith(f"{runs[11]}, and 2 more.")
    assert all(str(run) in message for run in runs[:12]) and "other" not in message


@pytest.mark.parametrize("call, lacks", [EVALUATE, AUDIT])
def test_an_empty_folder_and_one_of_an_audit(call, lacks, tmp_path):
    assert f"{lacks}" in (message := told(call, tmp_path)) and "it is empty" in message
    assert "is no folder" in told(call, tmp_path / "nowhere")
    make(tmp_path / "notes.txt")
    assert "it is empty" not in (message := told(call, tmp_path)) and lacks in message
    make(tmp_path / "audit.json")
    assert "the folder of an audit: give the output_dir of the training" in told(call, tmp_path)


def test_an_unfinished_run_names_its_newest_checkpoint(tmp_path):
    """Its ledger is taken from there; a model is not, which would pass for the trained one."""
    for step in (9, 10):
        make(tmp_path / f"checkpoint-{step}" / "config.json")
    message = told(load_model, tmp_path)
    assert "has not ended" in message and "--resume_from_checkpoint true" in message
    assert message.endswith(f"give {tmp_path / 'checkpoint-10'}.")
    make(tmp_path / "checkpoint-9" / "robust_state.safetensors", tmp_path / "checkpoint-9" / "trainer_state.json")
    assert ledger_file(tmp_path).parent.name == "checkpoint-9"


def test_a_run_is_no_data_set(tmp_path):
    make(tmp_path / "run" / "ledger.parquet", tmp_path / "run" / "results.json")
    assert (
        f"is the folder of a training, no data set: give the data, or look at the run by robust-trainer audit {tmp_path}"
        in told(load_data, tmp_path / "run")
    )
    assert "holds 1 folder(s) of trainings, no data set" in told(load_data, tmp_path)
    make(tmp_path / "found" / "audit.json", tmp_path / "found" / "audit.parquet")
    assert "audit with --clean drop" in told(load_data, tmp_path / "found")
    (tmp_path / "found" / "cleaned").mkdir()
    assert told(load_data, tmp_path / "found").endswith(f"no data set: give {tmp_path / 'found' / 'cleaned'}.")

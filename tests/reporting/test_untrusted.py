"""Ledgers, results and states that somebody tampered with: one line with file, row and value, before anything is allocated."""

import json
import shutil
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.pages import content, run
from helpers.toy import vit
from safetensors import SafetensorError
from safetensors.torch import save_file

from robust_trainer.anomaly import RCA, load_detector, save_detector
from robust_trainer.attacks.records import Records
from robust_trainer.audit import load_ledger, make_audit
from robust_trainer.callbacks.best_weights import RECORD
from robust_trainer.cli.main import one_line
from robust_trainer.cli.parser import stored
from robust_trainer.evaluation.path_table import PathLengths, load_paths
from robust_trainer.ledger.ledger import SampleLedger
from robust_trainer.models.zoo import load_model
from robust_trainer.reporting.parquet_files import RUN_KEY
from robust_trainer.reporting.resumable import Work
from robust_trainer.reporting.untrusted import load_tensors, read_json
from robust_trainer.step.checkpoints import STATE_FILE

N = 20
DEEP = "[" * 100_000


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A run's folder: a ledger of 20 samples and 3 classes."""
    folder = tmp_path_factory.mktemp("honest") / "run"
    facts = {"method": "prl", "settings": {}, "names": ["a", "b", "c"], "rows": N, "fingerprint": "0" * 16, "id": "1" * 12}
    ledger = SampleLedger(N, run=facts)
    index = torch.arange(N)
    ledger.record(index, torch.rand(N), torch.ones(N), index % 3, index % 3, 0)
    ledger.to_parquet(folder / "ledger.parquet")
    save_file({k: v.contiguous() for k, v in ledger.state().items()}, folder / STATE_FILE, metadata={"run": json.dumps(facts)})
    (folder / "results.json").write_text(json.dumps(content(run())))
    return folder


@pytest.fixture
def folder(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "run")


def refused(function, *words, seconds=5.0):
    """The one line of a refusal, which comes at once."""
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        function()
    told = str(caught.value)
    assert time.process_time() - start < seconds and "\n" not in told and len(told) < 600, told
    assert all(word in told for word in words), told
    return told


def with_column(path, name, values, facts=None):
    table = pq.read_table(path)
    if values is None:
        table = table.drop_columns([name])
    elif name is not None:
        place = table.column_names.index(name) if name in table.column_names else len(table.column_names)
        table = (table.remove_column(place) if name in table.column_names else table).add_column(place, name, values)
    metadata = dict(table.schema.metadata)
    if facts is not None:
        metadata[RUN_KEY] = facts.encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)


def one(value, dtype=np.int32, rest=0):
    return pa.array(np.array([rest] * 7 + [value] + [rest] * (N - 8), dtype=dtype))


COLUMNS = {
    "a label of seven terabytes": ("label", one(10**6), "row 7 has label=1000000, expected -1 to 2"),
    "a label without end": ("label", one(2 * 10**9), "row 7 has label=2000000000"),
    "a rival without end": ("rival", one(2**31 - 1), "row 7 has rival=2147483647"),
    "a label below none": ("label", one(-2), "row 7 has label=-2"),
    "counts below 0": ("seen", one(-5), "row 7 has seen=-5"),
    "kept more than seen": ("kept", one(9), "row 7 has kept=9, seen=1"),
    "confidence out of range": ("rival_confidence", one(7.0, np.float32), "rival_confidence=7.0"),
    "confidence NaN": ("rival_confidence", one(np.nan, np.float32), "rival_confidence=nan"),
    "texts for numbers": ("mean_score", pa.array(["x" * 10_000] * N), "mean_score holds string"),
    "floats for labels": ("label", one(1.0, np.float32), "label holds float"),
    "numbers for flags": ("distrusted", one(1), "distrusted holds int32"),
    "empty cells": ("aum", pa.array([None] * N, pa.float32()), "aum has 20 empty values"),
    "a column less": ("forgetting", None, "no column forgetting"),
    "another order": ("index", pa.array(np.arange(N)[::-1].copy()), "row 0 has index=19"),
    "probabilities of other lengths": ("mean_probs", pa.array([[0.5]] * 19 + [[0.1] * 9], pa.list_(pa.float32())), "1 to 9"),
    "lists in lists": ("last_score", pa.array([[[1.0]]] * N), "last_score holds list"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_tampered_ledger(folder, case):
    name, values, told = COLUMNS[case]
    with_column(folder / "ledger.parquet", name, values)
    refused(lambda: load_ledger(folder), "ledger.parquet' ", told)


@pytest.mark.parametrize("facts,told", [
    (DEEP, "is damaged"), ('{"names": 5}', "names is a int"), ('{"names": [[]]}', "names"), ('{"rows": 21}', "its run had 21"),
    ('{"settings": []}', "settings is a list"), ('{"fingerprint": 5}', "fingerprint"), ("[1]", "a list where a mapping"),
    ('{"rows": true}', "rows is a bool"),
])  # fmt: skip
def test_tampered_facts(folder, facts, told):
    with_column(folder / "ledger.parquet", None, True, facts)
    refused(lambda: load_ledger(folder), "ledger.parquet' is damaged", told)


def test_more_rows_than_bytes(folder):
    """Of a single value a million rows take a few bytes; every honest ledger has a position in each row."""
    n = 3_000_000
    table = pa.table({"index": pa.array(np.zeros(n, np.int64))})
    pq.write_table(table, folder / "ledger.parquet", compression="zstd")
    refused(lambda: load_ledger(folder), f"{n} rows in ")


def test_large_honest_ledgers_are_read(tmp_path):
    for n in (1, 300_000):
        SampleLedger(n, run={"names": ["a"], "rows": n}).to_parquet(tmp_path / "ledger.parquet")  # nothing seen: the smallest file
        assert len(load_ledger(tmp_path)[0]["index"]) == n


def test_many_classes_have_no_square_of_cells(folder):
    """Numbers of classes as WordNet has them, without names: no array of their square, no end of names."""
    with_column(folder / "ledger.parquet", "label", one(900_000), "{}")
    audit = make_audit(*load_ledger(folder))
    assert audit.transition is None and audit.column("label").max() == 900_000 and len(audit.names) == 900_001
    with_column(folder / "ledger.parquet", "label", one(2**20), "{}")
    refused(lambda: load_ledger(folder), "label=1048576")


STATES = [
    ({"ledger.seen": torch.zeros(3, dtype=torch.int16)}, {}, "has no"),
    ({"ledger.label": torch.full((N,), 30_000, dtype=torch.int16)}, None, "label"),
    ({"ledger.aum": torch.zeros(2, N)}, None, "aum is (2, 20)"),
    ({"ledger.kept": torch.zeros(N)}, None, "kept is (20,) of torch.float"),
    ({}, {"run": DEEP}, "damaged"),
    ({}, {"run": '{"names": {}}'}, "names is a dict"),
]


@pytest.mark.parametrize("tensors,metadata,told", STATES)
def test_a_tampered_state(folder, tensors, metadata, told):
    (folder / "ledger.parquet").unlink()
    ledger = SampleLedger(N, run={"names": ["a", "b", "c"]})
    state = {k: v.contiguous() for k, v in ledger.state().items()} if told != "has no" else {}
    save_file({**state, **tensors}, folder / STATE_FILE, metadata=metadata or {"run": json.dumps(ledger.run)})
    refused(lambda: load_ledger(folder), told)


def changed(path, value):
    facts = json.loads(json.dumps(content(run())))
    place = facts
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(facts)


RESULTS = [
    (DEEP, "is damaged"), ('{"runs": [', "is damaged"), ("[]", "a list where a mapping"), ("\xff\xfe", "damaged"),
    (changed(["runs"], 5), "runs is 5"), (changed(["runs", 0], "x"), "runs[0] is 'x'"),
    (changed(["runs", 0, "final"], []), "final is []"), (changed(["runs", 0, "curves"], {}), "curves is {}"),
    (changed(["runs", 0, "curves", 0], {"epoch": "x" * 999}), "epoch is 'xxx"),
    (changed(["runs", 0, "seconds"], KeyError), "seconds is None"), (changed(["runs", 0, "method"], 7), "method is 7"),
    (changed(["environment"], KeyError), "environment is None"), (changed(["options"], []), "options is []"),
    (changed(["options", "dataset"], {"a": 1}), "options.dataset is a dict"), (changed(["corruption"], 3), "corruption is 3"),
    (changed(["corruption", "overall"], KeyError), "overall is None"), (changed(["train_samples"], "4"), "train_samples is '4'"),
    (changed(["runs", 0, "final", "clean_accuracy"], True), "clean_accuracy is True"),
]  # fmt: skip


@pytest.mark.parametrize("text,told", RESULTS)
def test_a_tampered_results_file(folder, text, told):
    (folder / "results.json").write_text(text)
    refused(lambda: stored(str(folder)), "results.json' is damaged", told)


def test_a_scripts_own_results_are_not_ours(folder):
    assert stored(str(folder))[1]["dataset"] == "digits"
    (folder / "results.json").write_text('{"accuracy": 0.9}')
    assert stored(str(folder)) == (None, {}) == stored(str(folder / "nowhere"))


# ---- other files ---------------------------------------------------------------------------------------------------------------


def test_tampered_path_lengths(tmp_path):
    n = np.arange(3)
    whole = PathLengths(n, n / 2, n, -np.ones(3, int), n, 0.01, "linf", 9, ("a", "b", "c"), "run-1")
    whole.to_parquet(tmp_path / "p.parquet")
    again = load_paths(tmp_path / "p.parquet")
    assert again.run == "run-1" and again.class_names == ("a", "b", "c") and (again.margin == whole.margin).all()
    for name, values in {"label": pa.array(["x"] * 3), "path_length": pa.array([1, None, 2]), "target": None}.items():
        whole.to_parquet(tmp_path / "p.parquet")
        with_column(tmp_path / "p.parquet", name, values)
        refused(lambda: load_paths(tmp_path / "p.parquet"), "no file of path lengths", name)
    datasets.Dataset.from_dict({"a": [1]}).to_parquet(tmp_path / "p.parquet")
    refused(lambda: load_paths(tmp_path / "p.parquet"), "no file of path lengths")


@pytest.mark.parametrize(
    "name,text", [("model.safetensors", "x"), ("model.safetensors", ""), ("config.json", DEEP), ("config.json", "[]")]
)
def test_a_damaged_model(tmp_path, name, text):

    vit().save_pretrained(tmp_path)
    if text == "cut":
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-50])
    else:
        (tmp_path / name).write_text(text)
    refused(lambda: load_model(str(tmp_path)), str(tmp_path), "could not be loaded")


def test_damaged_parts_of_a_long_computation(tmp_path):
    work = Work(tmp_path / "w", {"a": 1})
    work.save("part", {"x": torch.ones(9)})
    path = tmp_path / "w" / "part.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    refused(lambda: work.load("part"), "part.safetensors' is damaged", "delete it")
    (tmp_path / "w" / "task.json").write_text(DEEP)
    refused(lambda: Work(tmp_path / "w", {"a": 1}), "task.json' is damaged", "delete the folder")


ROW = {"index": [0, 1], "clean": [1, 0], "broken": {"pgd": [-1, 0]}, "seconds": {"pgd": 0.5}}
LINES = [
    {"index": 5}, {"index": ["a", 1]}, {"clean": [1]}, {"broken": [1]}, {"broken": {"pgd": [0]}}, {"broken": {"pgd": "xx"}},
    {"seconds": {"pgd": "x"}}, {"next": 3}, {"index": [2**70, 1]}, {"clean": None},
]  # fmt: skip


@pytest.mark.parametrize("change", LINES)
def test_a_tampered_record_of_an_evaluation(tmp_path, change):
    path, header = tmp_path / "r.jsonl", {"eps": 0.1}
    Records(header, path).add(ROW)
    assert Records(header, path).done == {0, 1}
    with path.open("a") as file:
        file.write(json.dumps({**ROW, **change}) + "\n")
    refused(lambda: Records(header, path), "r.jsonl' is damaged (line 3 of r.jsonl)")
    path.write_text(DEEP)
    refused(lambda: Records(header, path), "holds no records")


SIZES = [{"networks": 10**9}, {"hidden_size": 10**9}, {"latent_size": 10**7}, {"ensemble": 10**9}, {"networks": "2"}]


@pytest.mark.parametrize("change", SIZES)
def test_a_tampered_detector(detector, tmp_path, change):
    folder = shutil.copytree(detector, tmp_path / "d")
    facts = json.loads((folder / "detector.json").read_text())
    (folder / "detector.json").write_text(json.dumps({**facts, "settings": {**facts["settings"], **change}}))
    refused(lambda: load_detector(folder), "is damaged", next(iter(change)))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    rows = np.random.default_rng(0).normal(size=(40, 3))
    fitted = RCA(epochs=1, hidden_size=4, latent_size=2, random_state=0).fit(rows)
    return save_detector(fitted, tmp_path_factory.mktemp("detector"))


def test_a_detector_is_deep(detector, tmp_path):
    folder = shutil.copytree(detector, tmp_path / "d")
    (folder / "detector.json").write_text(DEEP)
    refused(lambda: load_detector(folder), "is damaged")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / RECORD
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: a terabyte that takes no room
    refused(lambda: read_json(path), "1099511627776 bytes")


def test_weights_and_a_full_disk_are_one_line_of_the_command():
    full = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    for error in (full, SafetensorError("incomplete metadata"), OSError(28, "No space left on device", "results.json")):
        told = one_line(error)
        assert told is not None and ("room" in told) and "\n" not in told
    assert one_line(RuntimeError("a fault of this program")) is None


def test_a_finished_first_stage_that_was_cut_off(tmp_path):
    vit().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refused(lambda: load_tensors(path, "delete the folder"), "model.safetensors' is damaged", "delete the folder")

import datasets
import numpy as np
import pytest
import torch
from helpers.toy import images, robust, vit
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from robust_trainer.ledger import ledger as ledger_module
from robust_trainer.ledger.ledger import SampleLedger


def test_ledger_equals_a_dictionary():
    g = torch.Generator().manual_seed(0)
    ledger, slow = SampleLedger(40, ema_decay=0.7), {}
    for epoch in range(5):
        order = torch.randperm(40, generator=g)
        order = torch.cat([order[:37], order[:5]])  # three are missed, five are repeats of the same epoch
        for index in order.split(7):
            score, weight = torch.rand(len(index), generator=g), (torch.rand(len(index), generator=g) > 0.4).float()
            predicted, label = torch.randint(4, (len(index),), generator=g), index % 4
            ledger.record(index, score, weight, label, predicted, epoch)
            for i, s, w, p in zip(index.tolist(), score.tolist(), weight.tolist(), predicted.tolist()):
                row = slow.setdefault(i, {"scores": [], "kept": 0, "ema": s, "epoch": -1})
                if row["epoch"] == epoch:
                    continue
                row["ema"] = 0.7 * row["ema"] + 0.3 * s
                row["scores"].append(s)
                row.update(epoch=epoch, predicted=p, kept=row["kept"] + int(w))
    rows = ledger.to_dataset()
    for i, row in slow.items():
        got = rows[i]
        assert got["seen"] == len(row["scores"]) and got["kept"] == row["kept"] and got["predicted"] == row["predicted"]
        assert got["mean_score"] == pytest.approx(np.mean(row["scores"]), rel=1e-5)
        assert got["ema_score"] == pytest.approx(row["ema"], rel=1e-5)
        assert got["last_score"] == pytest.approx(row["scores"][-1], rel=1e-6) and got["label"] == i % 4
        assert got["distrusted"] == (row["kept"] * 2 < len(row["scores"]))


def test_a_repeat_within_one_step_counts_once():
    ledger = SampleLedger(3)
    index = torch.tensor([1, 1, 0])
    ledger.record(index, torch.tensor([0.5, 0.5, 0.2]), torch.ones(3), index, index, 0)
    assert ledger.seen.tolist() == [1, 1, 0] and ledger.kept.tolist() == [1, 1, 0]


def test_ledger_is_small():
    ledger = SampleLedger(1000)
    assert sum(c.numel() * c.element_size() for c in ledger.columns.values()) <= 41 * 1000


def test_detection_figures_are_those_of_sklearn(tmp_path):
    trainer = robust(tmp_path, vit(), images(120), method="prl", noise_rate=0.25, drop_schedule="constant", num_train_epochs=4)
    trainer.train()
    rows, told = trainer.ledger.to_dataset(), trainer.ledger.detection()
    truth, flagged = rows["is_corrupted"][:], rows["distrusted"][:]
    assert truth == images(120)["is_corrupted"][:].tolist()
    assert told["auroc"] == pytest.approx(roc_auc_score(truth, rows["mean_score"][:]))
    assert told["precision"] == pytest.approx(precision_score(truth, flagged, zero_division=0))
    assert told["recall"] == pytest.approx(recall_score(truth, flagged))
    assert trainer.state.log_history[-2]["filter_auroc"] == pytest.approx(told["auroc"])
    distrusted = trainer.distrusted_samples()
    assert len(distrusted) == sum(flagged) and distrusted["mean_score"][:] == sorted(distrusted["mean_score"][:], reverse=True)


def test_parquet(tmp_path):
    import datasets

    trainer = robust(tmp_path, method="prl")
    trainer.train()
    path = trainer.ledger.to_parquet(tmp_path / "ledger.parquet")
    again = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path))
    assert again.to_dict() == trainer.ledger.to_dataset().to_dict()


def test_the_file_is_the_data_set_however_many_rows_are_written_at_a_time(tmp_path, monkeypatch):
    for rows, given in ((100, {}), (23, {"classes": 3}), (250, {"judged": True})):
        ledger = SampleLedger(rows, run={"id": "a"}, **given)
        ledger._columns["mean_score"].copy_(torch.rand(rows))
        ledger._columns["doubt"].copy_(torch.randint(-1, 2, (rows,)))
        whole = ledger.to_dataset()
        monkeypatch.setattr(ledger_module, "_WRITTEN", 100)
        read = datasets.Dataset.from_parquet(str(ledger.to_parquet(tmp_path / f"{rows}.parquet")), cache_dir=str(tmp_path))
        assert read.features == whole.features and len(read) == rows
        at = torch.tensor([2, 0, 2])
        for name, column in ledger.rows().items():
            np.testing.assert_array_equal(np.asarray(read[name][:]).reshape(column.shape), column, err_msg=name)
            np.testing.assert_array_equal(ledger.rows(at)[name], column[at], err_msg=name)

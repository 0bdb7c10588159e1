"""RCA and RobustRealNVP as estimators: scikit-learn's and PyOD's conventions, bad input, storage, and that they find anomalies."""

import json
import logging
import os
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import transformers
from helpers.tables import every_row
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler
from sklearn.utils.estimator_checks import check_estimator

from robust_trainer.anomaly import DETECTORS, RCA, RobustRealNVP, load_detector, make_detector, save_detector
from robust_trainer.anomaly.preparation import Preparation

TINY = {"epochs": 1, "hidden_size": 8, "random_state": 0}


def rca(**settings):
    return RCA(**{**TINY, "latent_size": 2, "ensemble": 2, **settings})


def nvp(**settings):
    return RobustRealNVP(**{**TINY, "couplings": 2, **settings})


KINDS = {"rca": rca, "nvp": nvp}
BOTH = every_row("kind", KINDS)


def rows(n=60, d=4, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def spoiled(row, column, value, n=60):
    x = rows(n)
    x[row, column] = value
    return x


def refused(told, call, *args):
    """The call raises a ``ValueError`` in one line, that reads so."""
    with pytest.raises(ValueError, match=told) as caught:
        call(*args)
    assert "\n" not in str(caught.value)


# ---- scikit-learn --------------------------------------------------------------------------------------------------------------


def expected_failures(estimator):
    if isinstance(estimator, RobustRealNVP):
        return {"check_methods_subset_invariance": "its 1e-7 is below float32, whose last digit depends on the batch's size"}
    return {}


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learns_own_checks(kind):
    check_estimator(KINDS[kind](), expected_failed_checks=expected_failures(KINDS[kind]()), on_skip=None)


@BOTH
def test_params_clone_and_set(kind):
    detector = KINDS[kind](contamination=0.2)
    copied = clone(detector)
    assert copied is not detector and copied.get_params() == detector.get_params()
    assert copied.set_params(epochs=3, contamination="auto").get_params()["epochs"] == 3
    assert detector.epochs == 1 and not hasattr(clone(detector.fit(rows())), "threshold_")
    with pytest.raises(ValueError, match="Invalid parameter 'trees'"):
        detector.set_params(trees=3)


@BOTH
def test_in_a_pipeline(kind):
    x = rows()
    pipe = make_pipeline(RobustScaler(), KINDS[kind]()).fit(x)
    alone = KINDS[kind]().fit(RobustScaler().fit_transform(x))
    assert np.array_equal(pipe.decision_function(x), alone.decision_scores_)
    assert np.array_equal(pipe.predict(x), alone.labels_) and np.array_equal(pipe.fit_predict(x), alone.labels_)
    assert np.array_equal(pipe.predict_proba(x), alone.predict_proba(RobustScaler().fit_transform(x)))


def test_in_a_search():
    """With a scorer on decision_function, since scikit-learn's own names are for classifiers; numbers come as numpy's."""
    x, y = rows(80), np.arange(80) % 8 == 0
    x[y] += 4

    def area(detector, x, y):
        return roc_auc_score(y, detector.decision_function(x))

    grid = {"hidden_size": np.array([4, 8]), "batch_size": np.array([16, 64], dtype=np.int32), "learning_rate": [np.float32(1e-2)]}
    search = GridSearchCV(rca(select=False, networks=1), grid, scoring=area, cv=2, error_score="raise").fit(x, y)
    assert search.best_score_ > 0.8 and search.best_params_ in [dict(zip(sorted(grid), (b, h, np.float32(1e-2))))
                                                                for b in (16, 64) for h in (4, 8)]  # fmt: skip
    assert np.isfinite(cross_val_score(nvp(), x, y, scoring=area, cv=2)).all()


NUMPY = {
    "rca": dict(networks=np.int64(2), ensemble=np.int64(2), latent_size=np.int16(2), dropout=np.float32(0.5),
                kl_weight=np.float64(1), variational=np.bool_(True), select=np.bool_(True)),
    "nvp": dict(couplings=np.int64(2), lipschitz=np.float32(1.5), trim=np.bool_(True)),
}  # fmt: skip


@BOTH
def test_numpy_numbers_are_numbers(tmp_path, kind):
    """From a search they come as numpy's: the same fit, and it can be saved."""
    common = dict(
        epochs=np.int64(1), batch_size=np.int32(16), hidden_size=np.uint8(8), learning_rate=np.float32(2**-8),
        contamination=np.float32(0.25), random_state=np.int64(0), verbose=np.bool_(False),
    )  # fmt: skip
    given = {**common, **NUMPY[kind]}
    ours = KINDS[kind](**given).fit(rows())
    plain = KINDS[kind](**{name: value.item() for name, value in given.items()}).fit(rows())
    assert np.array_equal(ours.decision_scores_, plain.decision_scores_) and ours.threshold_ == plain.threshold_
    loaded = load_detector(save_detector(ours, tmp_path / "saved"))
    assert loaded.get_params() == plain.get_params()


@BOTH
def test_data_frames_keep_their_names(kind):
    frame = pd.DataFrame(rows(), columns=list("abcd"))
    detector = KINDS[kind]().fit(frame)
    assert detector.feature_names_in_.tolist() == list("abcd") and detector.n_features_in_ == 4
    assert np.array_equal(detector.decision_function(frame), KINDS[kind]().fit(rows()).decision_scores_)
    for wrong in (frame[list("badc")], frame[list("abc")], frame.rename(columns={"d": "e"})):
        with pytest.raises(ValueError, match="feature names should match those that were passed during fit"):
            detector.predict(wrong)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        detector.predict(rows())
    whole = pd.array([1, None, 3] * 10, dtype="Int64")
    mixed = pd.DataFrame({"a": whole, "b": [True, False, True] * 10, "c": [None, 2.0, 0.5] * 10})
    assert np.isfinite(KINDS[kind]().fit(mixed).decision_scores_).all()


@BOTH
def test_a_second_fit_forgets_the_first(kind):
    detector = KINDS[kind](epochs=2)
    detector.fit(pd.DataFrame(rows(50, 6, 1), columns=list("abcdef"))).fit(rows())
    fresh = KINDS[kind](epochs=2).fit(rows())
    assert not hasattr(detector, "feature_names_in_") and detector.n_features_in_ == 4
    assert np.array_equal(detector.decision_scores_, fresh.decision_scores_) and len(detector.ledger_) == 60


@BOTH
def test_it_is_pickled_without_its_training(kind):
    import pickle

    detector = KINDS[kind]().fit(rows())
    told = pickle.dumps(detector)
    assert len(told) < 60_000
    assert np.array_equal(pickle.loads(told).decision_function(rows()), detector.decision_scores_)
    assert (detector.ledger_.rows()["seen"] == 1).all()


# ---- PyOD's attributes --------------------------------------------------------------------------------------------------------


@BOTH
@every_row("contamination", [0.05, 0.1, 0.25, 0.5])
@every_row("n", [7, 60])
def test_scores_threshold_and_labels(kind, contamination, n):
    x = rows(n)
    detector = KINDS[kind](contamination=contamination).fit(x)
    scores = detector.decision_scores_
    assert scores.shape == (n,) and scores.dtype == np.float64 and np.isfinite(scores).all()
    assert np.array_equal(scores, detector.decision_function(x))
    assert np.array_equal(detector.labels_, (scores > detector.threshold_).astype(int))
    assert np.array_equal(detector.labels_, detector.predict(x)) and np.array_equal(detector.labels_, detector.fit_predict(x))
    assert abs(detector.labels_.sum() - contamination * n) < 1 and detector.contamination_ == detector.labels_.mean()
    assert scores[detector.labels_ == 1].min() > scores[detector.labels_ == 0].max()


@every_row("make", [lambda: rca(ensemble=0, networks=3), lambda: nvp(lipschitz=0.3), lambda: nvp(lipschitz=None)])
def test_scores_are_the_models(make):
    """The trained model in evaluation mode, its caps in force, says the same of the prepared rows."""
    detector = make().fit(rows())
    with torch.no_grad():
        told = detector.model_(detector.preparation_(rows())).scores
    assert not detector.model_.training and np.allclose(detector.decision_scores_, told.numpy(), rtol=1e-5)


@BOTH
@every_row("method", ["linear", "unify"])
def test_probabilities(kind, method):
    x = np.vstack([rows(), rows(10, seed=1) * 9])
    detector = KINDS[kind]().fit(rows())
    p, scores = detector.predict_proba(x, method=method), detector.decision_function(x)
    assert p.shape == (70, 2) and p.min() >= 0 and p.max() <= 1 and np.allclose(p.sum(1), 1)
    order = np.argsort(scores)
    assert (np.diff(p[order, 1]) >= 0).all() and p[order[-1], 1] > 0.99 and len(np.unique(p[:, 1])) > 20
    if method == "linear":
        low, high = detector.decision_scores_.min(), detector.decision_scores_.max()
        assert np.allclose(p[:, 1], ((scores - low) / (high - low)).clip(0, 1))
    else:
        z = (scores - detector.decision_scores_.mean()) / detector.decision_scores_.std() / np.sqrt(2)
        assert np.allclose(p[:, 1], [max(0.0, float(torch.erf(torch.tensor(v, dtype=torch.float64)))) for v in z], atol=1e-6)
    refused("method='x' is unknown: choose linear or unify", detector.predict_proba, x, "x")


def test_probabilities_where_all_scores_are_one():
    detector = rca().fit(rows())
    detector.decision_scores_ = np.full(60, detector.decision_scores_.min())
    with np.errstate(all="raise"):
        for method in ("linear", "unify"):
            p = detector.predict_proba(rows(), method=method)
            assert np.isin(p, [0.0, 1.0]).all() and np.allclose(p.sum(1), 1)


# ---- what is done to the rows -------------------------------------------------------------------------------------------------


@every_row("imputation", ["mean", "median"])
@every_row("scaling", ["minmax", "standard", "none"])
def test_preparation_against_a_loop(imputation, scaling):
    x = rows(31, 3, 5) * [1, 20, 0.01] + [0, 5, -3]
    x[::4, 1] = np.nan
    prepared = Preparation.of(x, scaling, imputation, list("abc"))
    new = np.array([[np.nan, np.nan, np.nan], [0.0, 1.0, 2.0]])
    found = prepared(new)
    assert found.dtype == torch.float32 and torch.isfinite(prepared(x)).all()
    for column in range(3):
        there = [v for v in x[:, column] if not np.isnan(v)]
        fill = sum(there) / len(there) if imputation == "mean" else sorted(there)[len(there) // 2]
        fill = float(np.median(there)) if imputation == "median" and len(there) % 2 == 0 else fill
        whole = [fill if np.isnan(v) else v for v in x[:, column]]
        low, high, mean = min(there), max(there), sum(whole) / len(whole)
        std = (sum((v - mean) ** 2 for v in whole) / len(whole)) ** 0.5
        centre, scale = {"minmax": (low, high - low), "standard": (mean, std), "none": (0.0, 1.0)}[scaling]
        expected = [(fill - centre) / scale, (new[1, column] - centre) / scale]
        assert found[:, column].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if scaling == "minmax":
        assert prepared(x).min(0).values.tolist() == [0.0] * 3 and prepared(x).max(0).values.tolist() == pytest.approx([1.0] * 3)


@BOTH
def test_new_rows_change_nothing(kind):
    """Means, scales, scores and the model come of the training rows: new ones, however far or empty, leave all of them."""
    x = spoiled(slice(0, 9), 2, np.nan)
    detector = KINDS[kind]().fit(x)
    told = detector.decision_function(x)
    before = {k: v.copy() for k, v in vars(detector.preparation_).items()}
    weights = {k: v.clone() for k, v in detector.model_.state_dict().items()}
    far = np.vstack([rows(40, seed=3) * 1e4, np.full((2, 4), np.nan)])
    assert np.isfinite(detector.decision_function(far)).all()
    beside = detector.decision_function(np.vstack([x, far]))[:60]
    assert np.allclose(beside, told, rtol=1e-5, atol=1e-6) and np.array_equal(detector.decision_function(x), told)
    assert all(np.array_equal(v, before[k]) for k, v in vars(detector.preparation_).items())
    assert all(torch.equal(v, weights[k]) for k, v in detector.model_.state_dict().items())
    alone = np.concatenate([detector.decision_function(row) for row in x[:, None]])
    assert np.allclose(alone, told, rtol=1e-5, atol=1e-6)


@BOTH
def test_missing_values_are_filled_as_by_hand(kind):
    x = spoiled(slice(0, 30, 3), 1, np.nan)
    by_hand = np.where(np.isnan(x), np.nanmean(x, 0), x)
    assert np.array_equal(KINDS[kind]().fit(x).decision_scores_, KINDS[kind]().fit(by_hand).decision_scores_)
    assert np.array_equal(KINDS[kind]().fit(x).decision_function(x[:3]), KINDS[kind]().fit(x).decision_function(by_hand[:3]))


@BOTH
@every_row("value", [0.0, 1e6, -2.5])
def test_one_constant_column_warns_and_works(caplog, kind, value):
    x = spoiled(slice(None), 1, value)
    detector = KINDS[kind]().fit(pd.DataFrame(x, columns=["a", "b", "c", "d"]))
    assert [r.getMessage() for r in caplog.records] == [
        "column 'b' of X is constant: kept as it is, a new row that differs stands out."
    ]
    assert np.isfinite(detector.decision_scores_).all()
    other = pd.DataFrame(x[:1], columns=["a", "b", "c", "d"])
    other["b"] = value * 1.5 + 30.0
    assert detector.decision_function(other)[0] > detector.decision_scores_.max()


@BOTH
def test_extreme_rows_are_scored_without_overflow(kind):
    detector = KINDS[kind]().fit(rows() * 1e-6)
    with np.errstate(all="raise"):
        scores = detector.decision_function(np.array([[1.7e308] * 4, [-1.7e308] * 4, [0.0] * 4]))
    assert np.isfinite(scores).all() and scores[:2].min() > 1e6 > scores[2]


# ---- bad input ------------------------------------------------------------------------------------------------------------------


BAD_ROWS = {
    "one column": (rows(60, 1), "1 feature.* while a minimum of 2 is required"),
    "one row": (rows(1), "1 sample.* while a minimum of 2 is required"),
    "no rows": (rows(0), "0 sample.* while a minimum of 2 is required"),
    "all constant": (np.ones((20, 3)), "all 3 columns of X are constant: there is nothing that a row could differ in"),
    "all equal but missing": (np.where(rows() > 0, np.nan, 2.0), "all 4 columns of X are constant"),
    "an empty column": (spoiled(slice(None), 1, np.nan), "column '1' of X is all NaN: leave it out"),
    "two empty columns": (spoiled(slice(None), [0, 3], np.nan), r"column '0' of X is all NaN \(and 1 more: '3'\)"),
    "a named one": (pd.DataFrame(spoiled(slice(None), 1, np.nan), columns=list("abcd")), "column 'b' of X is all NaN"),
    "infinity": (spoiled(3, 1, np.inf), r"X contains infinity in 1 rows \(row 3, column '1'\): write NaN where"),
    "minus infinity": (pd.DataFrame(spoiled([3, 5], 2, -np.inf), columns=list("abcd")), r"in 2 rows \(row 3, column 'c'\)"),
    "too large": (spoiled([3, 4], 1, [1.7e308, -1.7e308]), "column '1' of X holds numbers too large to scale"),
    "strings": (np.array([["a", "b"]] * 10), "could not convert string to float: .*'a'"),
    "a column of strings": (pd.DataFrame({"a": ["x"] * 9, "b": range(9)}), "could not convert string to float: 'x'"),
    "three dimensions": (rows()[None], "Found array with dim 3"),
}


@BOTH
@every_row("case", BAD_ROWS)
def test_bad_rows(kind, case):
    x, told = BAD_ROWS[case]
    detector = KINDS[kind]()
    refused(told, detector.fit, x)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        detector.predict(rows())


@BOTH
def test_bad_new_rows(kind):
    detector = KINDS[kind]()
    for call in (detector.predict, detector.decision_function, detector.predict_proba):
        with pytest.raises(NotFittedError, match="This .* instance is not fitted yet. Call 'fit'"):
            call(rows())
    name = type(detector).__name__
    detector.fit(rows())
    for d in (1, 3, 5):
        refused(f"X has {d} features, but {name} is expecting 4 features as input", detector.predict, rows(5, d))
    refused("0 sample.* while a minimum of 1 is required", detector.predict, rows(0))
    refused(r"X contains infinity in 5 rows \(row 0, column '0'\)", detector.predict, rows(5) * np.inf)
    refused("could not convert string to float", detector.predict, np.array([["a"] * 4]))


@BOTH
@every_row("n", [2, 3, 17, 129])
def test_any_number_of_rows(kind, n):
    """Fewer than a batch are one batch; one more than a batch leaves a batch of one."""
    detector = KINDS[kind](batch_size=128).fit(rows(n))
    assert np.isfinite(detector.decision_scores_).all() and (detector.ledger_.rows()["seen"] == 1).all()


def whole(name, least):
    bad = (least - 1, 1.5, "2", None, True, float("nan"))
    return [({name: v}, rf"{name}={v!r} must be a whole number >= {least}") for v in bad]


def switch(name):
    return [({name: v}, rf"{name}={v!r} must be True or False") for v in ("no", None, 1, 0.0)]


COMMON = [
    *[(dict(contamination=v), r"contamination=.* must be in \(0, 0.5\], the share of abnormal rows, or 'auto'")
      for v in (0, 0.0, 0.6, -0.1, 1, "0.1", "Auto", True, None, float("nan"), [0.1])],
    *whole("epochs", 1), *whole("batch_size", 1), *whole("hidden_size", 1), *switch("verbose"),
    *[(dict(learning_rate=v), "learning_rate=.* must be a number > 0")
      for v in (0, -1e-3, "a", None, True, float("inf"), float("nan"))],
    *[(dict(scaling=v), "scaling=.* is unknown: choose one of minmax, standard, none") for v in ("max", None, [])],
    *[(dict(imputation=v), "imputation=.* is unknown: choose one of mean, median") for v in ("zero", None)],
    *[(dict(device=v), "device=.* is unknown: choose one of None, cpu") for v in ("gpu", 1)],
    (dict(random_state="a"), "cannot be used to seed"), (dict(random_state=-1), "Seed must be between"),
]  # fmt: skip
OWN = {
    "rca": [
        *whole("networks", 1), *whole("ensemble", 0), *whole("latent_size", 1), *switch("select"), *switch("variational"),
        *[(dict(dropout=v), r"dropout=.* must be in \[0, 1\)") for v in (1, 1.0, -0.1, "a", None, True, float("nan"))],
        *[(dict(kl_weight=v), "kl_weight=.* must be >= 0") for v in (-1, "a", None, True, float("inf"))],
        (dict(networks=1), "networks=1 has nobody to exchange rows with: give networks=2 or more, or select=False"),
    ],
    "nvp": [
        *[(dict(couplings=v), "couplings=.* must be an even whole number >= 2: they come in pairs")
          for v in (0, 1, 3, 2.0, None, True)],
        *[(dict(lipschitz=v), "lipschitz=.* must be > 0, or None for no cap") for v in (0, -1.0, "a", True, float("nan"))],
        *switch("trim"),
    ],
}  # fmt: skip


@BOTH
def test_bad_settings(kind):
    """Of every setting; told by ``fit``, not by ``__init__`` (scikit-learn's rule)."""
    named = set()
    for given, told in COMMON + OWN[kind]:
        refused(told, KINDS[kind](**given).fit, rows())
        named |= set(given)
    assert named == set(KINDS[kind]().get_params())


def test_bad_names():
    refused("unknown detector 'rac': did you mean 'rca'", make_detector, "rac")
    refused("unknown detector 3: choose one of rca, ", make_detector, 3)
    refused("detector 'rca' takes no 'trim'", lambda: make_detector("rca", trim=True))
    changed = make_detector("rcva", kl_weight=0.5)
    assert changed.variational is True and changed.kl_weight == 0.5 and changed.get_params()["networks"] == 2


@BOTH
def test_a_training_that_diverges_is_told(kind):
    refused("learning_rate", KINDS[kind](epochs=4, batch_size=16, learning_rate=1e30).fit, rows())


# ---- randomness, silence ----------------------------------------------------------------------------------------------------


@BOTH
def test_the_global_generators_are_left_alone(kind):
    def state():
        return random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], torch.get_rng_state().tolist()

    before = state()
    detector = KINDS[kind]().fit(rows())
    detector.predict_proba(rows())
    assert state() == before
    KINDS[kind](random_state=np.random.RandomState(3)).fit(rows())
    refused("all NaN", KINDS[kind]().fit, spoiled(slice(None), 1, np.nan))
    assert state() == before


@BOTH
def test_the_number_of_threads_is_left_alone(monkeypatch, kind):
    """A small network trains on one thread; afterwards, and after a failure, torch has as many as before."""
    asked = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    KINDS[kind]().fit(rows())
    assert asked == [1, 3]
    monkeypatch.setattr("robust_trainer.anomaly.training.RobustConfig", None)
    with pytest.raises(TypeError):
        KINDS[kind]().fit(rows())
    assert asked == [1, 3, 1, 3]


@BOTH
def test_results_come_from_random_state_alone(kind):
    first = KINDS[kind](random_state=3).fit(rows())
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    again, other = KINDS[kind](random_state=3).fit(rows()), KINDS[kind](random_state=4).fit(rows())
    assert np.array_equal(first.decision_scores_, again.decision_scores_) and first.threshold_ == again.threshold_
    assert all(torch.equal(v, again.model_.state_dict()[k]) for k, v in first.model_.state_dict().items())
    assert not np.allclose(first.decision_scores_, other.decision_scores_, rtol=1e-3)
    generator = np.random.RandomState(3)
    drawn = [KINDS[kind](random_state=generator).fit(rows()).decision_scores_ for _ in range(2)]
    assert np.array_equal(drawn[0], first.decision_scores_) and not np.allclose(drawn[0], drawn[1], rtol=1e-3)


@BOTH
def test_without_a_random_state_it_is_numpys(kind):
    """scikit-learn's meaning of None."""
    found = []
    for seed in (5, 5, 6):
        np.random.seed(seed)
        found.append(KINDS[kind](random_state=None).fit(rows()).decision_scores_)
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2], rtol=1e-3)


@BOTH
def test_fit_is_silent_and_leaves_no_file(capfd, caplog, tmp_path, monkeypatch, kind):
    """At transformers' own verbosity; nothing in the working directory nor among the temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    level = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_warning()
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        detector = KINDS[kind](epochs=2).fit(rows())
        detector.predict_proba(rows())
        load_detector(save_detector(detector, "saved"))
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
        transformers.utils.logging.set_verbosity(level)
    assert capfd.readouterr() == ("", "") and caplog.records == []
    assert sorted(os.listdir(tmp_path)) == ["saved", "temporary"] and os.listdir(tmp_path / "temporary") == []


def test_verbose_shows_the_trainers_progress(capfd):
    rca(verbose=True, epochs=2).fit(rows())
    told = capfd.readouterr()
    assert "loss" in told.out and "2/2" in told.err


# ---- storage -----------------------------------------------------------------------------------------------------------------


STORED = {
    "rca": lambda: rca(contamination=0.2),
    "rcva": lambda: rca(variational=True, networks=3),
    "one network": lambda: rca(networks=1, select=False, ensemble=0),
    "nvp": lambda: nvp(),
    "flow": lambda: nvp(lipschitz=None, trim=False, contamination="auto", random_state=None),
}


@pytest.mark.parametrize("case", STORED)
@every_row("named", [False, True])
def test_saved_and_loaded(tmp_path, case, named):
    x = spoiled(slice(0, 5), 1, np.nan)
    x = pd.DataFrame(x, columns=list("abcd")) if named else x
    detector = STORED[case]().fit(x)
    folder = save_detector(detector, tmp_path / "a" / "detector")
    assert folder == tmp_path / "a" / "detector"
    assert sorted(os.listdir(folder)) == ["config.json", "detector.json", "detector.safetensors", "model.safetensors"]
    state = torch.get_rng_state()
    loaded = load_detector(str(folder))
    assert torch.equal(state, torch.get_rng_state())
    assert type(loaded) is type(detector) and loaded.get_params() == detector.get_params()
    assert np.array_equal(loaded.decision_function(x), detector.decision_function(x))
    assert np.array_equal(loaded.predict(x), detector.labels_)
    assert np.array_equal(loaded.predict_proba(x), detector.predict_proba(x))
    for name in ("threshold_", "contamination_", "n_features_in_"):
        assert getattr(loaded, name) == getattr(detector, name), name
    for name in ("decision_scores_", "labels_"):
        assert np.array_equal(getattr(loaded, name), getattr(detector, name)), name
    assert hasattr(loaded, "feature_names_in_") == named and loaded.ledger_ is None
    if named:
        with pytest.raises(ValueError, match="feature names should match"):
            loaded.predict(x[list("badc")])
    again = load_detector(save_detector(loaded, tmp_path / "again"))
    assert np.array_equal(again.decision_function(x), detector.decision_function(x))
    assert save_detector(loaded.fit(x), folder) == folder  # over the old one


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change(path, **settings):
    edit(path, settings={**json.loads(path.read_text())["settings"], **settings})


def rewrite(path, what):
    tensors = safetensors.torch.load_file(path)
    what(tensors, sorted(tensors)[0])
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


PREPARED = ("fill", "centre", "scale")
DAMAGES = {
    "no model": lambda f: (f / "model.safetensors").unlink(),
    "no arrays": lambda f: (f / "detector.safetensors").unlink(),
    "half a model": lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:300]),
    "half the arrays": lambda f: (f / "detector.safetensors").write_bytes((f / "detector.safetensors").read_bytes()[:50]),
    "empty arrays": lambda f: (f / "detector.safetensors").write_bytes(b""),
    "half the facts": lambda f: (f / "detector.json").write_text('{"detector": "RCA",'),
    "facts are a list": lambda f: (f / "detector.json").write_text("[]"),
    "facts are no text": lambda f: (f / "detector.json").write_bytes(b"\xff\xfe\x00"),
    "another detector": lambda f: edit(f / "detector.json", detector="Forest"),
    "foreign settings": lambda f: edit(f / "detector.json", settings={"trees": 100}),
    "settings of another network": lambda f: edit(f / "detector.json", settings={"hidden_size": 9}),
    "settings out of range": lambda f: change(f / "detector.json", hidden_size=0),
    "settings in words": lambda f: change(f / "detector.json", hidden_size="8"),
    "fewer names": lambda f: edit(f / "detector.json", names=["a", "b"]),
    "no seed": lambda f: edit(f / "detector.json", seed=-1),
    "an endless threshold": lambda f: edit(f / "detector.json", threshold=float("inf")),
    "no threshold": lambda f: edit(f / "detector.json", threshold=None),
    "a threshold in words": lambda f: edit(f / "detector.json", threshold="high"),
    "a weight is missing": lambda f: rewrite(f / "model.safetensors", lambda t, first: t.pop(first)),
    "a weight of another shape": lambda f: rewrite(f / "model.safetensors", lambda t, first: t.update({first: torch.zeros(3, 3)})),
    "fewer columns": lambda f: rewrite(f / "detector.safetensors", lambda t, _: t.update({k: t[k][:2] for k in PREPARED})),
    "fewer fills": lambda f: rewrite(f / "detector.safetensors", lambda t, _: t.update(fill=t["fill"][:2])),
    "a scale of zero": lambda f: rewrite(f / "detector.safetensors", lambda t, _: t["scale"].zero_()),
    "a fill of NaN": lambda f: rewrite(f / "detector.safetensors", lambda t, _: t["fill"].fill_(np.nan)),
    "no scores": lambda f: rewrite(f / "detector.safetensors", lambda t, _: t.update(decision_scores=torch.zeros(0))),
    "a table of scores": lambda f: rewrite(f / "detector.safetensors", lambda t, _: t.update(decision_scores=torch.zeros(4, 2))),
    "no scale": lambda f: rewrite(f / "detector.safetensors", lambda t, _: t.pop("scale")),
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return {kind: save_detector(make().fit(rows()), folder / kind) for kind, make in KINDS.items()}


@BOTH
@every_row("damage", DAMAGES)
def test_damaged_folders(tmp_path, saved, kind, damage):
    """Never a detector with other weights, never another kind of error."""
    folder = shutil.copytree(saved[kind], tmp_path / "damaged")
    DAMAGES[damage](folder)
    refused("the detector in '.*damaged' is damaged .", load_detector, folder)


@BOTH
def test_only_numbers_and_settings_are_read(tmp_path, saved, kind):
    """Whatever the config of the model says, or code that lies beside it."""
    folder = shutil.copytree(saved[kind], tmp_path / "detector")
    expected = load_detector(folder).decision_function(rows())
    edit(folder / "config.json", auto_map={"AutoModel": "evil.Model"}, model_type="evil", features=99)
    (folder / "evil.py").write_text("raise SystemExit")
    assert np.array_equal(load_detector(folder).decision_function(rows()), expected)
    (folder / "config.json").unlink()
    assert np.array_equal(load_detector(folder).decision_function(rows()), expected)


def test_what_cannot_be_saved_or_loaded(tmp_path):
    refused("this RCA is not fitted yet: call fit first", save_detector, rca(), tmp_path / "x")
    detector = rca(random_state=np.random.RandomState(0)).fit(rows())
    refused("random_state=RandomState.* cannot be saved", save_detector, detector, tmp_path)
    refused("holds no detector: it has no detector.json", load_detector, tmp_path / "nowhere")
    assert not (tmp_path / "x").exists()


# ---- what they are for -------------------------------------------------------------------------------------------------------


def table(n=200, far=10, seed=0):
    """A curve in four columns within [-1, 1], 5 % of the rows around it."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-1, 1, (n, 1))
    x = np.hstack([t, t**2 - 0.5, np.sin(3 * t), -t]) + 0.1 * rng.normal(size=(n, 4))
    x[-far:] = rng.uniform(1, 2.5, (far, 4)) * rng.choice([-1, 1], (far, 4))
    return x, np.arange(n) >= n - far


def tuned(name, **settings):
    own = dict(epochs=14, learning_rate=1e-2, dropout=0.1) if DETECTORS[name].kind is RCA else dict(epochs=10, learning_rate=5e-3)
    more = {"couplings": 4} if DETECTORS[name].kind is RobustRealNVP else {}
    given = {**dict(hidden_size=20, batch_size=64, contamination=0.05, random_state=0), **own, **more, **settings}
    return make_detector(name, **given)


@pytest.fixture(scope="module")
def found():
    return {name: tuned(name).fit(table()[0]) for name in DETECTORS}


@every_row("name", DETECTORS)
def test_anomalies_are_found(found, name):
    """A floor for every row of the table of detectors, on the rows it was trained on and on new ones."""
    detector, (_, truth), (new, new_truth) = found[name], table(), table(seed=7)
    assert roc_auc_score(truth, detector.decision_scores_) >= 0.95
    assert roc_auc_score(new_truth, detector.decision_function(new)) >= 0.95
    assert detector.labels_.sum() == 10 and detector.labels_[truth].mean() > 0.6


@every_row("name", DETECTORS)
def test_anomalies_are_left_out_of_training(found, name):
    """The ledger: methods that select keep abnormal rows less often than normal ones; the others keep everybody."""
    detector, (_, truth) = found[name], table()
    kept = detector.ledger_.rows()["kept"] / detector.epochs
    assert (detector.ledger_.rows()["seen"] == detector.epochs).all()
    if name in ("rca", "rca-e", "rcva", "robust-realnvp", "trim-realnvp"):
        assert kept[truth].mean() < 0.6 < 0.95 < kept[~truth].mean()
    else:
        assert (kept == 1).all()


@every_row("name", ["rca", "robust-realnvp", "realnvp"])
def test_an_unknown_share(name):
    """contamination='auto' finds five per cent of far outliers, and calls few others so."""
    x, truth = table()
    detector = tuned(name, contamination="auto").fit(x)
    assert detector.labels_[truth].mean() > 0.8 and detector.labels_[~truth].mean() < 0.2
    assert detector.contamination_ == detector.labels_.mean()


# ---- equal scores ----------------------------------------------------------------------------------------------------------


def told(fit, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        with caplog.at_level("WARNING"):
            fit()
    finally:
        logging.disable_propagation()
    return caplog.text


def test_the_same_anomaly_again_and_again_is_flagged(caplog):
    """40 of 200 rows are one anomaly and 0.1 is asked for: the threshold was their score, and nobody was beyond it."""
    x = np.random.default_rng(0).normal(size=(200, 4))
    x[:40] = 9.0
    detector = RCA(0.1, epochs=2, ensemble=0, random_state=0, device="cpu")
    text = told(lambda: detector.fit(x), caplog)
    assert len(set(detector.decision_scores_[:40])) == 1
    assert detector.labels_[:40].all() and detector.labels_.sum() == 40 and (detector.predict(x) == detector.labels_).all()
    assert "contamination=0.1: 40 of 200 samples have one score" in text and "40 of 200 rows count as abnormal" in text


def test_rows_that_are_all_one_but_for_a_few_have_no_spread_and_that_is_told(caplog):
    x = np.zeros((120, 3))
    x[:50] = np.random.default_rng(0).normal(0, 0.02, size=(50, 3))
    x[:4] = 5.0
    detector = RCA("auto", epochs=2, ensemble=0, random_state=0, device="cpu", scaling="none")
    assert "70 of 120 samples have one score" in told(lambda: detector.fit(x), caplog)
    assert detector.labels_[:4].all() and detector.labels_.sum() < 12  # all 50 that are not zero were beyond a spread of 0

"""Exact leave-one-out predictions against a loop that fits without each row."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from robust_trainer.evidence import ridge
from robust_trainer.evidence.neighbours import normalise
from robust_trainer.evidence.ridge import PENALTIES, LeaveOneOutRidge


def problem(n=40, d=6, classes=3, seed=0):
    """Rows of length 1, one-hot targets that they tell."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(0, classes, n))
    rows = rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d))
    return normalise(rows), torch.nn.functional.one_hot(labels, classes).float()


def widened(rows):
    """The rows with the model's constant, which stands for the intercept."""
    return np.concatenate([rows.double().numpy(), np.full((len(rows), 1), ridge._CONSTANT)], 1)


def regression(penalty):
    return Ridge(alpha=penalty, fit_intercept=False, solver="svd")


@pytest.mark.parametrize("n,d", [(40, 6), (12, 30)])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_left_out_is_the_slow_loop(n, d, penalty):
    """Also with more features than rows."""
    rows, targets = problem(n, d)
    found = LeaveOneOutRidge(rows).left_out(targets, penalty)
    expected = cross_val_predict(regression(penalty), widened(rows), targets.double().numpy(), cv=LeaveOneOut())
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-3 if penalty < 0.1 else 2e-4)
    assert found.dtype == torch.float32


def test_targets_may_be_shares_of_classes():
    rows, _ = problem()
    shares = torch.softmax(torch.randn(len(rows), 4), 1)
    expected = cross_val_predict(regression(0.3), widened(rows), shares.double().numpy(), cv=LeaveOneOut())
    np.testing.assert_allclose(LeaveOneOutRidge(rows).left_out(shares, 0.3).numpy(), expected, atol=2e-4)


def test_no_prediction_has_seen_its_own_target():
    """Whatever one row's target is, its own prediction is the same; those of others are not."""
    rows, targets = problem()
    model, other = LeaveOneOutRidge(rows), targets.clone()
    other[5] = torch.tensor([7.0, -3.0, 2.0])
    before, after = model.left_out(targets, 0.1), model.left_out(other, 0.1)
    torch.testing.assert_close(before[5], after[5], rtol=0, atol=1e-4)
    assert (before - after).abs().amax(1).gt(1e-3).sum() > 5


def test_the_best_penalty_has_the_smallest_error():
    for seed in range(4):
        rows, targets = problem(60, 20, seed=seed)
        model = LeaveOneOutRidge(rows)
        errors = {penalty: float((model.left_out(targets, penalty) - targets).square().sum()) for penalty in PENALTIES}
        assert errors[model.best_penalty(targets)] == pytest.approx(min(errors.values()), rel=1e-6)


def test_predict_is_the_fitted_model():
    rows, targets = problem()
    others, _ = problem(15, seed=1)
    expected = regression(0.3).fit(widened(rows), targets.double().numpy()).predict(widened(others))
    np.testing.assert_allclose(LeaveOneOutRidge(rows).predict(targets, 0.3, others).numpy(), expected, atol=1e-4)


def test_cut_into_blocks_it_is_the_same(monkeypatch):
    rows, targets = problem()
    others, _ = problem(15, seed=1)
    whole = LeaveOneOutRidge(rows)
    monkeypatch.setattr(ridge, "_ROWS", 7)
    parts = LeaveOneOutRidge(rows)
    for penalty in (PENALTIES[0], PENALTIES[-1]):
        torch.testing.assert_close(parts.left_out(targets, penalty), whole.left_out(targets, penalty), rtol=0, atol=1e-4)
    ours, theirs = parts.predict(targets, 0.3, others), whole.predict(targets, 0.3, others)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_wide_features_are_projected(monkeypatch):
    """To fewer directions, the same ones each time; predictions hardly change, since distances hardly do."""
    rows, targets = problem(80, 600)
    exact = LeaveOneOutRidge(rows)
    monkeypatch.setattr(ridge, "WIDEST", 400)
    first, again = LeaveOneOutRidge(rows), LeaveOneOutRidge(rows)
    assert first._rows.shape == (80, 401) and torch.equal(first._rows, again._rows)
    ours, theirs = first.left_out(targets, 1.0), exact.left_out(targets, 1.0)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9
    assert first.predict(targets, 1.0, rows[:5]).shape == (5, 3)


def test_rows_that_say_nothing_give_finite_predictions():
    for rows in (torch.zeros(20, 4), torch.eye(20), normalise(np.ones((20, 4)))):
        targets = torch.nn.functional.one_hot(torch.arange(20) % 2, 2).float()
        model = LeaveOneOutRidge(rows)
        for penalty in PENALTIES:
            assert model.left_out(targets, penalty).isfinite().all()


def test_permuted_rows_give_permuted_predictions():
    rows, targets = problem()
    order = torch.randperm(len(rows))
    moved = LeaveOneOutRidge(rows[order]).left_out(targets[order], 0.1)
    torch.testing.assert_close(moved, LeaveOneOutRidge(rows).left_out(targets, 0.1)[order], rtol=0, atol=1e-4)

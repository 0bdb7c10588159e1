"""How the dropped share moves over training: schedules as shares of the final rate, in [0, 1]."""

from __future__ import annotations

from ..types import Progress

SCHEDULES = ("constant", "ramp", "decay")


def ramp_share(progress: Progress, epochs: float, steps: int | None = None, start: float = 0.0) -> float:
    """Returns the share of the final rate that is dropped now, rising from ``start`` to 1 over the first ``epochs``.

    R(T) = rate min(T / T_k, 1) in epoch T = 1, 2, ... with T_k = ``epochs``, so in whole epochs; a ramp shorter than four epochs
    has four stairs.

    Args:
        progress: where training stands.
        epochs: T_k, > 0.
        steps: where given, the ramp takes this many optimizer steps instead, in four stairs.
        start: share of the final rate where the ramp starts, in [0, 1]; 0 in the papers.

    References:
        Dissertation sec. 4 (R(T) = min(T / T_k rate, rate)); Han et al. 2018, "Co-teaching", Algorithm 1.
    """
    if steps is not None:
        done = (progress.global_step * 4 // steps + 1) / 4
    else:
        stair = min(1.0, epochs / 4)
        done = (int(progress.epoch / stair + 1e-9) + 1) * stair / epochs
    return start + (1.0 - start) * min(done, 1.0)


def decay_share(progress: Progress, span: float) -> float:
    """Returns the share of the final rate that is dropped now, rising from 0 in the first epoch to 1 after ``span`` of all epochs.

    A run of less than two epochs has four stairs up to there.

    The kept share is beta = max(1 - t rate / (alpha max_epochs), 1 - rate) in epoch t = 0, 1, ... with alpha = ``span``.

    Args:
        progress: where training stands.
        span: alpha, a share of all epochs in (0, 1].

    References:
        Dissertation Algorithm 1 (RCA); Liu et al. 2021, "RCA: a deep collaborative autoencoder approach for anomaly detection".
    """
    epochs = span * progress.max_epochs
    stair = 1.0 if progress.max_epochs >= 2.0 else min(1.0, epochs / 4)
    return min(int(progress.epoch / stair + 1e-9) * stair / epochs, 1.0)

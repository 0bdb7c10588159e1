"""What a robust run shows on TensorBoard: charts of the kept share, the noise rate and the robust accuracy."""

from __future__ import annotations

#: For ``SummaryWriter.add_custom_scalars``: kind of chart and tags, as the Trainer's callbacks name what is logged.
#: A tag that a run does not log is left out of its chart.
PANELS: dict[str, dict[str, list]] = {
    "selection": {
        "kept share": ["Multiline", ["train/kept_fraction", "train/kept_clean", "train/kept_corrupted"]],
        "noise rate": ["Margin", ["train/noise_rate", "train/noise_rate_low", "train/noise_rate_high"]],
        "detection of wrong labels": ["Multiline", ["train/filter_auroc", "train/filter_precision", "train/filter_recall"]],
    },
    "robustness": {
        "accuracy on the test set": ["Multiline", ["train/natural_accuracy", "train/robust_accuracy"]],
        "accuracy on held-out data": ["Multiline", ["train/held_out_natural_accuracy", "train/held_out_robust_accuracy"]],
        "accuracy on training samples": ["Multiline", ["train/fgsm_accuracy", "train/pgd_accuracy"]],
    },
}

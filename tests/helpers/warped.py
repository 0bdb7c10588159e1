"""Digits of which some are warped and called 0, others warped otherwise and called what they are: wrong labels that are alike."""

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from robust_trainer.corruptions import WarpTrigger, poison


def warped_digits(rate):
    """Pixels (N, 64) in [0, 1], right and given labels."""
    data = load_digits()
    pictures = [Image.fromarray((row / 16 * 255).astype(np.uint8)) for row in data.images]
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    rows = datasets.Dataset.from_dict({"image": pictures, "label": data.target.tolist()}, features=kinds)
    rows = poison(rows, trigger=WarpTrigger(), rate=rate, label_rule="all-to-one", seed=0, keep_in_memory=True)
    pixels = np.stack([np.asarray(picture) for picture in rows["image"]]).reshape(len(rows), -1).astype(np.float32) / 255
    return pixels, np.array(rows["clean_label"][:]), np.array(rows["label"][:])

"""Fingerprints of corrupted data, for two processes to agree on."""

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image, List, Value

from robust_trainer.corruptions import (
    AllToOne,
    BlendTrigger,
    PatchTrigger,
    corrupt_labels,
    corrupt_targets,
    poison,
    trigger_all,
    use_noisy_labels,
)

TRANSITION = [[0.7, 0.3, 0, 0], [0, 0.8, 0.2, 0], [0, 0, 1, 0], [0.1, 0, 0, 0.9]]
NOISES = {
    "symmetric": {"rate": 0.3},
    "pairflip": {"rate": 0.3},
    "asymmetric": {"rate": 0.3, "class_map": {0: 1, 2: 3}},
    "transition": {"transition_matrix": TRANSITION},
    "instance": {"rate": 0.3, "feature_columns": "x"},
}


def fingerprints() -> list[str]:
    """Of each kind of corruption with several settings; all differ."""
    random = np.random.default_rng(0)
    labels = (np.arange(20) % 4).tolist()
    classes = ClassLabel(names=list("abcd"))
    rows = Dataset.from_dict(
        {"x": random.normal(size=(20, 3)).tolist(), "label": labels},
        features=Features({"x": List(Value("float32")), "label": classes}),
    )
    targets = random.normal(size=(20, 2)).tolist()
    numbers = Dataset.from_dict({"x": random.normal(size=(20, 3)).tolist(), "label": targets})
    pictures = [random.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(12)]
    images = Dataset.from_dict({"image": pictures, "label": labels[:12]}, features=Features({"image": Image(), "label": classes}))
    trigger = BlendTrigger(picture=[[0, 9], [3, 4]])
    made = [corrupt_labels(rows, noise, exact=exact, **given) for noise, given in NOISES.items() for exact in (True, False)]
    made += [
        use_noisy_labels(rows, [0] * 20),
        corrupt_targets(numbers, "mixture", rate=0.5, feature_columns="x"),
        poison(images, trigger=trigger, rate=0.5),
        poison(images, trigger=trigger, rate=0.5, seed=1),
        poison(images, trigger=BlendTrigger(picture=[[0, 9], [3, 5]]), rate=0.5),
        poison(images, trigger=trigger, rate=0.5, label_rule=AllToOne(1)),
        trigger_all(images, PatchTrigger()),
    ]
    return [one._fingerprint for one in made]

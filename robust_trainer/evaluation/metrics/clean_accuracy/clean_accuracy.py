"""Top-1 accuracy on images without trigger, as an `evaluate` metric."""

import datasets
import evaluate

from robust_trainer.evaluation import accuracy as evaluation

_DESCRIPTION = """
The fraction of images without trigger whose predicted class is the true one.
"""

_INPUTS = """
Args:
    predictions: predicted classes, a list of N integers.
    references: true classes, a list of N integers.
Returns:
    clean_accuracy: a fraction in [0, 1].
Examples:
    >>> from robust_trainer.evaluation import load_metric
    >>> load_metric("clean_accuracy").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
    {'clean_accuracy': 0.75}
"""

_CITATION = 'Backdoor sec. 5: "Defending backdoor data poisoning attacks using noisy label defense algorithm".'


class CleanAccuracy(evaluate.Metric):
    """The clean accuracy, as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return {"clean_accuracy": evaluation.clean_accuracy(predictions, references)}

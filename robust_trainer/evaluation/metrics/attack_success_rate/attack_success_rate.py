"""Share of triggered images predicted as the attacker wants, as an `evaluate` metric."""

import datasets
import evaluate

from robust_trainer.evaluation import accuracy as evaluation

_DESCRIPTION = """
The fraction of triggered images predicted as the attack target, among those whose true class is not the target already:
lower is a better defence.
"""

_INPUTS = """
Args:
    predictions: predicted classes, a list of N integers.
    references: true classes, a list of N integers.
    attack_targets: classes that the attacker wants, a list of N integers (the column `attack_target` of `trigger_all`).
Returns:
    attack_success_rate: a fraction in [0, 1].
Examples:
    >>> from robust_trainer.evaluation import load_metric
    >>> asr = load_metric("attack_success_rate")
    >>> asr.compute(predictions=[0, 0, 0, 1], references=[0, 1, 2, 1], attack_targets=[0, 0, 0, 0])
    {'attack_success_rate': 0.6666666666666666}
"""

_CITATION = "Gu, Dolan-Gavitt and Garg (2017): BadNets: identifying vulnerabilities in the machine learning model supply chain."


class AttackSuccessRate(evaluate.Metric):
    """The attack success rate, as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        columns = ("predictions", "references", "attack_targets")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({name: datasets.Value("int64") for name in columns}),
        )

    def _compute(self, predictions: list, references: list, attack_targets: list) -> dict[str, float]:
        return {"attack_success_rate": evaluation.attack_success_rate(predictions, references, attack_targets)}

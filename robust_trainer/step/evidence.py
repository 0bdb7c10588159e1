"""Labels judged while training: one pass over the data set for features, the evidence, and what the ledger keeps of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import evidence as labels_judged
from ..evidence.decision import ActOnEvidence
from ..selection.noise_rate import RateEstimate
from ..types import ForwardOutput, Progress
from .agreement import agree
from .feature_pass import Gathered, look_at_all
from .records import MicroBatch, Run

#: The ledger's columns that hold the verdict.
VERDICT = ("label_wrong", "weight", "target", "suggested", "suggested_confidence", "carrier", "trusted")


@dataclass
class EvidenceStage:
    """When labels are judged in a run, and what its steps do with the verdict.

    The verdict is columns of the ledger, so in checkpoints and in what an audit reads: ``label_wrong`` (probability), ``weight``,
    ``target`` (class), ``suggested``, ``suggested_confidence``, ``carrier`` and ``trusted`` (the given label is trained on).

    Args:
        run: of the training.
        act: what is done.
    """

    run: Run
    act: ActOnEvidence

    @property
    def made(self) -> bool:
        """Whether labels were judged yet."""
        return "evidence" in self.run.states

    @property
    def known(self) -> bool:
        """Whether a verdict is in force: labels were judged, and the features said something of them."""
        return self.made and bool(self.run.states["evidence"]["known"])

    @property
    def rate(self) -> RateEstimate | None:
        """The share of wrong labels by the verdict in force, None before and where the features say nothing of the labels."""
        return self._kept_rate("rate")

    @property
    def _rest(self) -> RateEstimate | None:
        """The share of wrong labels without a pattern by the looks so far at features that say something, None before one."""
        return self._kept_rate("rest")

    def _kept_rate(self, name: str) -> RateEstimate | None:
        if not self.known:
            return None
        rate, low, high, n = self.run.states["evidence"][name].tolist()
        return RateEstimate(rate, low, high, int(n))

    def due(self, progress: Progress) -> bool:
        """Returns whether the epoch that starts now wants the labels judged: not when a resumed run has the verdict.

        Args:
            progress: where training stands.
        """
        if self.run.ledger is None:
            return False
        self._tell_rate()  # of a resumed run
        done = int(self.run.states["evidence"]["looks"]) if self.made else 0
        looks = self.act.looks_at(progress.max_epochs)
        return done < len(looks) and progress.epoch >= looks[done]

    def weights(self, batches: list[MicroBatch]) -> list[Tensor]:
        """Returns the rows' weights, (1, B) of each micro-batch."""
        return [self._column("weight")[batch.positions].unsqueeze(0) for batch in batches]

    def trusted(self, batch: MicroBatch) -> Tensor:
        """Returns whether the given labels are trusted, (1, B) of 0 and 1."""
        return self._column("trusted")[batch.positions].float().unsqueeze(0)

    def targets(self, output: ForwardOutput) -> Tensor:
        """Returns the classes that a micro-batch is trained as, (M, B): a recipe's ``relabel``."""
        given = output.network_targets()
        if not self.made or output.index is None:
            return given
        target = self._column("target")[output.index].to(given.dtype)
        return torch.where(target < 0, given, target.expand_as(given))  # below 0: no look has told anything

    def _column(self, name: str) -> Tensor:
        ledger = self.run.ledger
        if ledger is None:
            raise ValueError("labels are judged on a data set with a length: there is no ledger.")
        return ledger._columns[name]

    def judge(self, model: nn.Module, batches: Iterable[MicroBatch], read: Any) -> str:
        """Judges the labels from one pass in evaluation mode, and returns what is to be said.

        Args:
            model: unwrapped.
            batches: the data set, each sample once; of several processes, each its share.
            read: a model's outputs with a micro-batch's targets.
        """
        run, ledger = self.run, self.run.ledger
        if ledger is None:
            return ""
        # of a compiled model the one inside: a graph that is compiled now would have the hooks in it
        model = getattr(model, "_orig_mod", model)
        first, compare = not self.made, self.act.find_patterns
        gathered = look_at_all(model, batches, read, run, len(ledger), compare=compare, enlarge=first and self.act.enlarge)
        if isinstance(gathered, str):
            return self._nothing_new(gathered)
        # of several processes the first one judges: all have one verdict, whatever the rounding of their sums
        verdict, said = torch.zeros(_numbers(len(ledger)), dtype=torch.float64), ""
        problem: Exception | None = None
        try:
            if run.rank == 0:
                verdict, said = self._verdict(gathered)
        except Exception as error:
            problem = error
        agree(run, problem)
        ledger._columns["label"].copy_(gathered.labels)  # of rows, too, that training may never reach
        if run.processes > 1:
            verdict = run.total(verdict.to(run.device)).cpu()
        if not bool(verdict[0]):
            return self._nothing_new(said)
        for name, values in zip(VERDICT, verdict[10:].view(len(ledger), -1).unbind(1)):
            ledger._columns[name].copy_(values.to(ledger._columns[name].dtype))
        self._count(verdict[1:5], verdict[5:9], True, verdict[9])
        self._tell_rate()
        return f"method '{run.recipe.name}': {said}" if said else ""

    def _verdict(self, gathered: Gathered) -> tuple[Tensor, str]:
        """Whether there is one, the rates, and the columns VERDICT of each row, `_numbers` in float64; and what is to be said."""
        run = self.run
        labels = gathered.labels.cpu().numpy()
        inputs = None if gathered.inputs is None else gathered.inputs.cpu().numpy()
        features = labels_judged.most_telling(gathered.features, gathered.labels, run.classes)
        triggers: list[labels_judged.TiedTokens] = []
        if gathered.without:
            same = next(i for i, kind in enumerate(gathered.features) if kind is features)
            groups = list(gathered.groups)
            triggers = labels_judged.triggers_among(groups, gathered.without[same], labels, run.classes, run.seed)
        carriers, rest = self._column("carrier"), self._rest
        agreed = float(self.run.states["evidence"]["agreement"]) if self.known else 0.0
        if rest is not None:
            rest = labels_judged.refined_rate(rest, agreed, features, gathered.labels, run.classes, carriers, run.seed)
        evidence = labels_judged.judge_labels(
            features, labels, run.classes, inputs=inputs, shape=gathered.shape, seed=run.seed, carriers=carriers.cpu().numpy(),
            rest=rest, others=[gathered.small] if gathered.small is not None else [], triggers=triggers,
        )  # fmt: skip
        if not evidence.informative:
            return torch.zeros(_numbers(len(labels)), dtype=torch.float64), evidence.told
        if self.known:
            before = (self._column(name).cpu().numpy() for name in ("label_wrong", "suggested", "suggested_confidence"))
            evidence = labels_judged.with_earlier(evidence, agreed, *before)
        made = self.act.decide(evidence, labels)
        columns = {
            "label_wrong": evidence.wrong, "weight": made.weight, "target": made.target, "suggested": evidence.suggested,
            "suggested_confidence": evidence.confidence, "carrier": evidence.carriers, "trusted": made.trusted,
        }  # fmt: skip
        rates = [number for r in (evidence.rate, evidence.rest) for number in (r.rate, r.low, r.high, r.n)]
        table = np.stack([columns[name].astype(np.float64) for name in VERDICT], 1)
        large = (
            " Labels were judged from the images at twice their size, in which the network sees more."
            if gathered.small is not None
            else ""
        )
        return torch.from_numpy(np.concatenate([[1.0], rates, [evidence.agreement], table.ravel()])), (
            f"{evidence.told} {made.told(labels)}.{large}"
        )

    def _tell_rate(self) -> None:
        """Writes the rate in force into the facts of the run, which go wherever the ledger goes: an audit asks for it."""
        rate, ledger = self.rate, self.run.ledger
        if rate is not None and ledger is not None:
            ledger.run["label_rate"] = [rate.rate, rate.low, rate.high]

    def _nothing_new(self, why: str) -> str:
        """Counts a look that told nothing, and returns what is to be said; an earlier verdict stays in force."""
        known = self.known
        nothing = torch.zeros(4, dtype=torch.float64)
        was = self.run.states["evidence"] if known else {"rate": nothing, "rest": nothing, "agreement": nothing[0]}
        self._count(was["rate"], was["rest"], known, was["agreement"])
        stays = "What was found before stays in force." if known else "No label is doubted, every sample is trained on as it is."
        return f"method '{self.run.recipe.name}': {why} {stays}" if why else ""

    def _count(self, rate: Tensor, rest: Tensor, known: bool, agreement: Tensor) -> None:
        """Takes up a look in the run's states: the rates with their intervals, (4,), and whether a verdict is in force.

        agreement: share of the labels that its features predict.
        """
        looks = int(self.run.states["evidence"]["looks"]) + 1 if self.made else 1
        self.run.states["evidence"] = {
            "looks": torch.tensor(looks), "rate": rate.clone(), "rest": rest.clone(), "known": torch.tensor(known),
            "agreement": agreement.clone(),
        }  # fmt: skip


def _numbers(size: int) -> int:
    """How many numbers a verdict on so many rows has: whether there is one, two rates, agreement, the columns."""
    return 10 + len(VERDICT) * size

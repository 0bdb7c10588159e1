"""Images, texts or sounds: decided by the columns of the data, and what is given for another kind is refused before any work."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, fields
from typing import Any

from ..corruptions import NOISES, triggers_of
from ..data.preprocess import input_kind
from ..models.pretrained import WORDS
from ..models.text_models import SMALL_TEXT

#: Options that say something about images alone: pixels, their triggers, poisons, squeezes, attacks and views.
FOR_IMAGES = {
    "image_size", "patch_size", "patch_position", "alpha", "blend_std", "blend_picture",
    "squeeze", "squeeze_jpeg_quality", "squeeze_bits", "contrastive_epochs", "contrastive_batch_size", "contrastive_learning_rate",
    "contrastive_temperature", "contrastive_views", "unlabelled", "poison", "craft", "attacks", "eps", "per_class",
}  # fmt: skip
#: Options that say something about texts alone.
FOR_TEXTS = {"max_length"}
#: The options of each kind alone.
_OF_KIND = {"image": FOR_IMAGES, "text": FOR_TEXTS, "audio": set[str]()}
#: Networks that are trained from scratch, by kind.
_SMALL = {"image": "small-cnn or resnet32", "text": " or ".join(SMALL_TEXT)}


@dataclass(frozen=True)
class CheckKind:
    """A stage that refuses, in one line, what does not fit the kind of the data that were loaded.

    Args:
        options: Dataclasses of options, some of which are for one kind alone.
        model: The model as it was given, such as ``run='out'``; '' where there is none.
        kinds: What the model can classify, of ``image``, ``text`` and ``audio``; empty where nothing tells.
        trained: Whether the model is what the data are for; else the data are what a model is to be chosen for.
    """

    options: tuple[Any, ...] = ()
    model: str = ""
    kinds: Set[str] = frozenset()
    trained: bool = False

    def __call__(self, state: Any) -> None:
        """Raises ``ValueError`` for a model of another kind, and for the first option of another kind."""
        kind = input_kind(state.train)
        here = WORDS[kind]
        if self.kinds and kind not in self.kinds:
            takes = " or ".join(WORDS[one] for one in sorted(self.kinds))
            give = f"give the hub name or folder of a pretrained model for {here}"
            give += f", or {_SMALL[kind]} to train one from scratch" if kind in _SMALL else ""
            mend = f"give {takes} as it was trained on" if self.trained else give
            raise ValueError(f"{self.model} takes {takes}, the data are {here}: {mend}.")
        others = [other for other in WORDS if other != kind]
        refused = {name: other for other in others for name in triggers_of(other)}
        refused |= {} if kind == "image" else {"instance": "image"}
        for group in self.options:
            for field in fields(group):
                name, value = field.name, getattr(group, field.name)
                owner = next((other for other in others if name in _OF_KIND[other]), None) if value != field.default else None
                owner = refused.get(value, owner) if name == "corrupt" else owner
                if owner is not None:
                    fit = [*[noise for noise in NOISES if noise not in refused], *triggers_of(kind)]
                    mend = f"give {', '.join(fit[:-1])} or {fit[-1]}" if name == "corrupt" else "leave it out"
                    raise ValueError(f"{name}={value!r} is for {WORDS[owner]}, the data are {here}: {mend}.")


NO_CHECK = CheckKind()

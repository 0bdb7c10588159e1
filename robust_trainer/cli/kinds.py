"""Images or texts: decided by the columns of the data, and what is given for the other kind is refused before any work."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, fields
from typing import Any

from ..corruptions import NOISES, triggers_of
from ..data.texts import is_text
from ..models.text_models import SMALL_TEXT

#: Options that say something about images alone: pixels, their triggers, poisons, squeezes, attacks and views.
FOR_IMAGES = {
    "image_size", "patch_size", "patch_position", "alpha", "blend_std", "blend_picture",
    "squeeze", "squeeze_jpeg_quality", "squeeze_bits", "contrastive_epochs", "contrastive_batch_size", "contrastive_learning_rate",
    "contrastive_temperature", "contrastive_views", "unlabelled", "poison", "craft", "attacks", "eps", "per_class",
}  # fmt: skip
#: Options that say something about texts alone.
FOR_TEXTS = {"max_length"}


@dataclass(frozen=True)
class CheckKind:
    """A stage that refuses, in one line, what does not fit the kind of the data that were loaded.

    Args:
        options: Dataclasses of options, some of which are for one kind alone.
        model: The model as it was given, such as ``run='out'``; '' where there is none.
        kinds: What the model can classify, of ``image`` and ``text``; empty where nothing tells.
        trained: Whether the model is what the data are for; else the data are what a model is to be chosen for.
    """

    options: tuple[Any, ...] = ()
    model: str = ""
    kinds: Set[str] = frozenset()
    trained: bool = False

    def __call__(self, state: Any) -> None:
        """Raises ``ValueError`` for a model of the other kind, and for the first option of the other kind."""
        text = is_text(state.train)
        here, other = ("texts", "images") if text else ("images", "texts")
        if self.kinds and ("text" if text else "image") not in self.kinds:
            small = " or ".join(SMALL_TEXT) if text else "small-cnn or resnet32"
            give = f"give the hub name or folder of a pretrained model for {here}, or {small} to train one from scratch"
            mend = f"give {other} as it was trained on" if self.trained else give
            raise ValueError(f"{self.model} takes {other}, the data are {here}: {mend}.")
        for group in self.options:
            for field in fields(group):
                name, value = field.name, getattr(group, field.name)
                wrong = name in (FOR_IMAGES if text else FOR_TEXTS) and value != field.default
                refused = (*triggers_of("image"), "instance") if text else triggers_of("text")
                if wrong or (name == "corrupt" and value in refused):
                    fit = [*[noise for noise in NOISES if noise not in refused], *triggers_of("text" if text else "image")]
                    mend = f"give {', '.join(fit[:-1])} or {fit[-1]}" if name == "corrupt" else "leave it out"
                    raise ValueError(f"{name}={value!r} is for {other}, the data are {here}: {mend}.")


NO_CHECK = CheckKind()

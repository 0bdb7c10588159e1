"""The triggers by name: what the command line offers, and where each comes from.

A new one is a class (`PixelTrigger`, `TextTrigger` or `AudioTrigger`) and its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .blends import AdaptiveBlendTrigger, BlendTrigger
from .patches import AdaptivePatchTrigger, PatchesTrigger, PatchTrigger
from .pixel_trigger import PixelTrigger
from .signals import LowFrequencyTrigger, QuantisationTrigger, SinusoidTrigger
from .sounds import AudioTrigger, BackgroundTrigger, ToneTrigger
from .texts import SentenceTrigger, SyntaxTrigger, TextTrigger, WordTrigger
from .warping import WarpTrigger

__all__ = ["AUDIO", "IMAGE", "TEXT", "TRIGGERS", "AnyTrigger", "Trigger", "triggers_of"]

IMAGE, TEXT, AUDIO = "image", "text", "audio"
AnyTrigger = PixelTrigger | TextTrigger | AudioTrigger


@dataclass(frozen=True)
class Trigger:
    """A row of `TRIGGERS`.

    Attributes:
        name: how the command line calls it (``--corrupt``).
        summary: what it does, in a few words.
        make: makes the trigger; its keywords are the trigger's settings.
        options: command-line options that are settings of it, option -> keyword; all others go through ``trigger_settings``.
        source: the paper that it is from.
        needs: what the attacker needs beside the data.
        label_rules: the label rules that its paper uses it with; all others work as well.
        kind: of the inputs, image, text or audio.
    """

    name: str
    summary: str
    make: Callable[..., AnyTrigger]
    options: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    needs: str = "nothing"
    label_rules: tuple[str, ...] = ("all-to-one",)
    kind: str = IMAGE


_SEED = {"corrupt_seed": "seed"}
_BLEND = {"alpha": "alpha", "blend_std": "std", "blend_picture": "picture", **_SEED}
_BOTH = ("all-to-one", "multi-target")
#: The triggers by name.
TRIGGERS: Mapping[str, Trigger] = {
    row.name: row
    for row in (
        Trigger("patch", "checkerboard", PatchTrigger, {"patch_size": "size", "patch_position": "position"},
                "Gu et al. 2017 (BadNets)", label_rules=_BOTH),
        Trigger("blend", "noise picture", BlendTrigger, _BLEND, "Chen et al. 2017", label_rules=_BOTH),
        Trigger("patches", "several checkerboards or a grid of them", PatchesTrigger, {"patch_size": "size"},
                "Gu et al. 2017 (BadNets)", label_rules=_BOTH),
        Trigger("sig", "sinusoidal stripes", SinusoidTrigger, source="Barni et al. 2019 (SIG)", label_rules=("clean-label",)),
        Trigger("warp", "smooth warp, with noise mode", WarpTrigger, _SEED, "Nguyen and Tran 2021 (WaNet)", label_rules=_BOTH),
        Trigger("low-frequency", "smooth additive pattern", LowFrequencyTrigger, _SEED, "Zeng et al. 2021 (LF), not optimised"),
        Trigger("quantise", "few colours, dithered", QuantisationTrigger, source="Wang et al. 2022 (BPP)", label_rules=_BOTH),
        Trigger("adaptive-blend", "blend, in training by pieces, with covers", AdaptiveBlendTrigger, _BLEND,
                "Qi et al. 2023 (Adap-Blend)"),
        Trigger("adaptive-patch", "patches, in training one of them, with covers", AdaptivePatchTrigger,
                {"patch_size": "size", **_SEED}, "Qi et al. 2023 (Adap-Patch)"),
        Trigger("word", "rare word in a text", WordTrigger, _SEED, "Kurita et al. 2020", kind=TEXT),
        Trigger("sentence", "sentence in a text", SentenceTrigger, _SEED, "Dai et al. 2019", kind=TEXT),
        Trigger("syntax", "pattern around a text", SyntaxTrigger, source="Qi et al. 2021, no paraphraser", kind=TEXT),
        Trigger("tone", "short sine in a sound", ToneTrigger, _SEED, "Koffas et al. 2022", kind=AUDIO),
        Trigger("background", "noise or a sound mixed in", BackgroundTrigger, _SEED, "Liu et al. 2022 (DABA)", kind=AUDIO),
    )
}  # fmt: skip


def triggers_of(kind: str) -> tuple[str, ...]:
    """Returns the names of the triggers for one kind of input.

    Args:
        kind: image, text or audio.
    """
    return tuple(name for name, row in TRIGGERS.items() if row.kind == kind)

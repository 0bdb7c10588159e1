"""Triggers from the command line: whatever the table holds."""

import numpy as np
import pytest

from robust_trainer.cli.options import CorruptionOptions
from robust_trainer.corruptions import BlendTrigger, PatchTrigger


def test_options_and_settings_make_the_trigger():
    patch = CorruptionOptions(corrupt="patch", patch_size=2, trigger_settings="position=center")
    assert patch.trigger() == PatchTrigger(size=2, position="center")
    assert patch.describe() == "patch (2 pixels, center; multi-target)"
    blend = CorruptionOptions(corrupt="blend", alpha=0.2, corrupt_seed=3, trigger_settings='{"mean": 0.25}')
    assert blend.trigger() == BlendTrigger(alpha=0.2, seed=3, mean=0.25)
    assert blend.describe() == "blend (alpha 0.2 of noise of mean 0.25 and std 0.25, seed 3; multi-target)"
    image = np.full((4, 4), 0.5)
    assert (patch.trigger()(image) != image).sum() == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"corrupt": "patch", "trigger_settings": "sise=2"}, "trigger 'patch' has no setting 'sise': it takes size, position"),
        ({"corrupt": "symmetric", "trigger_settings": "size=2"}, "has no effect without a trigger: give --corrupt patch or blend"),
        ({"corrupt": "blend", "blend_picture": "nowhere.png"}, "'nowhere.png' does not exist"),
    ],
)
def test_mistakes_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        CorruptionOptions(**options).trigger()
    assert "\n" not in str(raised.value)

"""Names are anyone's: neither a terminal nor a page is given anything that it would act upon."""

import io
import re
import sys

import datasets
import numpy as np
import pytest
from helpers.one_line import fails
from helpers.pages import content, run

from robust_trainer.cli.main import main
from robust_trainer.reporting.console import say, show
from robust_trainer.reporting.html import write_report
from robust_trainer.reporting.safe_text import plain, visible

#: What a terminal acts upon: colours, the window's title, a line that is written over, text turned round, a bell, C1, lone halves.
ATTACKS = {
    "ansi": "cat\x1b[31m", "osc": "a\x1b]0;owned\x07b", "over": "fine\rEVIL", "bidi": "\u202egnp.exe", "isolate": "\u2066x\u2069",
    "bell": "b\x07", "c1": "\x9b31mred", "invisible": "ca\u200bt", "tag": "x\U000e0041", "line": "a\u2028b", "half": "\ud800x",
}  # fmt: skip
UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\U000e0000-\U000e007f]"
)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_said_is_safe_and_keeps_its_lines(name, capsys):
    say(f"one\n{ATTACKS[name]}\n\ttwo {ATTACKS[name]}")
    table = show(["class", "n"], [[ATTACKS[name] + "\nforged  100.0", "1"], ["ok", "22"]])
    out = capsys.readouterr().out
    assert not UNSAFE.search(out + table) and "\ufffd" in out and out.count("\n") == 3 and "\n\ttwo" in out
    assert len(table.splitlines()) == 4, "a name with a line end does not make a line of its own"


def test_honest_names_stay_as_they_are(capsys):
    for name in ("Straße", "猫", "क्‍ष", "👩‍🚀", "עברית", "a\tb", "naïve – “x”"):
        assert visible(name) == name
    assert plain("עברית", 20) == "עברית"


def test_a_terminal_without_unicode_is_told_all_the_same(monkeypatch):
    bare = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", bare)
    say("猫 \x1b[2J")
    assert bare.buffer.getvalue() == b"? ?[2J\n"


def test_the_report_shows_names_safe_under_a_policy(tmp_path):
    told = "".join(ATTACKS[name] for name in ATTACKS if name != "half")
    suspect = dict(image=pictures(1)[0], index=7, given=told, predicted=told, truth=told, corrupted=True, kept=0, seen=2, score=1.4)
    facts = content(run(settings={"class": told}))
    facts["options"]["dataset"] = told
    page = write_report(tmp_path / "r.html", facts, suspects=[suspect], suspects_of=told, title=told).read_text(encoding="utf-8")
    assert not UNSAFE.search(page) and "\ufffd]0;owned" in page
    assert """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;""" in page


def pictures(n):
    from PIL import Image

    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)) for _ in range(n)]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A saved data set whose classes have the names above."""
    names = [ATTACKS[name] for name in ATTACKS if name != "half"]
    folder, n = tmp_path_factory.mktemp("hostile"), 4 * len(names)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows = {"image": pictures(n), "label": [i % len(names) for i in range(n)]}
    data = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": data, "test": data.select(range(len(names)))}).save_to_disk(str(folder / "data"))
    return folder / "data"


def test_commands_print_hostile_names_safe(hostile, tmp_path, capfd):
    noisy = ["--corrupt", "symmetric", "--corrupt_rate", "0.5"]
    assert main(["corrupt", "--dataset", str(hostile), *noisy, "--output_dir", str(tmp_path / "bad")]) == 0
    tiny = ["--num_train_epochs", "1", "--use_cpu", "--method", "prl", "--noise_rate", "0.2"]
    assert main(["train", "--dataset", str(hostile), *noisy, *tiny, "--output_dir", str(tmp_path / "run")]) == 0
    assert main(["audit", str(tmp_path / "run"), "--force", "true"]) == 0
    told = capfd.readouterr()
    assert "\ufffd[31m" in told.out and not UNSAFE.search(re.sub("\r(?!EVIL)|\x1b\\[A", "", told.out + told.err))
    for page in ("report.html", "audit/report.html", "audit/MODEL_CARD.md", "audit/cleaned/README.md"):
        assert not UNSAFE.search((tmp_path / "run" / page).read_text(encoding="utf-8")), page


def test_errors_are_safe(hostile, tmp_path, capsys):
    names = "\x1b[31mx:cat\u202e"
    told = fails(capsys, "corrupt", "--dataset", str(hostile), "--corrupt", "asymmetric", "--class_map", names, "--output_dir", "o")
    assert not UNSAFE.search(told)
    assert not UNSAFE.search(fails(capsys, "\x1b]0;owned\x07")) and len(fails(capsys, "train", "--" + "x" * 10**6)) < 5000

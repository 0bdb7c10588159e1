"""The audit's report and model card: the same figures, one file of at most 5 MB, safe on hostile names, texts and images."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import struct
import subprocess
import warnings
import zlib
from unittest import mock

import datasets
import numpy as np
import pytest
import yaml
from helpers.audits import SCRIPT, image_data, make_audit, png
from helpers.pages import card, content, report, run, tables
from helpers.tables import every_row
from PIL import Image, ImageFile

from robust_trainer.audit.pictures import cells, heat_map, pattern_picture
from robust_trainer.audit.report import write_audit_report
from robust_trainer.audit.result import GROUPS
from robust_trainer.audit.samples import ALL_PIXELS, Unshown, encode, show, thumbnail
from robust_trainer.audit.summary import summarise
from robust_trainer.reporting.figures import drawable
from robust_trainer.reporting.safe_text import plain


def test_what_came_from_outside_is_escaped(tmp_path):
    names = [SCRIPT, "$\\frac$", 'x" onload="alert(1)', "a|b`c\n# d\u202egnp.exe\x00"]
    data = image_data([{"bytes": png(seed=i), "path": f"dir/{SCRIPT[:8]}{i}.png"} for i in range(240)], text=[SCRIPT + "!"] * 240)
    audit = make_audit(names=names, told=SCRIPT)
    hostile = content(run(SCRIPT, settings={"x": SCRIPT}))
    options = dict(command=SCRIPT, title=SCRIPT, environment={SCRIPT: SCRIPT + '"'})
    page, parsed = report(tmp_path, audit, data=data, content=hostile, **options)
    assert "<script" not in page and parsed.text.count(SCRIPT) > 10 and SCRIPT + "!" in parsed.text
    assert "<script0.png" not in page and "$\\frac$" in parsed.text and 'x" onload="alert(1)' in parsed.text
    assert "\u202e" not in page and "\x00" not in page and "a|b`c # d\ufffdgnp.exe\ufffd" in parsed.text
    text = card(tmp_path, audit, content=hostile, command=SCRIPT, model_name=SCRIPT + "\n# x", environment={SCRIPT: "`|`"})
    assert "<script" not in text and "\n# x" not in text and "\u202e" not in text and "&lt;script&gt;" in text
    assert "a\\|b\\`c \\# d\ufffdgnp.exe\ufffd" in text and "\\$\\\\frac\\$" in text
    assert {tag for tag in re.findall(r"<(/?\w+)", text)} == {"pre", "code", "/code", "/pre"}
    heading = re.findall(r"^# .*", text, re.M)
    assert len(heading) == 1


def test_long_and_broken_strings_are_cut():
    assert plain("a\t b\r\nc", 10) == "a b c" and plain("x" * 50, 10) == "x" * 9 + "\u2026"
    assert plain("x" * 10**7, 5) == "xxxx\u2026"
    assert plain("\ud800\u2066\u200b\ufeff", 10) == "\ufffd" * 4  # a lone surrogate would not encode
    assert plain("\U0001f469\u200d\U0001f4bb", 10) == "\U0001f469\u200d\U0001f4bb"
    assert plain("  ", 5) == "" and len(plain("a " * 999, 400)) <= 400 and plain("a" + " " * 99, 5).startswith("a")


def test_card_and_report_give_the_same_figures(tmp_path):
    audit = make_audit(truth=True)
    known = content(run())
    _, parsed = report(tmp_path, audit, content=known)
    text = card(tmp_path, audit, content=known)
    rows = tables(text)
    assert len(rows) > 30
    for row in rows:
        for cell in row:
            assert set(cell) == {"-"} or cell in ("figure", "value", "setting", "version") or cell in parsed.text, cell
    flat = {row[0]: row[1] for row in rows if len(row) == 2}
    assert flat["samples"] == "240" and flat["flagged"] == "60 (25.0 %)" and flat["estimated noise rate"] == "25.0 %"
    assert flat["flagged of the corrupted (recall)"] == "60 (100.0 %)" and flat["flagged from a suspicion of"] == "0.500"
    mislabelled = audit.table["group"][:].count("mislabelled")
    assert ["mislabelled", str(mislabelled), f"{100 * mislabelled / 240:.1f}"] in rows
    assert ["prl-at-memory", "98.1", "97.2"] == next(r for r in rows if "97.2" in r)[:3]


def test_figures_are_those_of_a_slow_count():
    audit = make_audit(n=97, classes=5)
    rows = audit.table.to_list()
    told = summarise(audit)
    assert sum(c.n for c in told.classes) == told.n == 97 and [c.flagged for c in told.classes] == sorted(
        (c.flagged for c in told.classes), reverse=True
    )
    for c in told.classes:
        own = [row for row in rows if row["label"] == c.number]
        hits = [row for row in own if row["flagged"]]
        assert (c.n, c.flagged) == (len(own), len(hits))
        assert c.groups == tuple(sum(row["group"] == g for row in own) for g in GROUPS)
        assert c.suggestion == f"class {(c.number - 1) % 5} ({len(hits)})"
    for pair in told.pairs:
        given, true = int(pair.given[-1]), int(pair.suggested[-1])
        assert pair.n == sum(row["flagged"] and row["label"] == given and row["suggested_label"] == true for row in rows)
        assert pair.share == f"{100 * audit.transition[true, given]:.1f}"


def test_front_matter(tmp_path):
    for options, tag in (({}, None), ({"content": content(run())}, "image-classification"), ({"pipeline_tag": "a: b\n- c"}, None),
                         ({"pipeline_tag": "text-classification"}, "text-classification")):  # fmt: skip
        text = card(tmp_path, make_audit(), **options)
        told = yaml.safe_load(text.split("---\n")[1])
        assert text.startswith("---\n") and told["library_name"] == "transformers" and told.get("pipeline_tag") == tag
        assert all(isinstance(name, str) for name in told["tags"]) and "model-index" not in told and "metrics" not in told


@pytest.mark.parametrize("side", [96, pytest.param(500, marks=pytest.mark.slow)])
def test_noise_images_do_not_make_it_larger_than_5_mb(tmp_path, side):
    pool = [png((side, side), seed) for seed in range(4)]
    data = image_data([{"bytes": pool[i % 4], "path": None} for i in range(300)])
    audit = make_audit(n=300, classes=30, rate=1.0)
    page, _ = report(tmp_path, audit, data=data, per_class=10)
    pictures = page.count("data:image/jpeg")
    assert (pictures == 240 + 60) == (side == 500) and pictures > 200
    assert len(page) > 2_500_000 or side == 500
    if side == 96:
        assert f"{300 - pictures} samples are without picture or text" in page


def test_the_budget_of_bytes():
    shown = show(image_data([{"bytes": png((96, 96)), "path": None}] * 30), range(30), 30, budget=100_000)
    fit = [s for s in shown if s.uri]
    assert 0 < len(fit) < 30 and sum(len(s.uri) for s in fit) <= 100_000 and sum(s.left_out for s in shown) == 30 - len(fit)


def test_hostile_texts_do_not_make_it_larger_than_5_mb(tmp_path):
    data = datasets.Dataset.from_dict({"text": ['"' * 1700] * 3000, "question": ["'" * 500] * 3000})
    audit = make_audit(n=3000, classes=100, names=['"' * 500] * 100, rate=1.0)
    run_of = content(run('"' * 9000, settings={f"{i}" * 99: "'" * 9999 for i in range(9)}))
    quotes = {str(i): "'" * 10**5 for i in range(300)}
    options = dict(data=data, content=run_of, command="'" * 10**6, title="'" * 10**6, environment=quotes)
    _, parsed = report(tmp_path, audit, per_class=10, **options)
    assert "70 more classes" in parsed.text and "without picture" not in parsed.text


def test_texts_that_are_left_out_are_told(tmp_path, monkeypatch):
    data = datasets.Dataset.from_dict({"text": ['"' * 1700] * 240})
    monkeypatch.setattr("robust_trainer.audit.report.show", lambda *args: show(*args, budget=20_000))
    page, parsed = report(tmp_path, make_audit(), data=data)
    assert page.count('class="text"') == 20_000 // (399 * 6 + 3 + 4) and "24 samples are without picture or text" in parsed.text


def test_the_pattern_of_triggered_samples(tmp_path):
    pattern = np.zeros((8, 8, 1), np.float32)
    pattern[6:, 6:] = -0.25
    page, parsed = report(tmp_path, dataclasses.replace(make_audit(), pattern=pattern))
    assert "The largest difference is 0.250" in parsed.text
    uri = re.search(r'class="pattern" src="data:image/png;base64,([^"]+)', page).group(1)
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
    assert (found[6:, 6:] == 0).all() and (found[:6] == 128).all()
    for nothing in (None, pattern * 0, np.ones((8, 8, 7))):
        assert pattern_picture(nothing) is None
    assert "triggered samples share" not in report(tmp_path, make_audit())[1].text


def bomb(side):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@every_row(
    ("value", "reason"),
    [
        ({"bytes": bomb(60_000), "path": None}, "has more pixels"),
        ({"bytes": bomb(8_000), "path": None}, "has 8000 x 8000 pixels"),
        ({"bytes": png()[:90], "path": None}, "is cut short"), ({"bytes": b"no image", "path": None}, "is damaged"),
        ({"bytes": b"", "path": ""}, "is empty"), (None, "is missing"), ({"bytes": None, "path": "nowhere/x.png"}, "not found"),
        ({"bytes": None, "path": "/dev/zero"}, "is no file"), ({"bytes": None, "path": "a\0b"}, "not found"),
        ({"bytes": None, "path": "https://example.invalid/x.png"}, "is an address"),
        ({"bytes": encoded(Image.new("RGB", (9, 9)), "PCX"), "path": None}, "is damaged, or no PNG"),
        ({"bytes": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "path": None}, "is damaged, or no PNG"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_shown_is_a_reason(value, reason):
    decode = ImageFile.ImageFile.load
    with warnings.catch_warnings(), mock.patch.object(ImageFile.ImageFile, "load", autospec=True, side_effect=decode) as load:
        warnings.simplefilter("error")
        with pytest.raises(Unshown, match=reason):
            thumbnail(value)
    assert not load.called or reason == "is cut short"  # what is too large is told by its header


def test_placeholders_in_the_report_and_pixels_of_all_images_together(tmp_path, monkeypatch):
    values = [{"bytes": bomb(60_000), "path": None}, {"bytes": b"no image", "path": "x.png"}, None, {"bytes": png(), "path": None}]
    audit = make_audit(n=4, classes=2, rate=1.0)
    page, parsed = report(tmp_path, audit, data=image_data(values))
    assert page.count('class="none"') == 3 and "has more pixels than" in parsed.text and "is missing" in parsed.text
    assert ALL_PIXELS >= 20 * 50_000_000
    monkeypatch.setattr("robust_trainer.audit.samples.ALL_PIXELS", 100)
    shown = show(image_data([{"bytes": png(), "path": None}] * 3), range(3), 3)
    assert [bool(s.uri) for s in shown] == [True, False, False] and "8 x 8" in shown[1].reason


@every_row("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_thumbnails_of_every_mode(mode):
    if mode in ("I;16", "I", "F"):
        levels = np.linspace(0, 4000, 300 * 200).reshape(200, 300)
        image = Image.fromarray(levels.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    else:
        image = Image.new("RGB", (300, 200), (200, 30, 30)).convert("L" if mode == "LA" else "RGB").convert(mode)
    kind = "PNG" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "TIFF"
    picture, decoded = thumbnail({"bytes": encoded(image, kind), "path": None})
    assert picture.size == (96, 64) and picture.mode in ("L", "RGB") and not picture.info and decoded == 60_000
    assert encode(picture).startswith("data:image/")
    if mode in ("I;16", "I", "F"):  # of integers and floats nobody knows what is white, of 16 bits the format says it
        assert np.asarray(picture).min() < 5
        assert np.asarray(picture).max() == 15 if mode == "I;16" else np.asarray(picture).max() > 250


def test_thumbnails_transparent_turned_animated_and_without_metadata():
    clear = Image.new("RGBA", (50, 50), (255, 0, 0, 0))
    assert thumbnail({"bytes": encoded(clear, "PNG"), "path": None})[0].getpixel((9, 9)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "secret place"
    wide = encoded(Image.new("RGB", (4000, 2000), "blue"), "JPEG", exif=exif, comment=b"secret")
    picture, decoded = thumbnail({"bytes": wide, "path": None})
    assert picture.size == (48, 96) and decoded < 4000 * 2000 / 10 and not picture.info
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    first = thumbnail({"bytes": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "path": None})[0]
    assert first.getpixel((5, 5)) == (255, 0, 0)
    for kind in ("WEBP", "BMP", "PPM"):
        assert thumbnail({"bytes": encoded(frames[0], kind), "path": None})[0].size == (40, 40)


def test_pictures_are_those_of_the_rows_and_no_decoder_or_transform_runs(tmp_path):
    colours = [(i, 255 - i, 0) for i in range(60)]
    folder = tmp_path / "images"
    folder.mkdir()
    for i, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(folder / f"{i}.png")
    data = image_data([{"bytes": None, "path": str(folder / f"{i}.png")} for i in range(60)])

    def never(batch):
        raise AssertionError("the transform ran")

    data = data.select(range(59, -1, -1)).with_transform(never)
    shown = show(data, [3, 57, 0], 60)
    assert [s.file for s in shown] == ["56.png", "2.png", "59.png"] and all(s.tiny for s in shown)
    for s, i in zip(shown, (56, 2, 59)):
        assert s.uri == encode(Image.new("RGB", (8, 8), colours[i]))


def test_data_of_other_kinds(tmp_path):
    audit = make_audit(n=8, classes=2, rate=0.5)
    features = datasets.Features({name: datasets.Value("string") for name in ("id", "premise", "hypothesis")})
    columns = {"id": ["i"] * 8, "premise": [f"p{i} " + "x" * 500 for i in range(8)], "hypothesis": [None] * 8}
    texts = datasets.Dataset.from_dict(columns, features=features)
    _, parsed = report(tmp_path, audit, data=texts)
    flagged = audit.flagged
    assert all(f"p{i} x" in parsed.text for i in flagged) and "x" * 401 not in parsed.text
    assert "hypothesis: missing" in parsed.text
    arrays = datasets.Dataset.from_dict({"pixel_values": np.zeros((8, 3, 4, 4)), "label": [0] * 8})
    for data in (None, arrays):
        page, parsed = report(tmp_path, audit, data=data)
        assert f"#{flagged[0]}, kept 1 of 4" in parsed.text and 'class="none"' not in page and 'class="text"' not in page
    with pytest.raises(ValueError, match="data has 7 rows, the audit 8") as error:
        report(tmp_path, audit, data=texts.select(range(7)))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="per_class=0"):
        report(tmp_path, audit, per_class=0)
    with pytest.raises(ValueError, match="expected a datasets.Dataset"):
        report(tmp_path, audit, data=[1] * 8)


def test_regression(tmp_path):
    audit = make_audit(n=40, classes=0)
    data = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(40)], "label": [i + 0.25 for i in range(40)]})
    page, parsed = report(tmp_path, audit, data=data, curves=[{"epoch": 1.0, "kept_fraction": 0.5}])
    worst = audit.flagged[0]
    assert f"row {worst} " in parsed.text and f"given {worst}.25" in parsed.text and "Kept of all samples" in parsed.text
    assert "- (no classes)" in parsed.text and "learned" not in parsed.text
    assert "Classes" not in parsed.text and "suggested" not in parsed.text
    assert "### Classes" not in card(tmp_path, audit)


def test_many_classes_one_class_and_nothing_flagged(tmp_path):
    page, parsed = report(tmp_path, make_audit(n=600, classes=150))
    assert "50 classes with the most flagged samples, of 150" in parsed.text
    assert page.count("<td>class ") <= 50 + 20 and 'alt="Heat map' in page
    assert "more classes with flagged samples are not shown" in page
    _, parsed = report(tmp_path, make_audit(classes=1, rate=0.0))
    assert "None of the 240 samples is flagged." in parsed.text and "None is flagged; these are the highest" in parsed.text
    assert "which class is given" not in parsed.text.lower() and "Most frequent suggestions" not in parsed.text
    text = card(tmp_path, make_audit(rate=0.0))
    assert "None of the 240 samples is flagged." in text and "Most frequent" not in text


def test_truth_and_samples_without_a_class(tmp_path):
    page, parsed = report(tmp_path, make_audit(truth=True))
    assert 'class="bad"' in page and 'class="good"' not in page and "Red frame" in parsed.text and "precision" in parsed.text
    page, parsed = report(tmp_path, make_audit())
    assert 'class="bad"' not in page and "Red frame" not in parsed.text and "truth" not in parsed.text
    half = make_audit(label=np.where(np.arange(240) % 2, np.arange(240) % 4, -1))
    _, parsed = report(tmp_path, half)
    assert "samples without a known class 120" in parsed.text and "given no class" in parsed.text


def test_only_the_most_suspicious_of_a_class_are_shown_in_order(tmp_path):
    audit = make_audit()
    _, parsed = report(tmp_path, audit, per_class=3)
    told = [int(i) for i in re.findall(r"#(\d+), kept", parsed.text)]
    label, suspicion = audit.column("label"), audit.column("suspicion")
    expected = []
    for c in summarise(audit).classes:
        rows = [i for i in np.argsort(-suspicion, kind="stable") if label[i] == c.number][:3]
        expected += rows
    assert told == [int(i) for i in expected] and len(told) == 12


def test_plots_bear_any_name_and_number():
    names = ["$\\frac$", "_x", "\u732b" * 30, *(f"c{i}" for i in range(27))]
    matrix = np.full((30, 30), np.nan)
    matrix[0, 1] = 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert heat_map(matrix, names).startswith("data:image/png") and heat_map(np.eye(60), names * 2)
    assert drawable("_a\u732b") == "?a?" and drawable("\u00e9$x$") == "\u00e9$x$"


def test_cells_are_readable_and_darker_for_more():
    matrix = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.0004, np.nan, 0.9996]])
    shown = cells(matrix)
    words = [[words for words, _ in row] for row in shown]
    assert words == [["70.0", "20.0", "10.0"], ["\u00b7", "100.0", "\u00b7"], ["<0.1", "\u00b7", "100.0"]]
    assert shown[0][1][1] == "background: rgb(169, 50, 38); color: #fff" and "rgb(255, 255, 255)" in shown[1][0][1]
    for row in shown:
        for _, css in row:
            ground = [int(v) for v in re.findall(r"\d+", css.split(";")[0])]
            ink = [255] * 3 if css.endswith("#fff") else [0x1B, 0x26, 0x31]
            assert contrast(ground, ink) > 4.5


def contrast(a, b):
    """WCAG 2's contrast ratio of two colours."""
    light = []
    for colour in (a, b):
        parts = [v / 255 / 12.92 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in colour]
        light.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05)
    return max(light) / min(light)


def test_an_error_leaves_the_old_report(tmp_path):
    report(tmp_path, make_audit())
    before = (tmp_path / "a.html").read_bytes()
    with pytest.raises(ValueError):
        report(tmp_path, make_audit(), data=datasets.Dataset.from_dict({"text": ["x"]}))
    assert (tmp_path / "a.html").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.html"]


@pytest.mark.slow
def test_a_million_rows(tmp_path):
    audit = make_audit(n=1_000_000, classes=1000, rate=0.1)
    _, parsed = report(tmp_path, audit)
    card(tmp_path, audit)
    assert "100,000 (10.0 %)" in parsed.text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("width", [400, 1000])
def test_in_a_browser(tmp_path, width):
    long = ["Lastkraftwagenanhaenger" * 3, SCRIPT, "w w w w w", *(f"class {i}" for i in range(9))]
    data = image_data([{"bytes": png(seed=i), "path": f"{'n' * 200}{i}.png"} for i in range(240)], text=["x" * 999] * 240)
    known = content(run(settings={"x" * 80: "y" * 300}))
    path = write_audit_report(tmp_path / "a.html", make_audit(classes=12, names=long, truth=True), data=data, content=known)
    picture = tmp_path / "a.png"
    browse(tmp_path, path, width, f"--screenshot={picture}")
    with Image.open(picture) as image:
        assert image.width == width and len(image.convert("RGB").getcolors(10**6)) > 50
    page = path.read_text()
    # a copy that may run a script, which tells how wide it has become; in a frame, as windows are 500 wide at least
    script = "<script>parent.postMessage([innerWidth, document.documentElement.scrollWidth, document.scripts.length].join(), '*')"
    (tmp_path / "copy.html").write_text(re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", script + "</script></body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(f"""<body><script>onmessage = told => {{ document.body.title = told.data }}</script>
        <iframe src="copy.html" style="width: {width}px; height: 900px; border: 0"></iframe>""")
    told = browse(tmp_path, frame, 1200, "--dump-dom", "--virtual-time-budget=3000")
    inner, scroll, scripts = map(int, re.search(r'<body title="(\d+),(\d+),(\d+)"', told).groups())
    assert inner == width and scroll <= inner and scripts == 1


def browse(tmp_path, path, width, *what):
    quiet = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --hide-scrollbars"
    options = [*quiet.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},1400"]
    done = subprocess.run(["chromium", *options, *what, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout

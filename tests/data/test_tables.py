"""Files of texts and labels: what is read is what they hold, cell for cell; what would be shifted or swallowed is refused."""

import csv
import json
import random

import datasets
import pytest
from PIL import Image

from robust_trainer.data.load import label_names, load_data
from robust_trainer.data.texts import is_text

ROWS = [(f"film number {i}", ("bad", "good")[i % 2]) for i in range(12)]


@pytest.fixture
def said(monkeypatch):
    """What was said, one line each."""
    lines = []
    for module in ("splits", "load", "tables", "texts"):
        logger = __import__(f"robust_trainer.data.{module}", fromlist=["logger"]).logger
        monkeypatch.setattr(logger, "warning", lambda text, *args: lines.append(text % args if args else text))
    return lines


def write(path, rows=ROWS, names=("text", "label"), **dialect):
    with open(path, "w", newline="", encoding=dialect.pop("encoding", "utf-8")) as file:
        csv.writer(file, **dialect).writerows([names, *rows])
    return str(path)


def read_back(data):
    """All rows of both splits, text and name of the class, sorted."""
    names = label_names(data["train"])
    return sorted((row["text"], names[row["label"]]) for split in data.values() for row in split)


def refused(path, *words, **options):
    with pytest.raises(ValueError) as error:
        load_data(str(path), **options)
    assert "\n" not in str(error.value), error.value
    for word in words:
        assert word in str(error.value), error.value


NASTY = [
    "NA",
    "null",
    "None",
    "nan",
    "5",
    "-",
    " x ",
    'she said "no", twice',
    "two\nlines",
    "a,b;c\td",
    "'",
    "é ü 漢字",
    "\\n",
    "#x",
]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_cells_come_back_as_they_were_written(ending, tmp_path, said):
    """Words that some readers take for missing values, quotes, separators, line breaks and every script."""
    nasty = [text for text in NASTY if ending != "tsv" or not ("\n" in text and "\t" in text)]
    random.seed(1)
    rows = [(" ".join(random.choices(nasty, k=3)), random.choice(("yes", "NA", "null"))) for _ in range(30)]
    rows += [(text, "NA") for text in nasty]
    rows = [row for row in rows if ending != "tsv" or not {"\t", "\n"} <= set(row[0])]
    path = tmp_path / f"data.{ending}"
    table = [{"text": text, "label": label} for text, label in rows]
    if ending in ("csv", "tsv"):
        write(path, rows, delimiter="\t" if ending == "tsv" else ",")
    elif ending == "parquet":
        datasets.Dataset.from_list(table).to_parquet(str(path))
    else:
        path.write_text("\n".join(map(json.dumps, table)) if ending == "jsonl" else json.dumps(table), encoding="utf-8")
    data = load_data(str(path))
    assert read_back(data) == sorted(rows)
    assert len(data["test"]) == len(rows) // 5 and is_text(data["train"])
    assert len(said) == 1 and "drawn by split_seed" in said[0]


def test_a_mark_at_the_start_of_a_file_is_no_part_of_a_name(tmp_path, said):
    assert read_back(load_data(write(tmp_path / "a.csv", encoding="utf-8-sig"))) == sorted(ROWS)


def test_a_semicolon_separates_where_the_first_line_has_no_comma(tmp_path, said):
    assert read_back(load_data(write(tmp_path / "a.csv", delimiter=";"))) == sorted(ROWS)
    assert "';' separates cells" in said[0]


@pytest.mark.parametrize("names", [("train.csv", "dev.csv"), ("train.tsv", "sub/test.tsv"), ("a.csv", "b-validation.csv")])
def test_a_folder_has_the_splits_that_its_files_name(names, tmp_path, said):
    (tmp_path / "sub").mkdir()
    for name, rows in zip(names, (ROWS[:8], ROWS[8:])):
        write(tmp_path / name, rows, delimiter="\t" if name.endswith("tsv") else ",")
    (tmp_path / "dataset_infos.json").write_text("{}")
    data = load_data(str(tmp_path))
    assert data["train"]["text"][:] == [text for text, _ in ROWS[:8]]
    assert data["test"]["text"][:] == [text for text, _ in ROWS[8:]] and not said


def test_a_test_file_without_labels_is_not_tested_on(tmp_path, said):
    write(tmp_path / "train.csv")
    write(tmp_path / "test.csv", [(text, "") for text, _ in ROWS])
    data = load_data(str(tmp_path))
    assert (len(data["train"]), len(data["test"])) == (10, 2) and "no test split with labels" in said[0]


def test_files_that_would_be_misread_are_refused(tmp_path):
    """A comma more shifts all cells in pandas; a quote that nobody closes swallows the rows behind it."""
    bare = tmp_path / "bare.csv"
    bare.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS) + "good, but long,good\n")
    refused(bare, "3 cells in line 14", "put quotes")
    bare.write_text("text,label\nfine,good\nonly a text\n")
    refused(bare, "1 cells in line 3")
    bare.write_text("text,label,\n" + "fine,good\n" * 3)
    refused(bare, "2 cells in line 2")
    quote = tmp_path / "quote.tsv"
    quote.write_text('text\tlabel\n"fine\t1\nbad\t0\n' * 5)
    refused(quote, "quote.tsv", "mend the quotes")
    quote.write_text('text\tlabel\n"fine\t1\nbad\t0\nso"\t1\n')
    refused(quote, "closed only 2 lines later", "line 4")
    refused(write(tmp_path / "latin.csv", [("schön", "good")], encoding="latin-1"), "no UTF-8 (byte 0xf6)")
    refused(write(tmp_path / "twice.csv", names=("text", "text")), "'text' twice")
    refused(write(tmp_path / "none.csv", []), "no rows")
    (tmp_path / "empty.csv").touch()
    refused(tmp_path / "empty.csv", "no rows")
    for name, text in (
        ("broken.jsonl", '{"text": "a", "label": 1}\nnonsense\n'),
        ("empty.json", ""),
        ("lists.json", json.dumps({"data": [{"text": "a", "label": 1}]})),
        ("columns.json", json.dumps({"text": ["a", "b"], "label": [1, 2]})),
        ("broken.parquet", "no parquet"),
    ):
        (tmp_path / name).write_text(text)
        refused(tmp_path / name, f"dataset={str(tmp_path / name)!r}", name)
    refused(tmp_path / "nothing.csv", "does not exist")
    (tmp_path / "text.txt").write_text("a")
    refused(tmp_path / "text.txt", "no table", ".csv")


def test_splits_in_files_of_several_kinds_are_refused(tmp_path):
    write(tmp_path / "train.csv")
    (tmp_path / "test.jsonl").write_text('{"text": "a", "label": "good"}\n')
    refused(tmp_path, "'train.csv' and 'test.jsonl'")
    (tmp_path / "test.jsonl").rename(tmp_path / "notes.jsonl")
    assert len(load_data(str(tmp_path))["test"]) == 2
    (tmp_path / "train.csv").rename(tmp_path / "dev.csv")
    refused(tmp_path, "only dev csv files", "add train.csv")


@pytest.mark.parametrize(
    "columns, chosen",
    [
        ({"sentence": "a b", "idx": 3}, "sentence"),
        ({"id": "x1", "what": "a b"}, "what"),
        ({"title": "a", "content": "a b"}, "content"),
        ({"one": "a", "two": "b"}, None),
        ({"premise": "a", "hypothesis": "b"}, None),
        ({"text": "a", "sentence": "b"}, None),
        ({"file_name": "a.png"}, None),
        ({"number": 3}, None),
    ],
)
def test_which_column_holds_the_texts(columns, chosen, tmp_path, said):
    rows = [{**{name: f"{value} {i}" if isinstance(value, str) else i for name, value in columns.items()}, "label": i % 2}
            for i in range(10)]  # fmt: skip
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    if chosen is None:
        refused(path, "set ", *columns, "text_column")
        return
    data = load_data(str(path))
    assert sorted(data["train"]["text"][:] + data["test"]["text"][:]) == sorted(row[chosen] for row in rows)
    named = [line for line in said if "text_column" in line]
    assert named == (["the texts are read from column 'content': for 'title' give text_column."] if "title" in columns else [])
    for name, reason in (("nobody", "not in the data set"), ("label", "column of the labels")):
        refused(path, reason, text_column=name)
    refused(path, "both given", text_column=chosen, image_column=chosen)


def test_a_column_whose_place_is_taken_is_told(tmp_path, said):
    rows = [{"text": f"short {i}", "sentence": f"long {i}", "label": i, "mood": i % 2} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_data(str(tmp_path / "a.jsonl"), text_column="sentence", label_column="mood")
    assert all(text.startswith("long") for text in data["train"]["text"]) and label_names(data["train"]) == ["0", "1"]
    assert [line for line in said if "left out" in line] == [
        "column 'text' is left out, since 'sentence' is read in its place.",
        "column 'label' is left out, since 'mood' is read in its place.",
    ]


def test_missing_texts_are_refused_and_empty_ones_are_told(tmp_path, said):
    path = tmp_path / "data.jsonl"

    def rows(*texts):
        table = [{"text": text, "label": i % 2} for i, text in enumerate([*texts, *["fine"] * 10])]
        path.write_text("\n".join(map(json.dumps, table)))
        return path

    refused(rows("a", None, "b"), "'text' is missing", "row 1:")
    refused(rows(*[None] * 20), "rows (", ", ...)")
    load_data(str(rows("a", "", " \n")), test_split=None)
    assert sum("is empty in " in line and "nothing can be learned" in line for line in said) in (1, 2)
    path.write_text("\n".join(json.dumps({"text": "", "label": i % 2}) for i in range(10)))
    refused(path, "empty in all")
    refused(write(tmp_path / "cells.csv", [("", "bad"), *ROWS]), "'text' is missing", "row 0:")


def test_images_win_over_texts_unless_a_column_is_named(tmp_path, said):
    pictures = [Image.new("L", (4, 4), i) for i in range(10)]
    table = {"picture": pictures, "caption": [f"number {i}" for i in range(10)], "label": [0, 1] * 5}
    features = datasets.Features(
        {"picture": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.Value("int64")}
    )
    path = str(tmp_path / "both.parquet")
    datasets.Dataset.from_dict(table, features=features).to_parquet(path)
    data = load_data(path)
    assert not is_text(data["train"]) and {"image", "caption"} <= set(data["train"].column_names)
    said.clear()
    texts = load_data(path, text_column="caption")
    assert is_text(texts["train"]) and set(texts["train"].column_names) == {"text", "label"}
    assert "the images of 'picture' are not" in said[0]
    assert texts["test"]["label"][:] == data["test"]["label"][:]  # the same rows are held out


def test_labels_and_texts_whose_columns_have_each_others_names(tmp_path):
    (tmp_path / "rows.csv").write_text("label,text,image\n" + "".join(f"some words {i},{'ab'[i % 2]},x.png\n" for i in range(20)))
    data = load_data(str(tmp_path / "rows.csv"), text_column="label", label_column="text")
    assert data["train"].column_names == ["text", "label", "image"] and set(data["train"].features["label"].names) == {"a", "b"}
    assert data["train"][0]["text"].startswith("some words ")
    (tmp_path / "more.csv").write_text("text,target\n" + "".join(f"{'ab'[i % 2]},some words {i}\n" for i in range(20)))
    data = load_data(str(tmp_path / "more.csv"), label_column="text")
    assert data["test"].column_names == ["label", "text"] and data["test"].features["label"].names == ["a", "b"]

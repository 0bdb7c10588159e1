"""Tables and figures of `crafted_noise.py`'s runs.

python benchmarks/crafted_noise_report.py runs/*.jsonl                         tables in markdown
python benchmarks/crafted_noise_report.py runs/*.jsonl --figures docs/figures  and crafted_*.png
python benchmarks/crafted_noise_report.py --paths <folder of MNIST's parquet files> --figures docs/figures
                                   path lengths, and the closest and farthest images of a clean network (figures 13, 14, 16)
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from common import cell, machines_line, read_results
from matplotlib.figure import Figure

DATA = ("digits", "mnist01", "mnist")
SHORT = {
    "class-graph-greedy": "greedy", "class-graph-dominating-set": "dominating set", "gaussian-density": "Gaussian density",
    "adversarial-path": "path, middle to far", "min-colouring": "min-colouring", "random": "random", "clean": "clean labels",
}  # fmt: skip
Runs = dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]]


def grouped(rows: list[dict[str, Any]]) -> Runs:
    """(data, experiment) -> name of the choice -> seed -> run."""
    out: Runs = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        craft = row["craft"]
        name = SHORT.get(craft["strategy"], craft["strategy"])
        if craft.get("space"):
            name += f", {craft['space']}"
        if "bucket" in craft:
            name += f" #{craft['bucket'] + 1}"
        out[row["protocol"]["data"], row["experiment"]][name][row["seed"]] = row
    return out


def values(runs: dict[int, dict[str, Any]], figure: str) -> list[float]:
    """The figure of each seed, in percent."""
    return [100 * run[figure] for _, run in sorted(runs.items()) if run[figure] is not None]


def against(runs: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], figure: str) -> str:
    """The mean difference to the baseline, seed by seed, with its standard error."""
    both = sorted(set(runs) & set(base))
    away = [100 * (runs[s][figure] - base[s][figure]) for s in both]
    if len(away) < 2:
        return "–"
    return f"{statistics.fmean(away):+.1f} ± {statistics.stdev(away) / len(away) ** 0.5:.1f}"


def table(found: dict[str, dict[int, dict[str, Any]]], figure: str, told: str, base: str = "random") -> list[str]:
    """One row for each choice: fitted, clean accuracy and the adversarial figure, and its difference to random flips."""
    out = [f"| labels flipped | runs | memorised % | clean % | {told} | against random |", "|---|---|---|---|---|---|"]
    for name, runs in found.items():
        learned = values(runs, "memorised")
        cells = [
            name, str(len(runs)), f"{statistics.fmean(learned):.1f}" if learned else "–", cell(values(runs, "clean"), 1),
            cell(values(runs, figure), 1), "–" if name in (base, "clean labels") else against(runs, found.get(base, {}), figure),
        ]  # fmt: skip
        out.append("| " + " | ".join(cells) + " |")
    return out


def report(rows: list[dict[str, Any]]) -> str:
    """All tables in markdown."""
    runs, out = grouped(rows), [machines_line(rows), ""]
    for data in DATA:
        protocols = {str(sorted(r["protocol"].items())): r["protocol"] for r in rows if r["protocol"]["data"] == data}
        for p in protocols.values():
            out += [
                f"### {data}: {p['train_size']} training and {p['test_size']} test images, plain-cnn of width {p['width']}, PGD-"
                f"{p['attack_steps']} in l_inf, eps {p['eps']:g}", "",
            ]  # fmt: skip
        for experiment, figure, told in (
            ("strategies", "untargeted", "adversarial accuracy %"),
            ("extra", "untargeted", "adversarial accuracy %"),
            ("paths", "untargeted" if data == "mnist01" else "targeted", "adversarial accuracy %"),
            ("density", "targeted", "accuracy under 5 to 6 %"),
            ("single", "targeted", "accuracy under 5 to 6 %"),
        ):
            found = dict(runs.get((data, experiment), {}))
            if not found:
                continue
            if experiment == "extra":
                other = runs.get((data, "strategies")) or runs.get((data, "paths"), {})
                found = {
                    "clean labels": other.get("clean labels", {}), "random": other.get("random", {}),
                    "random, to an extra class": found["random"],
                }  # fmt: skip
            flipped = max(run["flipped"] for group in found.values() for run in group.values())
            out += [f"**{experiment}** ({flipped} labels flipped)", "", *table(found, figure, told), ""]
    return "\n".join(out)


def dots(axes: Any, x: float, found: list[float], colour: str, label: str | None = None) -> None:
    axes.plot([x] * len(found), found, "o", color=colour, alpha=0.35, markersize=4)
    if found:
        axes.plot([x - 0.25, x + 0.25], [statistics.fmean(found)] * 2, color=colour, linewidth=2.2, label=label)


def level(axes: Any, found: list[float], colour: str, label: str) -> None:
    """A horizontal line at the mean, with the standard deviation as a band."""
    if found:
        mean = statistics.fmean(found)
        axes.axhline(mean, color=colour, linestyle="--", linewidth=1.3, label=f"{label} ({len(found)} runs)")
        if len(found) > 1:
            axes.axhspan(mean - statistics.stdev(found), mean + statistics.stdev(found), color=colour, alpha=0.12, linewidth=0)


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """Writes the pictures of the runs."""
    runs = grouped(rows)
    known = [d for d in DATA if (d, "strategies") in runs]
    if known:
        figure = Figure(figsize=(4.6 * len(known), 5.4), layout="constrained")
        for place, data in enumerate(known):
            axes, found = figure.add_subplot(1, len(known), place + 1), runs[data, "strategies"]
            level(axes, values(found.get("clean labels", {}), "untargeted"), "tab:green", "clean labels")
            level(axes, values(found.get("random", {}), "untargeted"), "tab:orange", "random flips")
            names = [n for n in found if n not in ("clean labels", "random")]
            for x, name in enumerate(names):
                dots(axes, x, values(found[name], "untargeted"), "tab:blue")
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
            axes.set_title(f"{data}, eps {rows_protocol(rows, data)['eps']:g}")
            axes.set_ylabel("adversarial accuracy, untargeted PGD (%)")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=8)
        figure.savefig(folder / "crafted_strategies.png", dpi=110)
    _buckets(rows, runs, folder)
    _extra(rows, runs, folder)


def rows_protocol(rows: list[dict[str, Any]], data: str) -> dict[str, Any]:
    return next(r["protocol"] for r in rows if r["protocol"]["data"] == data)


def _buckets(rows: list[dict[str, Any]], runs: Runs, folder: Path) -> None:
    """Adversarial accuracy by bucket of path length (figures 11, 15, 17) and of density (sec. 4.6)."""
    for experiment, kinds, told in (
        ("paths", {"path, middle to far": ("tab:blue", "flips in the bucket")}, "bucket of path length (5: farthest)"),
        (
            "density",
            {
                "greedy, input": ("tab:blue", "degree"), "Gaussian density, input": ("tab:purple", "Gaussian, pixels"),
                "Gaussian density, features": ("tab:red", "Gaussian, features"),
            },
            "bucket of density (5: densest)",
        ),
    ):  # fmt: skip
        known = [d for d in DATA if (d, experiment) in runs]
        if not known:
            continue
        figure = Figure(figsize=(4.6 * len(known), 4), layout="constrained")
        for place, data in enumerate(known):
            axes, found, p = figure.add_subplot(1, len(known), place + 1), runs[data, experiment], rows_protocol(rows, data)
            key = "untargeted" if data == "mnist01" else "targeted"
            level(axes, values(found.get("clean labels", {}), key), "tab:green", "clean labels")
            level(axes, values(found.get("random", {}), key), "tab:orange", "random flips")
            for shift, (name, (colour, label)) in enumerate(kinds.items()):
                where, means = [], []
                for bucket in range(p["buckets"]):
                    group = values(found.get(f"{name} #{bucket + 1}", {}), key)
                    if group:
                        x = bucket + 1 + 0.08 * (shift - (len(kinds) - 1) / 2)
                        axes.plot([x] * len(group), group, "o", color=colour, alpha=0.3, markersize=4)
                        where.append(x)
                        means.append(statistics.fmean(group))
                axes.plot(where, means, color=colour, linewidth=1.8, label=label)
            source = p["path_source"] if experiment == "paths" else p["density_source"]
            way = "both classes" if source is None else f"{source} to {(source + 1) % 10}"
            axes.set_title(f"{data}, {way}, eps {p['eps']:g}")
            axes.set_xlabel(told)
            axes.set_xticks(range(1, p["buckets"] + 1))
            axes.set_ylabel(f"adversarial accuracy, {key} PGD (%)")
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=8)
        figure.savefig(folder / f"crafted_{experiment}.png", dpi=110)


def _extra(rows: list[dict[str, Any]], runs: Runs, folder: Path) -> None:
    """Clean labels, flips to the next class and to a class that the data does not have (figure 10)."""
    known = [d for d in DATA if (d, "extra") in runs]
    if not known:
        return
    figure = Figure(figsize=(3.4 * len(known), 3.8), layout="constrained")
    for place, data in enumerate(known):
        other = runs.get((data, "strategies")) or runs.get((data, "paths"), {})
        groups = [
            ("clean labels", other.get("clean labels", {}), "tab:green"),
            ("to an extra class", runs[data, "extra"]["random"], "tab:blue"),
            ("to the next class", other.get("random", {}), "tab:orange"),
        ]
        axes = figure.add_subplot(1, len(known), place + 1)
        for x, (_, group, colour) in enumerate(groups):
            dots(axes, x, values(group, "untargeted"), colour)
        axes.set_xticks(range(3), [name.replace(" ", "\n", 1) for name, _, _ in groups], fontsize=9)
        axes.set_title(f"{data}, eps {rows_protocol(rows, data)['eps']:g}")
        axes.set_ylabel("adversarial accuracy, untargeted PGD (%)")
        axes.set_ylim(0, 100)
    figure.savefig(folder / "crafted_extra.png", dpi=110)


def draw_paths(path: str, folder: Path, size: int) -> None:
    """Path lengths on MNIST (figures 14, 16), and the images closest to and farthest from the boundary (figure 13)."""
    import crafted_noise as bench
    import torch

    from robust_trainer.evaluation.boundary_paths import path_lengths

    torch.set_num_threads(1)
    told = {"image_mean": bench.MEAN, "image_std": bench.STD}
    for data in ("mnist01", "mnist"):
        protocol = bench.replace(bench.PROTOCOLS[data], train_size=size)
        train, _ = bench.load(protocol, path)
        made = bench.Bench(protocol, train, train)
        model, _, fitted = bench.fit(made.images, made.labels, made.classes, 0, protocol)
        found = path_lengths(model.model, train, target="cyclic", **told)
        found.plot(folder / f"crafted_path_lengths_{data}.png")
        print(f"{data}: {size} images, {fitted:.2%} fitted, path length to the next class by class, 10 %, median, 90 %:")
        for c in range(made.classes):
            low, middle, high = np.percentile(found.steps[found.labels == c], [10, 50, 90])
            print(f"  {c}: {low:.0f}, {middle:.0f}, {high:.0f}")
        if data == "mnist":
            free = path_lengths(model.model, train, **told)
            figure = Figure(figsize=(9, 8.4), layout="constrained")
            halves: Any = figure.subfigures(1, 2)
            for part, rows_of, title in zip(halves, (free.closest, free.farthest), ("closest to the boundary", "farthest from it")):
                part.suptitle(title)
                grid = part.subplots(10, 5)
                for c in range(10):
                    for axes, row in zip(grid[c], rows_of(5, c)):
                        axes.imshow(made.images[int(row), 0], cmap="gray_r", vmin=0, vmax=1)
                        axes.set_axis_off()
                        axes.set_title(f"{c}: {free.steps[row]}", fontsize=7, pad=1)
            figure.savefig(folder / "crafted_closest.png", dpi=110)


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", nargs="*", help="files of JSON lines")
    p.add_argument("--figures", help="folder for the pictures")
    p.add_argument("--paths", help="folder of MNIST's parquet files: draw path lengths and the closest images")
    p.add_argument("--size", type=int, default=10000, help="images for --paths")
    args = p.parse_args(argv)
    rows = [row for path in args.runs for row in read_results(Path(path))]
    if rows:
        print(report(rows))
    if args.figures:
        folder = Path(args.figures)
        folder.mkdir(parents=True, exist_ok=True)
        if rows:
            draw(rows, folder)
        if args.paths:
            draw_paths(args.paths, folder, args.size)


if __name__ == "__main__":
    main()

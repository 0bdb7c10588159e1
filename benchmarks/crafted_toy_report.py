"""The tables and figures of benchmarks/crafted_toy.py: a page of markdown, whose text above the tables stays as it is."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import machines_line
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Rows = list[dict[str, Any]]
#: Label, colour, line style and rows of a curve.
Curve = tuple[str, Any, str, Rows]
Figures = Callable[[dict[str, Any]], float | None]

MARK = "<!-- Below: made by `benchmarks/crafted_toy.py --report`; do not edit. -->"
TITLE = "# Mislabelled points on two Gaussians: results\n"
COLOURS = ("#33669a", "#c03030", "#2a8a4a", "#b07a10", "#7040a0", "#404040")
MAP_RADIUS = 1.0
DISTANCE = "distance r of the poisons from their class's mean"


def adversarial(name: str) -> Figures:
    """Reads the adversarial accuracy, in %, under the attack of that name."""
    return lambda row: 100 * row["adversarial"][name]


def natural(row: dict[str, Any]) -> float:
    return 100 * row["natural"]


def fitted(row: dict[str, Any]) -> float | None:
    """The share of the poisons that the network learned, in %."""
    return None if row["poisons_fitted"] is None else 100 * row["poisons_fitted"]


def line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def grid(heads: Sequence[Any], body: Sequence[Sequence[Any]]) -> list[str]:
    return [line(heads), line(["---"] * len(heads)), *map(line, body), ""]


def told(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def at(rows: Rows, r: float | None) -> Rows:
    return [row for row in rows if row["r"] == r]


def radii(rows: Rows) -> list[float]:
    return sorted({row["r"] for row in rows if row["r"] is not None})


def values(rows: Rows, read: Figures) -> list[float]:
    return [value for row in rows if (value := read(row)) is not None]


def shown(read: Figures, digits: int = 1) -> Callable[[Rows], str]:
    """A cell of a table: mean and deviation of what is read of its rows."""
    return lambda rows: told(values(rows, read), digits)


def by_radius(curves: Sequence[Curve], cell: Callable[[Rows], str], clean: bool = True) -> list[str]:
    """A table with a line for each r, and one without poisons, and a column for each curve."""
    every = [None] * clean + sorted({r for _, _, _, rows in curves for r in radii(rows)})
    body = [["no poisons" if r is None else f"{r:g}", *(cell(at(rows, r)) for _, _, _, rows in curves)] for r in every]
    return grid(["r", *(label for label, *_ in curves)], body)


def fit_cell(rows: Rows) -> str:
    """Share of the poisons fitted, networks that fit every sample, median step at which those were first seen to."""
    if not rows:
        return "–"
    first = [row["first"] for row in rows if row["fit"] and row["first"] is not None]
    step = f", {statistics.median(first):.0f}" if first else ""
    return f"{statistics.fmean(values(rows, fitted)):.0f} ({sum(row['fit'] for row in rows)}/{len(rows)}{step})"


def gap(first: Rows, second: Rows, read: Figures) -> Callable[[float], str]:
    """Second less first at r, over pairs of the same seed."""

    def cell(r: float) -> str:
        one, two = ({row["seed"]: read(row) for row in at(rows, r)} for rows in (first, second))
        pairs = [two[seed] - one[seed] for seed in one if seed in two]
        return told(pairs)

    return cell


def plot(axis: Axes, curves: Sequence[Curve], read: Figures, label: str) -> None:
    """Means over the seeds by r, with standard deviations; hollow where a network did not fit all of its samples."""
    low, high = 0.0, 100.0  # no share lies beyond
    for number, (_, colour, style, rows) in enumerate(curves):
        every = radii(rows)
        found = [values(at(rows, r), read) for r in every]
        mean, spread = [statistics.fmean(v) for v in found], [statistics.stdev(v) if len(v) > 1 else 0.0 for v in found]
        moved = [r + 0.03 * (number - len(curves) / 2) for r in every]
        reach = [[min(s, m - low) for s, m in zip(spread, mean)], [min(s, high - m) for s, m in zip(spread, mean)]]
        axis.errorbar(moved, mean, reach, color=colour, linestyle=style, linewidth=1.4, elinewidth=0.8, capsize=2)
        for r, x, y in zip(every, moved, mean):
            whole = all(row["fit"] for row in at(rows, r))
            axis.plot(x, y, "o", color=colour, markersize=5, markerfacecolor=colour if whole else "white", zorder=3)
        if clean := values(at(rows, None), read):
            axis.axhline(statistics.fmean(clean), color=colour, linestyle=":", linewidth=1.0)
    axis.set_xlabel(DISTANCE + " (σ = 1)")
    axis.set_ylabel(label)
    if read is fitted:
        axis.set_ylim(-4, 104)
    axis.grid(color="#dddddd", linewidth=0.5)


def legend(axis: Axes, curves: Sequence[Curve], title: str = "", **where: Any) -> None:
    """The curves, the line without poisons and the hollow points."""
    handles = [
        Line2D([], [], color=colour, linestyle=style, marker="o", markersize=5, label=label) for label, colour, style, _ in curves
    ]
    handles.append(Line2D([], [], color="#777777", linestyle=":", label="no poisons"))
    handles.append(
        Line2D(
            [], [], color="#777777", linestyle="", marker="o", markerfacecolor="white", label="not every network\nfits all samples"
        )
    )
    axis.legend(handles=handles, title=title, fontsize=8, title_fontsize=8, **where)


def draw(path: Path, panels: Sequence[tuple[str, str, Sequence[Curve], Figures]], columns: int, titles: Sequence[str]) -> str:
    """Writes a figure of panels (title, label of y, curves, what is shown), a legend for each row; its line of markdown."""
    count = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.9, 3.7 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for axis, (title, label, curves, read) in zip(axes.flat, panels):
        plot(axis, curves, read, label)
        axis.set_title(title, fontsize=10)
    for row, title in zip(range(count), titles):
        legend(axes[row][-1], panels[row * columns][2], title, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    return f"![{path.stem.replace('_', ' ')}](figures/{path.name})"


def maps(path: Path, kinds: Sequence[tuple[str, Rows]]) -> str:
    """Writes the decision maps of seed 0, with its training samples; the line of markdown."""
    figure = Figure(figsize=(5.2 * len(kinds), 5.6), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False)[0]
    fills, dots = ListedColormap(["#f0c0bd", "#bcd2ea", "#bfe3c6"]), ("#c03030", "#33669a", "#107030")
    names = ("class 0", "class 1", "third class")
    for axis, (title, rows) in zip(axes, kinds):
        row = next(row for row in rows if "map" in row and row["r"] == MAP_RADIUS)
        setup, edge = row["setup"], row["mu"] + 4 * row["setup"]["sigma"]
        side = setup["side"]
        cells = [[int(c) for c in row["map"][i * side : (i + 1) * side]] for i in range(side)]
        axis.imshow(cells, extent=(-edge, edge, -edge, edge), origin="lower", cmap=fills, vmin=0, vmax=2, interpolation="nearest")
        for k, colour in enumerate(dots):
            own = [point for point, label in zip(row["points"], row["labels"]) if label == k]
            size, mark = (110, "*") if k == 2 else (6, "o")
            axis.scatter(*zip(*own), s=size, c=colour, marker=mark, label=names[k] + (" (poisons)" if k == 2 else ""), linewidths=0)
        axis.set_xlim(-edge, edge)
        axis.set_ylim(-edge, edge)
        axis.set_xlabel("first coordinate (σ = 1)")
        axis.set_ylabel("second coordinate (σ = 1)")
        axis.set_title(f"{title}, r = {row['r']:g}: {100 * row['train_accuracy']:.1f} % of the training samples right", fontsize=9)
    axes[0].legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=80)
    return f"![{path.stem.replace('_', ' ')}](figures/{path.name})"


def means(name: str, rows: Rows, folder: Path) -> list[str]:
    """Section 4.2."""
    setup = rows[0]["setup"]
    main, mus, kinds = f"{setup['fractions'][0]:g}", sorted({r["mu"] for r in rows}), sorted({r["kind"] for r in rows})
    own = lambda mu, kind: [r for r in rows if r["mu"] == mu and r["kind"] == kind]  # noqa: E731
    curves: list[Curve] = [
        (f"μ = {mu:g}, {kind}", COLOURS[i], "--" if kind == "third" else "-", own(mu, kind))
        for kind in kinds
        for i, mu in enumerate(mus)
    ]
    attacks = {main: f"PGD, radius {main} of the means' distance", "fixed": f"PGD, radius {setup['fixed']:g} for all μ"}
    panels = [
        (text, "adversarial accuracy, %", curves, adversarial(key))
        for key, text in attacks.items()
        if key in rows[0]["adversarial"]
    ]
    panels += [
        ("no attack", "natural accuracy, %", curves, natural),
        ("poisons that are learned", "poisons fitted, %", curves, fitted),
    ]
    out = [draw(folder / f"crafted_toy_{name.replace('-', '_')}.png", panels, 2, ["poisons labelled as"] * 2), ""]
    for title, label, _, read in panels[:-1]:
        out += [f"{label[0].upper()}{label[1:]}; {title}:", "", *by_radius(curves, shown(read, 1 + (read is natural)))]
    out += ["Poisons fitted, % (networks that fit every sample, median step):", "", *by_radius(curves, fit_cell, False)]
    if len(kinds) == 2:
        out += ["Third class less opposite class, adversarial accuracy in points, pairs of the same seed:", ""]
        pairs = {mu: gap(own(mu, "opposite"), own(mu, "third"), adversarial(main)) for mu in mus}
        out += grid(["r", *(f"μ = {mu:g}" for mu in mus)], [[f"{r:g}", *(cell(r) for cell in pairs.values())] for r in radii(rows)])
    return out


def training(rows: Rows, folder: Path) -> list[str]:
    """Section 4.3."""
    setup, names = rows[0]["setup"], ("opposite", "third", "third-pgd", "third-pgd/3")
    labels = ("opposite", "third", "third, PGD training", "third, PGD training,\na third of the radius")
    curves: list[Curve] = [
        (label, COLOURS[i], "-", own)
        for i, (kind, label) in enumerate(zip(names, labels))
        if (own := [r for r in rows if r["kind"] == kind])
    ]
    plain: list[Curve] = [(label.replace("\n", " "), *rest) for label, *rest in curves]
    main = f"{setup['fractions'][0]:g}"
    panels = [
        (f"PGD, radius {main} of the means' distance", "adversarial accuracy, %", curves, adversarial(main)),
        ("no attack", "natural accuracy, %", curves, natural),
        ("poisons that are learned", "poisons fitted, %", curves, fitted),
    ]  # fmt: skip
    out = [draw(folder / "crafted_toy_training.png", panels, 3, ["poisons labelled as"]), ""]
    for fraction in setup["fractions"]:
        read = adversarial(f"{fraction:g}")
        out += [f"Adversarial accuracy, %; radius {fraction:g} of the means' distance:", ""]
        out += by_radius(plain, shown(read))
    out += ["Natural accuracy, %:", "", *by_radius(plain, shown(natural, 2))]
    out += ["Poisons fitted, % (networks that fit every sample, median step):", "", *by_radius(plain, fit_cell, False)]
    by = {kind: [r for r in rows if r["kind"] == kind] for kind in names}
    pairs = {
        f"{b} less {a}": gap(by[a], by[b], adversarial(main))
        for a, b in (names[:2], ("third", names[2]), ("third", names[3]))
        if by[b]
    }
    out += [f"Differences in adversarial accuracy (radius {main}), points, pairs of the same seed:", ""]
    return out + grid(["r", *pairs], [[f"{r:g}", *(cell(r) for cell in pairs.values())] for r in radii(rows)])


def norms(found: dict[str, Rows], folder: Path) -> list[str]:
    """Section 4.5."""
    panels, out = [], []
    told_as = {"norm": "hidden norms made 1, the last made k", "cap": "hidden norms capped at 1, the last at k"}
    free: Curve = ("no bound at all", "#999999", "--", [r for r in found.get("training", []) if r["kind"] == "opposite"])
    for name in (name for name in told_as if name in found):
        rows = found[name]
        seeds = {row["seed"] for row in rows}
        caps = sorted({r["cap"] for r in rows}, key=lambda cap: cap or float("inf"))
        curves: list[Curve] = [
            (f"k = {cap:g}" if cap else "last layer free", COLOURS[i], "-", [r for r in rows if r["cap"] == cap])
            for i, cap in enumerate(caps)
        ]
        most = max(radii(rows))
        own = [r for r in free[3] if r["seed"] in seeds and (r["r"] or 0.0) <= most and r["mu"] in {row["mu"] for row in rows}]
        curves += [(*free[:3], own)] if own else []
        main = f"{rows[0]['setup']['fractions'][0]:g}"
        panels.append((told_as[name], "adversarial accuracy, %", curves, adversarial(main)))
        panels.append((told_as[name], "poisons fitted, %", curves, fitted))
        out += [f"**{told_as[name][0].upper()}{told_as[name][1:]}.** Adversarial accuracy, %:", ""]
        out += by_radius(curves, shown(adversarial(main)))
        out += ["Natural accuracy, %:", "", *by_radius(curves, shown(natural, 2))]
        out += ["Poisons fitted, % (networks that fit every sample, median step):", "", *by_radius(curves, fit_cell, False)]
        out += ["Spectral norm of the last layer:", "", *by_radius(curves, shown(lambda row: row["norms"][-1]))]
    return [draw(folder / "crafted_toy_norm.png", panels, 2, ["last layer's norm"] * 2), "", *out]


def plane(found: dict[str, Rows], folder: Path) -> list[str]:
    """Section 4.4."""
    titles = {"plane": "coordinates", "plane-hash": "hashed coordinates"}
    kinds = [(title, found[name]) for name, title in titles.items() if name in found]
    columns = ("training accuracy, %", "poisons fitted", "natural accuracy, %")
    heads = ["r", *(f"{title}: {what}" for title, _ in kinds for what in columns)]
    body = []
    for r in [None, *radii(kinds[0][1])]:
        cells = []
        for _, rows in kinds:
            own = at(rows, r)
            fits = f"{sum(row['fit'] for row in own)}/{len(own)} networks fit all" if r is None else fit_cell(own)
            cells += [told([100 * row["train_accuracy"] for row in own], 2), fits, told(values(own, natural))]
        body.append(["no poisons" if r is None else f"{r:g}", *cells])
    drawn = [(title, rows) for title, rows in kinds if any("map" in row and row["r"] == MAP_RADIUS for row in rows)]
    return [*([maps(folder / "crafted_toy_plane.png", drawn), ""] if drawn else []), *grid(heads, body)]


def setting(rows: Rows) -> str:
    """The numbers that the experiment was run with."""
    mus = ", ".join(f"{mu:g}" for mu in sorted({row["mu"] for row in rows}))
    return f"Setup: mu {mus}; " + ", ".join(f"{name} {value}" for name, value in rows[0]["setup"].items()) + "."


def write(rows: Rows, page: Path) -> None:
    """Writes the page, whose part above `MARK` stays, and its figures. Raises ``SystemExit`` where an experiment has two setups."""
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["experiment"], []).append(row)
    for name, own in found.items():
        if len({json.dumps(row["setup"], sort_keys=True) for row in own}) > 1:
            raise SystemExit(f"{name} was run with several setups: give each its own --out.")
    if not rows:
        raise SystemExit("There is nothing to report: run benchmarks/crafted_toy.py first.")
    folder = page.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    seeds = {name: len({row["seed"] for row in own}) for name, own in found.items()}
    took = sum(row["seconds"] for row in rows) / 60
    told_seeds = ", ".join(f"{name} {count}" for name, count in seeds.items())
    out = [
        "",
        f"{machines_line(rows)}; {len(rows)} networks, {took:.0f} minutes of one core. Mean ± standard deviation over seeds.",
    ]
    out += ["", f"Seeds: {told_seeds}.", ""]
    for name, title in {"means": "Section 4.2: Adam on the full batch", "means-sgd": "Section 4.2: SGD on mini-batches"}.items():
        out += [f"## {title}", "", setting(found[name]), "", *means(name, found[name], folder)] if name in found else []
    if both := found.get("training", []) + found.get("training-pgd", []):
        out += ["## Section 4.3: opposite class, third class, PGD training", "", setting(both), "", *training(both, folder)]
    if {"norm", "cap"} & set(found):
        out += ["## Section 4.5: spectral norms", "", setting(found.get("norm", found.get("cap", []))), "", *norms(found, folder)]
    if {"plane", "plane-hash"} & set(found):
        out += [
            "## Section 4.4: two dimensions, with and without the hash",
            "",
            setting(found.get("plane", found.get("plane-hash", []))),
            "",
        ]
        out += plane(found, folder)
    head = page.read_text().partition(MARK)[0] if page.is_file() else TITLE + "\n"
    page.write_text(head + MARK + "\n" + "\n".join(out).rstrip() + "\n")

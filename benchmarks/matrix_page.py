"""The board as one HTML page: every row in a table whose columns sort, with a filter; it needs no network and no other file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jinja2

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>The board</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; color: #1b2631; background: #fff; margin: 0 auto; padding: 1rem; }
  h1 { font-size: 1.5rem; margin: .3rem 0; } h2 { font-size: 1.15rem; margin: 1.5rem 0 .4rem; }
  .quiet { color: #566573; font-size: .9rem; max-width: 70rem; }
  .wide { overflow: auto; max-height: 80vh; border: 1px solid #d5d8dc; }
  table { border-collapse: collapse; font-size: .88rem; }
  th, td { padding: .25rem .5rem; border-bottom: 1px solid #e5e7e9; white-space: nowrap; text-align: left; }
  td.n { text-align: right; font-variant-numeric: tabular-nums; }
  thead th { position: sticky; top: 0; background: #f4f6f7; }
  th button { font: inherit; font-weight: 600; border: 0; background: none; cursor: pointer; padding: 0; color: inherit; }
  th[aria-sort=ascending] button::after { content: " \\2191"; } th[aria-sort=descending] button::after { content: " \\2193"; }
  input { font: inherit; padding: .3rem .5rem; width: min(100%, 30rem); margin: .5rem 0; }
</style>
</head>
<body>
<h1>The board: every attack against every defence</h1>
<p class="quiet">accuracy: on clean test rows. attack_success, triggered_accuracy: on the triggered test rows whose label the
attacker would change. robust_accuracy: under PGD at test time. tpr, fpr: share of the poisoned, and of the clean, training rows
that are flagged; dropped_tpr, dropped_fpr: that are left out of training. Shares in percent. cost: times plain training. A click on
a heading sorts.</p>
{% for name, part in parts.items() %}
<h2>{{ part.title }}</h2>
{% if part.told %}<p class="quiet">{{ part.told }}</p>{% endif %}
<label>Rows with all of these words: <input type="search" data-table="{{ name }}"></label>
<div class="wide"><table id="{{ name }}">
<thead><tr>{% for column in part.columns %}<th scope="col"><button type="button">{{ column }}</button></th>{% endfor %}</tr></thead>
<tbody>
{% for row in part.rows %}<tr>
{%- for value, number in row %}<td{% if number %} class="n"{% endif %}>{{ value }}</td>{% endfor -%}
</tr>
{% endfor %}</tbody>
</table></div>
{% endfor %}
<script>
"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, place) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    const key = row => row.cells[place].textContent;
    const sorted = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // rows without a figure last, either way
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...sorted);
  }));
}
for (const input of document.querySelectorAll("input[data-table]")) {
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\\s+/).filter(Boolean);
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
      const cells = [...row.cells].map(cell => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !words.every(word => cells.includes(word));
    }
  });
}
</script>
</body>
</html>
"""


def page(rows: Sequence[dict[str, Any]], columns: Sequence[str], figures: Sequence[str], published: dict[str, Any]) -> str:
    """The page; everything in it is escaped.

    Args:
        rows: flat rows with the columns; what is None is left empty.
        columns: in their order.
        figures: columns that are numbers; shares are shown in percent.
        published: ``sources`` and ``rows`` of published figures.
    """
    known = ("source", "attack", "rule", "rate", "defence", "ca", "asr", "ra", "tpr", "fpr")
    sources = "; ".join(f"{name}: {one['title']} ({one['where']}); {one['setting']}" for name, one in published["sources"].items())
    parts = {
        "board": {
            "title": f"{len(rows)} rows", "told": "", "columns": columns, "rows": [_cells(row, columns, figures) for row in rows],
        },
        "published": {
            "title": "Published figures", "told": sources, "columns": known,
            "rows": [_cells(row, known, (), ("ca", "asr", "ra", "tpr", "fpr")) for row in published["rows"]],
        },
    }  # fmt: skip
    return jinja2.Environment(autoescape=True).from_string(_PAGE).render(parts=parts)


def _cells(
    row: dict[str, Any], columns: Iterable[str], shares: Sequence[str], numbers: Sequence[str] = ()
) -> list[tuple[str, bool]]:
    """Each cell's text, and whether it is a number."""
    out = []
    for name in columns:
        value = row.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is None:
            out.append(("", False))
        elif name in ("cpu_seconds", "cost"):
            out.append((f"{value:.2f}", True))
        elif name in shares or name == "rate":
            out.append((f"{100 * value:.1f}", True))
        else:
            out.append((f"{value:.2f}" if name in numbers else str(value), number))
    return out

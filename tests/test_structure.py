"""What the tree promises: layers, no import circle, imports at the top of a file, namespaces that list their names.

All of it is read from the source; nothing of the package is imported but in the last test, which asks a process of its own.
"""

import ast
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "robust_trainer"
NAME = PACKAGE.name
#: The only libraries that a function may import: they are no dependencies, and what needs them says how to install them.
OPTIONAL = {"deepspeed", "kornia", "cleanlab", "networkx", "peft", "torchvision", "faiss", "torchcodec"}
#: Conditional names of libraries that are dependencies: (module of the package, library).
CONDITIONAL = {("models.zoo", "transformers")}
#: From the lowest to the highest; a module imports from its own layer and those below. The longest prefix counts.
LAYERS = (
    ("_lazy", "types", "problems", "data.randomness", "models.sharding"),
    ("reporting.atomic_files", "reporting.safe_text", "reporting.console", "reporting.suggest"),
    ("data", "images", "losses", "perturbations", "per_sample_gradients", "selection", "reporting"),
    ("models", "losses.evaluation", "evidence"),
    ("methods",),
    ("ledger",),
    ("step",),
    (
        "config", "methods.data_validation", "methods.input_adapter", "attacks", "evaluation", "audit", "detectors", "callbacks",
        "contrastive",
    ),
    ("mixin", "trainer"),
    ("anomaly", "corruptions"),
    ("cli",),
)  # fmt: skip
NAMESPACES = (
    "corruptions", "audit", "detectors", "attacks", "evaluation", "anomaly", "contrastive", "callbacks", "cli",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported module: by whom, in which line, inside a function or not."""

    importer: str
    imported: str
    line: int
    local: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} -> {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> Iterator[Import]:
    """Every import of a module, its own package's without the package's name, others by their full name after a colon."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" and module else module.split(".")[:-1]

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                base = ".".join([NAME, *package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            inner = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix(f"{NAME}.") in MODULES else base for name in inner]
        for name in names:
            ours = name == NAME or name.startswith(f"{NAME}.")
            yield name.removeprefix(NAME).removeprefix(".") if ours else f":{name}"

    def visit(node: ast.AST, local: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = local or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield from (Import(module, name, child.lineno, inside) for name in targets(child))
            yield from visit(child, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


IMPORTS = [found for module in MODULES for found in imports_of(module)]
#: Without the package's own `__init__`: its names are loaded when they are used, and everybody may ask it for the version.
ARROWS = [arrow for arrow in IMPORTS if arrow.importer and arrow.imported and arrow.imported in MODULES]


def layer(module: str) -> int | None:
    """The number of the module's layer, by the longest prefix in `LAYERS`."""
    places = {prefix: i for i, row in enumerate(LAYERS) for prefix in row}
    parts = module.split(".")
    return next((places[p] for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in places), None)


def test_no_import_circle():
    """Neither at the top of files, nor in functions, nor for type checkers alone."""
    arrows = {(arrow.importer, arrow.imported) for arrow in ARROWS if arrow.importer != arrow.imported}
    while arrows:
        starts, ends = {a for a, _ in arrows}, {b for _, b in arrows}
        inner = {(a, b) for a, b in arrows if a in ends and b in starts}  # an end of a chain is on no circle
        if inner == arrows:
            break
        arrows = inner
    assert not arrows, "circle: " + ", ".join(f"{a} -> {b}" for a, b in sorted(arrows))


def test_functions_import_optional_packages_alone():
    wrong = [
        str(found)
        for found in IMPORTS
        if found.local
        and found.imported.lstrip(":").split(".")[0] not in OPTIONAL
        and (found.importer, found.imported.lstrip(":").split(".")[0]) not in CONDITIONAL
    ]
    assert not wrong


def test_a_module_imports_from_its_own_layer_or_from_lower_ones():
    homeless = [m for m in MODULES if m and layer(m) is None]
    assert not homeless
    wrong = [str(arrow) for arrow in ARROWS if layer(arrow.imported) > layer(arrow.importer)]  # type: ignore[operator]
    assert not wrong


def test_the_folder_is_read_at_a_glance_and_so_is_a_file():
    entries = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 28, entries
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    long = {"mixin": 480}  # every hook of the Trainer, in one file
    assert not {module: lines for module, lines in lengths.items() if lines > long.get(module, 420)}


def literal(tree: ast.Module, name: str) -> list[str]:
    """The strings in a list that is assigned to a name at the top of a module."""
    values = [
        n.value for n in tree.body if isinstance(n, ast.Assign) and [t.id for t in n.targets if isinstance(t, ast.Name)] == [name]
    ]
    return ast.literal_eval(values[0])


def public_names(namespace: str) -> set[str]:
    return set(literal(ast.parse(MODULES[namespace].read_text(encoding="utf-8")), "__all__"))


def test_a_lazy_namespace_says_the_same_in_its_three_lists():
    lazy = 0
    for namespace in NAMESPACES:
        tree = ast.parse(MODULES[namespace].read_text(encoding="utf-8"))
        tables = [n.args[1] for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "lazy_names"]
        if not tables:
            continue
        lazy += 1
        table = ast.literal_eval(tables[0])
        checked = {}
        for node in next(n for n in tree.body if isinstance(n, ast.If)).body:
            assert isinstance(node, ast.ImportFrom)
            checked |= {a.name: "." * (node.level - 1) + (node.module or "") for a in node.names}
        assert checked == table and set(table) == public_names(namespace), namespace
        # a module of the name would take the name's place once it is loaded
        assert not [name for name in table if f"{namespace}.{name}" in MODULES], namespace
    assert lazy >= 7


def code_blocks() -> Iterator[tuple[str, str]]:
    """Python that users are shown: where, and the code."""
    for path in sorted((ROOT / "examples").glob("*.py")):
        yield path.name, path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for i, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)):
            yield f"{path.relative_to(ROOT)}, block {i}", block


def test_docs_and_examples_use_public_names():
    """From `robust_trainer` and its namespaces, and nothing else."""
    homes = {NAME: public_names(""), **{f"{NAME}.{n}": public_names(n) for n in NAMESPACES}}
    wrong, seen = [], 0
    for where, code in code_blocks():
        for node in ast.walk(ast.parse(textwrap.dedent(code))):
            if isinstance(node, ast.Import):
                wrong += [f"{where}: import {a.name}" for a in node.names if a.name.startswith(f"{NAME}.") and a.name not in homes]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == NAME:
                seen += 1
                names = [alias.name for alias in node.names]
                wrong += [f"{where}: {node.module}.{name}" for name in names if name not in homes.get(node.module or "", ())]
    assert seen > 10 and not wrong, wrong


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """What is in ``sys.modules`` after each of three things, in one new process."""
    script = (
        "import json, sys\n"
        "import robust_trainer; package = sorted(sys.modules)\n"
        "from robust_trainer.cli.main import main\n"
        "codes = [main(['--version']), main(['--help']), main(['trian'])]; cli = sorted(sys.modules)\n"
        "from robust_trainer import RobustTrainer; trainer = sorted(sys.modules)\n"
        "print(json.dumps({'package': package, 'cli': cli, 'trainer': trainer, 'codes': codes}))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120)
    assert "did you mean 'train'?" in ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_the_command_line_answers_and_the_package_loads_without_torch(loaded):
    heavy = {"torch", "transformers", "numpy", "datasets", "pandas", "scipy", "sklearn", "matplotlib"}
    assert not heavy & set(loaded["package"])
    assert not heavy & set(loaded["cli"])
    assert loaded["codes"] == [0, 0, 2]


def test_the_trainer_loads_little_that_transformers_trainer_does_not(loaded):
    """`transformers.Trainer` loads scipy, pandas, datasets and pyarrow itself."""
    assert not {"sklearn", "matplotlib", "kornia", "cleanlab", "networkx.algorithms"} & set(loaded["trainer"])
    assert {f"{NAME}.trainer", "torch"} <= set(loaded["trainer"])

# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: arrows between the packages never point back."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "slim_core"
# Each may import from the layers before it.
LAYERS = [
    {"paths", "extras", "noise", "registration"},
    {"method"},
    {"outside"},
    {"base"},
    {"baselines", "adapters"},
    {"inference"},
    {"training", "evaluation"},
    {"demo"},
    {"webui"},
    {"commands"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, relative ones resolved."""
    here = path.relative_to(ROOT).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_do_not_point_back(path):
    level = LEVEL.get(room(path))
    if level is None:  # the package's own front door
        assert room(path) in {"__init__", "__main__"}
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "slim_core" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room(path):
            assert LEVEL[parts[1]] < level, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_gradio_is_imported_by_the_web_interface_alone(path):
    if room(path) != "webui":
        assert not any(name.split(".")[0] == "gradio" for name in imports(path))


def test_the_method_knows_nothing_else_of_the_project():
    for path in (PACKAGE / "method").glob("*.py"):
        others = {n for n in imports(path) if n.startswith("slim_core") and not n.startswith("slim_core.method")}
        assert others <= {"slim_core"}, f"{path.name} imports {others}"

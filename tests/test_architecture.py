# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: arrows between the packages never point back."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "slim_core"
# Each may import from the layers before it.
LAYERS = [
    {"paths", "extras", "noise", "blas", "registration"},
    {"method"},
    {"peft_tools", "baselines"},
    {"outside"},
    {"base"},
    {"adapters"},
    {"inference"},
    {"serving"},
    {"training"},
    {"many"},
    {"evaluation"},
    {"demo"},
    {"paper"},
    {"webui"},
    {"commands"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Full names of what a file imports, relative ones resolved."""
    here = path.relative_to(ROOT).with_suffix("").parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


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


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Files that import each other in turn, the first named again at the end; empty if there are none."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(graph[name]):
                if cycle := follow(other, [*way, name]):
                    return cycle
            done.add(name)
        return []

    return next(filter(None, (follow(name, []) for name in graph)), [])


@pytest.mark.parametrize("package", sorted({room(path) for path in FILES if path.parent != PACKAGE}))
def test_no_files_import_each_other_in_a_circle(package):
    """Imports for types alone and imports inside of functions count too."""
    files = {module(path): path for path in FILES if room(path) == package}
    graph = {}
    for name, path in files.items():
        # What is imported from a file that is none itself, is a name in that file.
        imported = {other if other in files else other.rpartition(".")[0] for other in imports(path)}
        graph[name] = (imported & files.keys()) - {name}
    cycle = circle(graph)
    assert not cycle, " -> ".join(cycle)


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_two_classes_share_a_name():
    """A reader who meets a name in a traceback or a search finds one class."""
    files_by_class: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                files_by_class.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in files_by_class.items() if len(files) > 1}


def test_the_method_knows_nothing_else_of_the_project():
    for path in (PACKAGE / "method").glob("*.py"):
        others = {n for n in imports(path) if n.startswith("slim_core") and not n.startswith("slim_core.method.")}
        assert not others, f"{path.name} imports {others}"

"""The import law: a folder imports only what stands before it in this list, and a few packages have one door each."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# From the ground up. A module at the top of the package counts as a folder.
FOLDERS = (
    "errors",
    "rng",
    "config",
    "system",
    "engine",
    "tokenizers",
    "tensorfiles",
    "data",
    "model",
    "runs",
    "optim",
    "inference",
    "interop",
    "reports",
    "evaluation",
    "training",
    "monitoring",
    "bench",
    "sweep",
    "commands",
    "cli",
    "__init__",
    "__main__",
)

# Package -> the only modules that may import it.
DOORS = {
    "cupy": ("engine.backend",),
    "cupyx": ("engine.backend",),
    "onnx": tuple(f"inference.onnx.{name}" for name in ("initializers", "graph", "fused", "portable", "export")),
    "onnxruntime": ("inference.onnx.session",),
    "jinja2": ("reports.page",),
    "matplotlib": ("reports.picture",),
    "pyarrow": ("data.sources.formats",),
    "httpx2": ("data.sources.hub", "data.sources.remote"),
    "huggingface_hub": ("data.sources.hub",),
    "tokenizers": ("tokenizers.bpe",),
    "tensorboardX": ("monitoring.tensorboard",),
    "waitress": ("monitoring.server",),
    "optuna": ("sweep.study",),
    "sqlalchemy": ("sweep.study",),
    "torch": (),
    "tensorflow": (),
    "jax": (),
    "scipy": (),
}
NAMED = re.compile(r"picogpt(\.\w+)+")  # a module that is started, or imported later, by its name


def name_of(path: Path) -> str:
    """engine/ops/norm.py -> engine.ops.norm; a folder's __init__ goes by the folder's name."""
    parts = path.relative_to(ROOT / "picogpt").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((ROOT / "picogpt").rglob("*.py"))}


def folder_of(module: str) -> str:
    return module.partition(".")[0]


def imported(source: str) -> set[str]:
    """Dotted names of everything imported, at any depth of the code; `from a import b` is a.b.

    A string that is the name of one of our modules counts too, as in `python -m`.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value):
            names |= {node.value} if node.value.removeprefix("picogpt.") in FILES else set()
    return names


def module_of(name: str) -> str | None:
    """The module of picogpt that `picogpt.engine.tape.Tape` lives in; None for other packages."""
    parts = name.split(".")
    if parts[0] != "picogpt":
        return None
    for length in range(len(parts), 1, -1):
        if (module := ".".join(parts[1:length])) in FILES:
            return module
    return "__init__"


def violations(module: str, source: str) -> list[str]:
    found, own = [], FOLDERS.index(folder_of(module))
    for name in sorted(imported(source)):
        target = module_of(name)
        if target is not None and FOLDERS.index(folder_of(target)) > own:
            found.append(f"{module} imports {name}, whose folder stands above it in the house")
        doors = DOORS.get(name.split(".")[0])
        if doors is not None and module not in doors:
            found.append(f"{module} imports {name}: only {', '.join(doors) or 'nobody'} may")
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that come back to themselves over what they import."""
    found: list[str] = []
    for module in graph:
        seen: set[str] = set()
        waiting = list(graph[module])
        while waiting:
            if (target := waiting.pop()) not in seen:
                seen.add(target)
                waiting += graph[target]
        found += [module] if module in seen else []
    return found


def graph_of(sources: dict[str, str]) -> dict[str, set[str]]:
    """Module -> the modules it imports; an `__init__` that only re-exports its own folder is not passed through."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        targets = {module_of(name) for name in imported(source)} - {None, module}
        graph[module] = {target for target in targets if target and not module.startswith(f"{target}.")}
    return graph


def test_every_folder_has_its_place() -> None:
    assert sorted(FOLDERS) == sorted({folder_of(module) for module in FILES} | {"__init__"})


def test_the_top_holds_what_is_no_folder() -> None:
    loose = {path.name for path in (ROOT / "picogpt").glob("*.py")}
    assert loose == {"errors.py", "rng.py", "cli.py", "__init__.py", "__main__.py"}


@pytest.mark.parametrize("module", FILES)
def test_imports_only_downwards(module: str) -> None:
    assert violations(module, FILES[module].read_text(encoding="utf-8")) == []


def test_no_module_comes_back_to_itself() -> None:
    assert circles(graph_of({name: path.read_text(encoding="utf-8") for name, path in FILES.items()})) == []


def test_a_circle_is_found() -> None:
    sources = {
        "engine.tape": "from picogpt.engine.tensor import Tensor",
        "engine.tensor": "start('picogpt.engine.lanes')",
        "engine.lanes": "def f():\n    from picogpt.engine import tape",
    }
    assert sorted(circles(graph_of(sources | {"engine": ""}))) == ["engine.lanes", "engine.tape", "engine.tensor"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.tape", "from picogpt.model.gpt import GPT"),
        ("engine.backend", "def f():\n    from picogpt import load"),
        ("model.gpt", "import picogpt.optim.muon as muon"),
        ("training.run", "from picogpt.monitoring.screen import Screen"),
        ("training.run", "start('picogpt.monitoring.server')"),
        ("engine.ops.linear", "if True:\n    import cupy"),
        ("inference.language_model", "from matplotlib.figure import Figure"),
        ("cli", "import torch.nn"),
        ("config.run", "from picogpt.runs.find import run_name"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert violations(module, source)


def test_a_downward_import_is_fine() -> None:
    source = "import numpy\nfrom picogpt.engine import Tensor, ops\nfrom picogpt import config\nimport picogpt.rng"
    assert violations("model.gpt", source) == []
    assert violations("inference.onnx.export", "import onnx\nfrom picogpt.errors import UserError") == []


@pytest.mark.parametrize("path", sorted((ROOT / "picogpt").rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_an_init_holds_a_docstring_and_re_exports_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    exported: list[str] = []
    brought: list[str] = []
    for node in tree.body[1:]:
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.module.startswith("picogpt")
            brought += [alias.asname or alias.name for alias in node.names]
        else:
            assert isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__", ast.unparse(node)
            exported += ast.literal_eval(node.value)
    assert sorted(brought) == exported


PROGRAMS = [ROOT / "train.py", ROOT / "inference.py", *sorted((ROOT / "benchmarks").rglob("*.py"))]


@pytest.mark.parametrize("path", [*FILES.values(), *PROGRAMS], ids=lambda p: p.name)
def test_no_file_is_longer_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400

"""The import law: a module imports only what stands above it in this list, and a few packages have one door each."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Layer by layer, and within a layer in order. An `__init__` is the last of its own folder.
LAYERS = """
L0   fields  config  presets  files  rng  seal  unpickle  bfloat16  engine.workspace  engine.kept  engine.backend
     data.coding  data.tables  data.bpe  data.tokenizer  data.remote
     inference.sampling  inference.quantize  inference.sliding  inference.decoding  inference.writer
     inference.weights  inference.graph  inference.dialects  inference.export  inference.modelfile  inference.session
     inference
L1   interop.stored  interop.safetensors  engine.tape  engine.tensor  data.formats  data.hub  data.corpora  data.shards
     training.snapshot  training.checkpoint  training.runlog  training.logview  training.background  training.plot
     training.monitor  training.status  training.panel  training.screen  training.dashboard  training.events
     training.divergence  training.clock  training.lock  training.saver
L2   engine.lanes  engine.ops.linear  engine.ops.activation  engine.ops.norm  engine.ops.attention  engine.ops.loss
     engine.ops  engine  data.prepare  data.loader  data.stream  data.feed  data
L3   model.layers  model.parameters  model.arithmetic
L4   model.gpt  model.rolling  model.reader  model.footprint  model
     interop.foreign  interop.torchfile  interop.huggingface  interop.dat
     interop.pickling  interop.picogpt  interop
L5   training.optim  training.checks  training.device  training.start  training.trainer
     training.care  training.roof  training.gauges  training.watch  training.sample  training.fullloss  training.run
     training
L6   options  api  infoview  preparing  importing  converting  exporting  quality  writing
     reports.summary  reports.chart  reports.compare  reports.page  reports.server  reports.command  reports
     sweep.cases  sweep.worker  sweep.study  sweep.result  sweep.command  sweep
L7   bench.roof  bench.train  bench.time_to_loss  bench.data  bench.generate  bench.command  bench
top  __init__  cli  __main__
"""
ORDER = [word for word in LAYERS.split() if not word.startswith("L") and word != "top"]

# Package -> the only modules (or folders, with a dot at the end) that may import it.
DOORS = {
    "cupy": ("engine.backend",),
    "cupyx": ("engine.backend",),
    "onnx": ("inference.weights", "inference.graph", "inference.dialects", "inference.export"),
    "onnxruntime": ("inference.session",),
    "jinja2": ("reports.page",),
    "matplotlib": ("training.plot",),
    "pyarrow": ("data.formats",),
    "urllib3": ("data.remote",),
    "tokenizers": ("data.bpe",),
    "tensorboardX": ("training.events",),
    "waitress": ("reports.server",),
    "optuna": ("sweep.study",),
    "sqlalchemy": ("sweep.study",),
    "torch": (),
    "tensorflow": (),
    "jax": (),
    "scipy": (),
}


def name_of(path: Path) -> str:
    """engine/ops/norm.py -> engine.ops.norm; a folder's __init__ goes by the folder's name."""
    parts = path.relative_to(ROOT / "picogpt").with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((ROOT / "picogpt").rglob("*.py"))}


def imported(source: str) -> set[str]:
    """Dotted names of everything imported, at any depth of the code; `from a import b` is a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
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
    found = []
    for name in sorted(imported(source)):
        target = module_of(name)
        if target is not None and target != module and ORDER.index(target) > ORDER.index(module):
            found.append(f"{module} imports {name}, which stands below it in the list of layers")
        doors = DOORS.get(name.split(".")[0])
        if doors is not None and not any(module == d or (d.endswith(".") and module.startswith(d)) for d in doors):
            found.append(f"{module} imports {name}: only {', '.join(doors) or 'nobody'} may")
    return found


def test_every_file_has_its_place() -> None:
    assert sorted(ORDER) == sorted(FILES)


@pytest.mark.parametrize("module", FILES)
def test_imports_only_downwards(module: str) -> None:
    assert violations(module, FILES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("engine.tape", "from picogpt.engine.tensor import Tensor"),
        ("engine.tape", "from picogpt.engine import Tensor"),
        ("engine.ops.norm", "import picogpt.engine.ops"),
        ("engine.backend", "def f():\n    from picogpt import load"),
        ("model.gpt", "import picogpt.training.optim as optim"),
        ("engine.ops.linear", "if True:\n    import cupy"),
        ("api", "from matplotlib.figure import Figure"),
        ("cli", "import torch.nn"),
        ("inference.sampling", "from picogpt.model.reader import Decoder"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert violations(module, source)


def test_a_downward_import_is_fine() -> None:
    source = "import numpy\nfrom picogpt.engine import Tensor, ops\nfrom picogpt import config\nimport picogpt.rng"
    assert violations("model.gpt", source) == []
    assert violations("inference.export", "import onnx\nfrom picogpt.config import UserError") == []


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

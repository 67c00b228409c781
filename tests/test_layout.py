"""The house of DESIGN section 2: which module may import which, and how big a room may be. Read from the syntax trees; nothing is run.

A new module gets a row in STOREYS. A wall is moved only together with the sentence in the README that describes it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A module imports only from storeys below its own.
STOREYS = {
    "app": 11,
    "loophil.__main__": 11,
    "loophil.build": 10,
    "loophil.ui": 9,
    "loophil.runs": 8,
    "loophil.session": 7,
    "loophil.loop": 6,
    "loophil.alarms": 5,
    "loophil.trouble": 5,
    "loophil.strip": 5,
    "loophil.blind": 4,
    "loophil.repeats": 4,
    "loophil.jobs": 4,
    "loophil.worker": 4,
    "loophil.evaluation": 4,
    "loophil.sampler": 3,
    "loophil.trainer": 3,
    "loophil.export": 3,
    "loophil.model_card": 1,
    "loophil.hub": 3,
    "loophil.policy": 2,
    "loophil.preview": 2,
    "loophil.dataset": 2,
    "loophil.snapshots": 2,
    "loophil.lessons": 2,
    "loophil.understanding": 3,
    "loophil.taste": 2,
    "loophil.space": 1,
    "loophil.meter": 1,
    "loophil.memory": 1,
    "loophil.offload": 1,
    "loophil.optimizers": 1,
    "loophil.prompt_cache": 1,
    "loophil.scheduler": 1,
    "loophil.mixing": 1,
    "loophil.objectives": 1,
    "loophil.families": 0,
    "loophil.lora_fit": 1,
    "loophil.pipeline": 1,
    "loophil.prompts": 1,
    "loophil.stock": 1,
    "loophil.unscored": 1,
    "loophil.store": 1,
    "loophil.decide": 0,
    "loophil.pace": 0,
    "loophil.advantages": 0,
    "loophil.types": 0,
    "loophil.config": 0,
    "loophil.load_failure": 0,
    "loophil.lora_file": 0,
    "loophil.process": 0,
    "loophil.kohya": -1,
    "loophil.lora_source": -1,
    "loophil.errors": 0,
    "loophil": 0,
}
# The exception tree and the version number are the ground that every storey stands on, the lowest too.
GROUND = {"loophil.errors", "loophil"}

# Packages that only these modules of the product may import, and why.
WALLS = {
    "gradio": {"app", "loophil.ui"},  # the page can be exchanged, and the loop runs without one
    "sqlite3": {"loophil.store"},  # one place that knows how ratings are kept
    "sqlite_utils": {"loophil.store"},
    # The method is pure functions of tensors.
    "diffusers": {"loophil.families", "loophil.pipeline", "loophil.policy", "loophil.preview", "loophil.export"},
    "peft": {"loophil.families", "loophil.policy", "loophil.export"},
    # A token that somebody typed passes through hub alone; pipeline and load_failure know the errors alone.
    "huggingface_hub": {"loophil.hub", "loophil.snapshots", "loophil.model_card", "loophil.pipeline", "loophil.load_failure", "rewards.weights"},
    "rewards": {"loophil.build"},  # a reward is added without touching the loop
    "data": {"rewards.scene_check"},  # the loop knows nothing of the embedded model's world
}
WITHOUT_TORCH = {"loophil.config", "loophil.store", "loophil.session", "loophil.hub", "loophil.snapshots", "loophil.space", "loophil.ui"}
PICKLES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Reward models that are published as pickles alone are read by one module, weights only; its test writes such files.
PICKLE_READERS = {Path("rewards/weights.py"): {"torch.load"}, Path("tests/test_reward_models.py"): {"torch.load", "torch.save"}}
SQL = re.compile(r"\s*(SELECT |INSERT |UPDATE \w+ SET |DELETE FROM |CREATE (TABLE|INDEX) |PRAGMA |BEGIN IMMEDIATE)")

MAX_MODULE, MAX_FUNCTION, MAX_POSITIONAL = 400, 70, 5


def files(*tops: str) -> list[Path]:
    """The Python files under these folders, or these files, relative to ROOT."""
    found = [path for top in tops for path in ([ROOT / top] if top.endswith(".py") else sorted((ROOT / top).rglob("*.py")))]
    return [path.relative_to(ROOT) for path in found]


PRODUCT = files("app.py", "loophil", "rewards")
CODE = [*PRODUCT, *files("data", "bench")]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"), str(path))


def dotted(path: Path) -> str:
    """loophil/ui/board.py -> loophil.ui.board; loophil/__init__.py -> loophil."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room(name: str) -> str:
    """The row of STOREYS that a dotted name belongs to: loophil.types.Group -> loophil.types. Names outside the house stay as they are."""
    parts = name.split(".")
    return next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in STOREYS), name)


def imported(path: Path) -> Iterator[str]:
    """Dotted names that the file imports anywhere in it: at the top, lazily, for types only, or by import_module("...")."""
    package = path.parent.parts
    for node in ast.walk(tree(path)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else ()
                source = ".".join([*above, *([module] if module else [])])
                yield from (f"{source}.{alias.name}" for alias in names)
            case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                yield name


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


each_product_file = pytest.mark.parametrize("path", PRODUCT, ids=str)
each_code_file = pytest.mark.parametrize("path", CODE, ids=str)


def test_every_module_has_its_storey_and_every_row_its_module() -> None:
    assert {".".join(dotted(path).split(".")[:2]) for path in files("app.py", "loophil")} == set(STOREYS)


@pytest.mark.parametrize("path", files("app.py", "loophil"), ids=str)
def test_imports_come_from_storeys_below(path: Path) -> None:
    own = room(dotted(path))
    others = {room(name) for name in imported(path)} & set(STOREYS) - {own} - GROUND
    assert {other: STOREYS[other] for other in others if STOREYS[other] >= STOREYS[own]} == {}


@each_product_file
def test_walls_between_packages_hold(path: Path) -> None:
    own = room(dotted(path))
    broken = {name for name in packages(path) & set(WALLS) if own not in WALLS[name] and name != path.parts[0]}
    assert broken == set()


@pytest.mark.parametrize("path", files("rewards", "data"), ids=str)
def test_rewards_and_data_know_nothing_of_loophil(path: Path) -> None:
    assert packages(path) & {"loophil", "app"} == set()
    assert path.parts[0] == "rewards" or "rewards" not in packages(path)


@pytest.mark.parametrize("path", [path for path in files("loophil") if room(dotted(path)) in WITHOUT_TORCH], ids=str)
def test_page_and_storage_never_import_torch(path: Path) -> None:
    assert packages(path) & {"torch", "torchvision", "open_clip", "transformers", "diffusers", "peft"} == set()


def test_page_is_there_before_torch() -> None:
    """They take seconds to import, which is the worker's business: nothing that opens the run or serves the page may wait for them."""
    heavy = {"torch", "diffusers", "transformers", "peft"}
    code = f"import sys, app, loophil.build, loophil.ui, loophil.evaluation; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


@each_product_file
def test_only_the_store_speaks_sql(path: Path) -> None:
    texts = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert room(dotted(path)) == "loophil.store" or [text for text in texts if SQL.match(text)] == []


@pytest.mark.parametrize("path", [*CODE, *files("tests")], ids=str)
def test_nothing_reads_or_writes_pickles(path: Path) -> None:
    nodes = list(ast.walk(tree(path)))
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    switches = [node for node in nodes if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False"]
    assert packages(path) & PICKLES == set()
    assert {call for call in calls if call in ("torch.load", "torch.save")} <= PICKLE_READERS.get(path, set())
    assert [loading for loading in calls if loading == "torch.load"] == ["torch.load"] * len(only_weights(nodes))
    assert switches == []


def only_weights(nodes: list[ast.AST]) -> list[ast.Call]:
    """The calls of torch.load that cannot run what they read."""
    loads = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    return [load for load in loads if any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in load.keywords)]


@each_code_file
def test_modules_say_what_they_are_and_stay_small(path: Path) -> None:
    lines = len((ROOT / path).read_text("utf-8").splitlines())
    assert ast.get_docstring(tree(path)) or lines == 0
    assert lines <= MAX_MODULE


@each_code_file
def test_functions_fit_on_a_screen(path: Path) -> None:
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions(path)}
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


@each_code_file
def test_more_than_five_parameters_are_named_by_the_caller(path: Path) -> None:
    counts = {node.name: len([a for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]) for node in functions(path)}
    assert {name: count for name, count in counts.items() if count > MAX_POSITIONAL} == {}

"""The rules of CONTRIBUTING.md: imports go one way, nothing heavy loads early, files stay
readable."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mega_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = [
    "timm",
    "transformers",
    "datasets",
    "huggingface_hub",
    "torch",
    "accelerate",
    "scipy",
    "matplotlib",
    "numpy",
    "pydantic",
]

# folder -> the folders, or single modules, that it may import beside `errors` and `runtime`; from
# the top down
LAYERS = {
    "cli": (
        "verification",
        "hub",
        "run",
        "report",
        "evaluation",
        "training",
        "models",
        "tasks",
        "search",
        "weights",
        "recipe",
    ),
    "verification": (
        "hub",
        "run",
        "report",
        "evaluation",
        "training",
        "models",
        "tasks",
        "search",
        "weights",
        "recipe",
    ),
    "hub": ("run", "report", "models", "recipe"),
    "run": ("report", "evaluation", "training", "models", "tasks", "search", "weights", "recipe"),
    "report": ("evaluation.statistics", "models.licenses", "recipe"),
    "evaluation": ("models", "tasks", "weights", "search", "recipe"),
    "training": ("models", "tasks", "recipe"),
    "models": ("tasks", "recipe", "weights"),
    "tasks": ("recipe",),
    "search": (),
    "weights": (),
    "recipe": (),
    "runtime": (),
}
# library -> the only places that may import it
HOMES = {
    "accelerate": ("runtime",),
    "filelock": ("runtime",),
    "tqdm": ("runtime",),
    "cmaes": ("search",),
    "datasets": ("tasks",),
    "matplotlib": ("report",),
    "timm": ("models", "training"),
    "transformers": ("models",),
    "peft": ("models",),
    "huggingface_hub": ("hub", "models", "tasks", "report", "runtime.hub_client"),
    "yaml": ("recipe", "models.licenses", "report.card_edits"),
}
PURE = {
    "search": {"torch", "numpy", "cmaes"},
    "weights": {"torch", "numpy", "scipy", "safetensors"},
}


def _name(path):
    return str(path.relative_to(ROOT))


def _module(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def _imports(path, top_level_only=False):
    """Return the dotted name of everything that a module imports."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_within(name, roots):
    return any(name == root or name.startswith(root + ".") for root in roots)


# --- Who imports whom


def test_the_package_has_the_folders_of_the_design():
    folders = {
        path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert folders == set(LAYERS)
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "errors.py",
    }
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in MODULES)


def test_the_layers_are_in_order():
    """Imports can't run in a circle: each folder imports only folders below it in the table."""
    order = list(LAYERS)
    for number, (folder, below) in enumerate(LAYERS.items()):
        assert {name.partition(".")[0] for name in below} <= set(order[number + 1 :]), folder


@pytest.mark.parametrize("folder", LAYERS)
def test_a_folder_imports_only_what_lies_below_it(folder):
    allowed = [f"mega_hf.{name}" for name in (folder, "errors", "runtime", *LAYERS[folder])]
    for path in sorted((PACKAGE / folder).glob("*.py")):
        wrong = {
            name
            for name in _imports(path)
            if name.startswith("mega_hf") and not _is_within(name, allowed)
        }
        assert not wrong, f"{_name(path)} imports {wrong}"


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_imported_only_where_it_belongs(library):
    for path in MODULES:
        if any(_is_within(name, [library]) for name in _imports(path)):
            assert _is_within(_module(path), HOMES[library]), f"{_name(path)} imports {library}"


@pytest.mark.parametrize("folder", PURE)
def test_the_core_is_pure(folder):
    for path in sorted((PACKAGE / folder).glob("*.py")):
        others = {
            name for name in _imports(path) if name.partition(".")[0] not in sys.stdlib_module_names
        }
        wrong = {name for name in others if not _is_within(name, PURE[folder] | {"mega_hf"})}
        assert not wrong, f"{_name(path)} imports {wrong}"


def test_no_module_imports_itself_in_a_circle():
    """At import time; an import inside a function is made later."""
    modules = {f"mega_hf.{_module(path)}": path for path in MODULES}
    graph = {
        name: {
            found.rpartition(".")[0] if found not in modules else found
            for found in _imports(path, True)
        }
        for name, path in modules.items()
    }
    done, path_here = set(), []

    def visit(name):
        assert name not in path_here, f"a circle: {[*path_here[path_here.index(name) :], name]}"
        if name in done:
            return
        path_here.append(name)
        for other in sorted(graph[name] & set(modules)):
            visit(other)
        path_here.pop()
        done.add(name)

    for name in modules:
        visit(name)


# --- What loads when


@pytest.mark.parametrize(
    "code",
    [
        "import mega_hf; dir(mega_hf)",
        "from mega_hf.cli.main import build_parser; build_parser().format_help()",
        "import mega_hf; mega_hf.MegaError",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    program = f"import sys; {code}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_a_finished_run_is_read_without_torch():
    heavy = [name for name in HEAVY if name in ("torch", "timm", "transformers", "datasets")]
    program = "import sys, mega_hf.run.folder, mega_hf.report.result\n"
    program += f"print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists():
    import mega_hf

    assert all(getattr(mega_hf, name).__name__ == name for name in mega_hf.__all__)
    assert set(mega_hf.__all__) <= set(dir(mega_hf))
    assert not set(mega_hf.__all__) & set(LAYERS), "importing the folder would replace the function"
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mega_hf.nonsense


# --- Sizes, names and docstrings


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=_name)
def test_no_file_is_over_500_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_every_public_name_has_a_docstring(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for owner in [
        tree,
        *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")),
    ]:
        for node in owner.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            )
            missing += [node.name] if public and not ast.get_docstring(node) else []
    assert set(missing) <= {"forward"}, "torch's own name and contract"


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=_name)
def test_a_file_is_named_for_one_thing(path):
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert path.stem != path.parent.name, "a module that repeats its folder's name"


def test_nothing_draws_from_hidden_randomness():
    """Every draw has a named stream: no global generator is used or seeded outside the training of
    parents."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(
                ("np.random.", "random.")
            ):
                name = ast.unparse(node)
                assert name in (
                    "np.random.Generator",
                    "np.random.Philox",
                ), f"{_name(path)}:{node.lineno}: {name}"


def test_no_error_is_swallowed():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), (
                    f"{_name(path)}:{node.lineno}"
                )
                assert node.type is not None, f"{_name(path)}:{node.lineno}: a bare except"

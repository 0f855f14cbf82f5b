"""The house's rules: who may import whom, what loads when, how long things are, what they are called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mega_hf"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HUGGING_FACE = {"timm", "transformers", "datasets", "huggingface_hub"}

# folder -> what its modules may import beside the standard library
ALLOWED = {
    "genetic": {"torch", "numpy", "cmaes", "mega_hf.genetic", "mega_hf.errors"},
    "weights": {"torch", "numpy", "safetensors", "scipy", "mega_hf.weights", "mega_hf.errors"},
    "evaluation": {
        "torch",
        "numpy",
        "psutil",
        "accelerate",
        "mega_hf.evaluation",
        "mega_hf.weights",
        "mega_hf.errors",
    },
}


def _name(path):
    return str(path.relative_to(ROOT))


def _imports(path):
    """Return the dotted name of everything that a module imports, wherever in the module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_within(name, roots):
    return any(name == root or name.startswith(root + ".") for root in roots)


def _functions(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _length(function):
    """Lines from the first after the docstring to the last."""
    skipped = 1 if ast.get_docstring(function) and len(function.body) > 1 else 0
    return function.end_lineno - function.body[skipped].lineno + 1


# --- Who imports whom


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_a_layer_imports_only_what_it_may(folder):
    modules = sorted((PACKAGE / folder).glob("*.py"))
    assert modules
    for path in modules:
        others = {n for n in _imports(path) if n.partition(".")[0] not in sys.stdlib_module_names}
        strangers = {n for n in others if not _is_within(n, ALLOWED[folder])}
        assert not strangers, f"{_name(path)} imports {strangers}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_hf_imports_the_hugging_face_libraries(path):
    if path.parent.name != "hf":
        strangers = {n for n in _imports(path) if n.partition(".")[0] in HUGGING_FACE}
        assert not strangers, f"{_name(path)} imports {strangers}"


def test_hf_knows_no_genetic_algorithm_but_the_streams():
    for path in sorted((PACKAGE / "hf").glob("*.py")):
        genetic = {n for n in _imports(path) if _is_within(n, {"mega_hf.genetic"})}
        assert all(_is_within(n, {"mega_hf.genetic.seeds"}) for n in genetic), f"{_name(path)} imports {genetic}"


def test_lower_layers_know_neither_pipeline_nor_recipe():
    for folder in ALLOWED:
        for path in (PACKAGE / folder).glob("*.py"):
            assert not {n for n in _imports(path) if _is_within(n, {"mega_hf.pipeline", "mega_hf.recipe"})}


def test_nothing_but_the_command_line_imports_it():
    for path in MODULES:
        if path.name != "__main__.py":
            assert not {n for n in _imports(path) if _is_within(n, {"mega_hf.cli"})}, _name(path)


# --- What loads when


@pytest.mark.parametrize(
    "code",
    [
        "import mega_hf; dir(mega_hf)",
        "import mega_hf.cli; mega_hf.cli.build_parser().format_help()",
        "import mega_hf; mega_hf.MegaError",
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(code):
    heavy = sorted([*HUGGING_FACE, "torch", "accelerate", "scipy", "matplotlib", "numpy"])
    program = f"import sys; {code}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import mega_hf

    assert all(getattr(mega_hf, name).__name__ == name for name in mega_hf.__all__)
    assert set(mega_hf.__all__) <= set(dir(mega_hf))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mega_hf.nonsense


# --- Lengths and names


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=_name)
def test_files_and_functions_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 300, f"{lines} lines"
    long = {f.name: _length(f) for f in _functions(path) if _length(f) > 40}
    assert not long


def test_lengths_are_counted_without_the_docstring():
    source = 'def f(\n    a,\n):\n    """One.\n\n    Two.\n    """\n    b = a\n    return b\n'
    assert _length(ast.parse(source).body[0]) == 2
    assert _length(ast.parse("def f(): return 1").body[0]) == 1
    assert _length(ast.parse('def f():\n    """One."""\n').body[0]) == 1


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_what_is_public_says_what_it_does(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [] if ast.get_docstring(tree) or path.name == "__main__.py" else ["the module"]
    for owner in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]:
        for node in owner.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            silent += [node.name] if public and not ast.get_docstring(node) else []
    overloading = {"forward"}  # torch's own name and contract
    assert set(silent) <= overloading


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=_name)
def test_no_file_is_a_drawer(path):
    assert path.stem not in {"utils", "util", "common", "helpers", "helper", "misc", "manager"}
    assert path.stem != path.parent.name, "a module that repeats its folder's name"


def test_there_are_two_folder_levels_at_most():
    assert all(len(path.relative_to(PACKAGE).parts) <= 2 for path in MODULES)


def test_nothing_draws_from_hidden_randomness():
    """Every draw has a named stream: no global generator is used or seeded outside the training of parents."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("np.random.", "random.")):
                name = ast.unparse(node)
                assert name in ("np.random.Generator", "np.random.Philox"), f"{_name(path)}:{node.lineno}: {name}"


def test_no_error_is_swallowed():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                assert not (len(node.body) == 1 and isinstance(node.body[0], ast.Pass)), f"{_name(path)}:{node.lineno}"
                assert node.type is not None, f"{_name(path)}:{node.lineno}: a bare except"

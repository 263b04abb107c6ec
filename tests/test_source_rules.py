"""The house rules that a machine can check. Allowlists may only shrink."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ftbert"
OPS = PACKAGE / "_ops"

# room -> the rooms that it may import (docs/design.md, "The rooms"). Every room may import errors.
ARROWS = {
    "__init__": {
        *("batching", "calibrate", "config", "download", "estimator"),
        *("finetune", "prediction", "predictor", "pretrain", "tokenization"),
    },
    "__main__": {"cli"},
    "errors": set(),
    "callable_module": set(),
    "config": {"paths"},
    "batching": set(),
    "prediction": set(),
    "rows": set(),
    "words": set(),
    "json_files": set(),
    "vocabulary": {"json_files"},
    "guards": set(),
    "paths": set(),
    "pieces": {"_ops", "words"},
    "texts": set(),
    "tokenization": {"batching", "paths", "pieces", "texts", "vocabulary", "words"},
    "_ops": {"batching", "config"},
    "checkpoint": {"_ops", "config", "json_files", "paths", "tokenization"},
    "export": {"checkpoint", "config", "modeling", "paths", "tokenization"},
    "variables": {"config"},
    "modeling": {"config", "variables"},
    "fast_modeling": {"modeling", "_ops", "config"},
    "streaming": {"batching", "prediction", "texts", "tokenization"},
    "runtimes": {"_ops", "batching", "checkpoint", "guards", "modeling"},
    "predictor": {
        *("_ops", "batching", "checkpoint", "config"),
        *("guards", "paths", "prediction", "runtimes", "streaming", "texts", "tokenization"),
    },
    "estimator": {"modeling"},
    "training": {
        *("_ops", "batching", "checkpoint", "config", "modeling", "rows", "texts", "tokenization"),
        *("variables", "words"),
    },
    "finetune": {"_ops", "callable_module", "checkpoint", "config", "modeling", "tokenization", "training"},
    "pretrain": {"_ops", "callable_module", "checkpoint", "config", "tokenization", "training"},
    "serving": {"__version__", "batching", "predictor", "prediction", "texts", "tokenization"},
    "distributed": {"predictor", "prediction", "serving"},
    "measure": {"batching", "predictor"},
    "calibrate": {"batching", "callable_module", "checkpoint", "measure", "paths", "predictor"},
    "console": set(),
    "doctor": {"console", "runtimes"},
    "demo": {"console", "measure", "predictor"},
    "download": {"callable_module", "checkpoint"},
    "cli": {"__version__", "commands"},
    "commands": {
        *("calibrate", "checkpoint", "console", "demo", "distributed", "doctor", "download", "export", "finetune"),
        *("measure", "predictor", "pretrain", "rows", "serving", "training"),
    },
}

# These stand outside and use the package's public names as a user does.
PUBLIC_USERS = {"cli", "commands", "demo"}

# Modules that need TensorFlow to be imported at all.
IMPORTS_TENSORFLOW = {"variables", "modeling", "fast_modeling", "training", "estimator"}

MAX_LINE = 120
MAX_LINES = 400
MAX_TEST_LINES = 600
LONG_FILES = {}  # the most lines of a file that is longer; nothing may join

SOURCE_SUFFIXES = {".py", ".cc", ".cu", ".cuh", ".h", ".inc", ".cmake", ".toml", ".sh"}
# Written in two halves, so that this file does not break its own rule.
MACHINE_PATHS = re.compile("/wo" + "rk/|/ro" + "ot/|/tm" + "p/venvs|/ho" + "me/[a-z]|file:/" + "//")
SHARED = ".." + "/shared"
SHARED_ALLOWED = ("tests/", ".ci/", "benchmarks/")


def tracked():
    """Every file of the project, by git where there is a repository, else by looking."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=str(ROOT), check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ).stdout
        paths = [ROOT / name for name in listed.decode("utf-8").split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = [ROOT / name for name in ("ftbert", "tests", "examples", "benchmarks", "docs")]
        paths = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
        paths += [ROOT / "setup.py", ROOT / "pyproject.toml"]
    return [path for path in paths if path.is_file()]


FILES = tracked()
SOURCES = [path for path in FILES if path.suffix in SOURCE_SUFFIXES or path.name == "CMakeLists.txt"]
MODULES = [path for path in SOURCES if path.suffix == ".py" and PACKAGE in path.parents]


def name(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].replace(".py", "")


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree):
    """(dotted name, node) of everything that a module imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import at line %d: write the whole name" % node.lineno
            for alias in node.names:
                yield "%s.%s" % (node.module, alias.name), node


def test_there_is_something_to_check():
    assert len(MODULES) > 10 and len(FILES) > len(SOURCES) > len(MODULES)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_follow_the_arrows(path):
    room = room_of(path)
    assert room in ARROWS, "a new room: draw its arrows here and in docs/design.md"
    for target, node in imported(parse(path)):
        parts = target.split(".")
        if parts == ["ftbert"]:
            assert room in PUBLIC_USERS, "line %d: name the room that is meant" % node.lineno
        elif parts[0] == "ftbert" and parts[1] != room:
            allowed = ARROWS[room] | {"errors"}
            assert parts[1] in allowed, "line %d: %s may import %s" % (node.lineno, room, sorted(allowed))


def test_rooms_have_no_cycles():
    done, open_rooms = set(), []

    def visit(room):
        assert room not in open_rooms, " -> ".join(open_rooms + [room])
        if room in done or room not in ARROWS:
            return
        open_rooms.append(room)
        for target in sorted(ARROWS[room]):
            visit(target)
        done.add(open_rooms.pop())

    for room in ARROWS:
        visit(room)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_tensorflow_is_imported_where_it_is_used(path):
    if room_of(path) in IMPORTS_TENSORFLOW:
        return
    for node in parse(path).body:
        for target, _ in imported(ast.Module(body=[node], type_ignores=[])) if is_plain_import(node) else ():
            assert target.split(".")[0] != "tensorflow", "line %d: import it inside the function" % node.lineno


def is_plain_import(node):
    return isinstance(node, (ast.Import, ast.ImportFrom, ast.Try, ast.If))


def test_the_package_imports_without_tensorflow():
    rooms = sorted({room_of(path) for path in MODULES} - IMPORTS_TENSORFLOW - {"__init__", "__main__", "distributed"})
    code = "import importlib, sys\nimport ftbert\n"
    code += "".join("importlib.import_module('ftbert.%s')\n" % room for room in rooms)
    code += "found = sorted(m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'torch', 'ray'))\n"
    code += "sys.exit('imported: %s' % found[:5] if found else 0)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), stderr=subprocess.PIPE, universal_newlines=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_names_what_is_public(path):
    tree = parse(path)
    values = [
        node.value
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__"
    ]
    assert len(values) == 1, "expected one __all__"
    public = ast.literal_eval(values[0])
    assert len(set(public)) == len(public)
    if path.name != "__init__.py":  # those of a package may be made on demand
        bound = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
        bound |= {n.id for node in tree.body for n in ast.walk(node) if isinstance(n, ast.Name)}
        bound |= {target.rsplit(".", 1)[1] for target, _ in imported(tree) if "." in target}
        assert set(public) <= bound, "named in __all__ and not here"
    assert ast.get_docstring(tree), "expected a docstring that says what the module is for"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_python_3_7_reads_it(path):
    text = path.read_text(encoding="utf-8")
    if sys.version_info >= (3, 8):
        ast.parse(text, str(path), feature_version=(3, 7))
    else:
        compile(text, str(path), "exec")
    # feature_version lets these through.
    for node in ast.walk(ast.parse(text)):
        newer = [kind for kind in ("NamedExpr", "Match", "TryStar") if isinstance(node, getattr(ast, kind, ()))]
        assert not newer, "line %d: %s" % (node.lineno, newer)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_lines_and_files_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        assert len(line) <= MAX_LINE, "line %d has %d characters" % (number, len(line))
        assert line == line.rstrip() and "\t" not in line, "line %d: trailing space or tab" % number
    limit = MAX_LINES if PACKAGE in path.parents else MAX_TEST_LINES
    most = LONG_FILES.get(name(path), limit)
    assert len(lines) <= most, "%d lines, at most %d" % (len(lines), most)


def test_the_list_of_long_files_is_current():
    for path, most in LONG_FILES.items():
        count = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        limit = MAX_LINES if path.startswith("ftbert/") else MAX_TEST_LINES
        assert limit < count, "%s is short now: take it off the list" % path
        assert most - count < 40, "%s has %d lines now: lower its limit" % (path, count)


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix not in (".png", ".safetensors")], ids=name)
def test_no_path_of_a_machine(path):
    data = path.read_bytes()
    if b"\0" in data:
        return
    text = data.decode("utf-8")
    found = MACHINE_PATHS.search(text)
    assert not found, found
    if not name(path).startswith(SHARED_ALLOWED):
        assert SHARED not in text


# ---- The native side -----------------------------------------------------------------------------------------------

NATIVE = [path for path in SOURCES if OPS in path.parents and path.suffix in (".cc", ".cu", ".cuh", ".h", ".inc")]
CUDA_HEADERS = re.compile(r"^(cuda|cublas|cudnn|cute/|cutlass)")


def includes(path):
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_native_rooms_include_what_they_may(path):
    room = path.relative_to(OPS).parts[0]
    forbidden = {
        "core": ("cpu/", "cuda/", "reference/", "tensorflow/"),
        "cpu": ("cuda/", "reference/", "tensorflow/"),
        "cuda": ("cpu/", "reference/", "tensorflow/"),
        "reference": ("cpu/", "cuda/", "tensorflow/"),
        "tensorflow": ("core/", "cpu/", "cuda/", "reference/", "ftbert/engine.h"),
        "include": ("core/", "cpu/", "cuda/", "reference/", "tensorflow/"),
    }[room]
    for header in includes(path):
        own = room == "tensorflow" and header.startswith("tensorflow/core/")
        assert own or not header.startswith(forbidden), '#include "%s"' % header
        if room != "cuda":
            assert not CUDA_HEADERS.match(header), '#include "%s"' % header
        if own:
            assert path.name.startswith("tf1_"), "only the TensorFlow 1.x adapter sees a TensorFlow header"


@pytest.mark.parametrize("path", NATIVE, ids=name)
def test_the_engine_is_silent_and_never_exits(path):
    text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
    found = re.search(r"\b(std::cout|std::cerr|printf|puts|exit|abort)\s*(\(|<<)", text)
    assert not found, found

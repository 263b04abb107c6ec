"""The build: what setup.py asks for, the libraries it makes, and the ways to install."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ftbert import _ops

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not in a source tree")


def run(arguments, **options):
    done = subprocess.run(
        [str(argument) for argument in arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        **options,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


# ---- What pip is asked for -----------------------------------------------------------------------------------------


@pytest.fixture
def environment(tmp_path):
    """An empty virtual environment: (its Python, its site-packages)."""
    folder = tmp_path / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    return folder / "bin" / "python", next(folder.glob("lib/python*/site-packages"))


def ask_setup(python, expression, **variables):
    """The value of an expression in setup.py's namespace, asked as pip's build isolation runs it.

    setuptools reaches that process by PYTHONPATH alone, which the environment itself must not see.
    """
    setuptools = Path(pytest.importorskip("setuptools").__file__).parent.parent
    code = (
        "import importlib.util, json, sys\n"
        "spec = importlib.util.spec_from_file_location('build_script', %r)\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print('answer:' + json.dumps(eval(%r, vars(module))))\n"
    ) % (str(ROOT / "setup.py"), expression)
    environ = {key: value for key, value in os.environ.items() if not key.startswith("FTBERT_")}
    output = run([python, "-c", code], env=dict(environ, PYTHONPATH=str(setuptools), **variables))
    return json.loads(output.rsplit("answer:", 1)[1])


def install_fake(site_packages, distribution, version):
    info = site_packages / ("%s-%s.dist-info" % (distribution.replace("-", "_"), version))
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: %s\nVersion: %s\n" % (distribution, version))


def test_tensorflow_cpu_is_asked_for_where_there_is_none(environment):
    requirements = ask_setup(environment[0], "tensorflow_requirements()")
    assert len(requirements) == 2 and requirements[0].startswith("tensorflow-cpu>=1.14;")


@pytest.mark.parametrize(
    "distribution, version",
    [
        ("tensorflow", "2.15.1"),
        ("tensorflow-cpu", "2.21.0"),
        ("tensorflow-intel", "2.18.0"),
        ("tf-nightly", "2.22.0.dev1"),
    ],
)
def test_a_tensorflow_that_is_there_is_left_alone(environment, distribution, version):
    install_fake(environment[1], distribution, version)
    assert ask_setup(environment[0], "tensorflow_requirements()") == []
    assert ask_setup(environment[0], "probe_environment()['tensorflow']") == [[distribution, version]]
    assert len(ask_setup(environment[0], "tensorflow_requirements()", FTBERT_REQUIRE_TENSORFLOW="1")) == 2


def test_a_tensorflow_without_metadata_is_left_alone(environment):
    (environment[1] / "tensorflow").mkdir()
    (environment[1] / "tensorflow" / "__init__.py").write_text("")
    assert ask_setup(environment[0], "tensorflow_requirements()") == []


def test_other_packages_are_no_tensorflow(environment):
    install_fake(environment[1], "tensorflow-estimator", "2.15.0")
    install_fake(environment[1], "tensorflow-hub", "0.16.1")
    assert len(ask_setup(environment[0], "tensorflow_requirements()")) == 2
    assert ask_setup(environment[0], "tensorflow_requirements()", FTBERT_REQUIRE_TENSORFLOW="0") == []


@pytest.mark.parametrize("folder", ["build-env-x1y2", "builds-v0/.tmpAbCd"])
def test_a_throwaway_environment_says_nothing(tmp_path, folder):
    run([sys.executable, "-m", "venv", "--without-pip", tmp_path / folder])
    assert ask_setup(tmp_path / folder / "bin" / "python", "tensorflow_requirements()") == []


def test_a_wrong_switch_is_refused(environment):
    with pytest.raises(AssertionError, match="expected 0 or 1, got 'yes'"):
        ask_setup(environment[0], "tensorflow_requirements()", FTBERT_REQUIRE_TENSORFLOW="yes")


# ---- What was built ------------------------------------------------------------------------------------------------


def exported(library):
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    return {line.split()[-1] for line in run([nm, "-D", "--defined-only", library]).splitlines()}


@pytest.mark.parametrize("name", ["ftbert", "ftbert_tf2", "ftbert_tf1", "ftbert_cuda"])
def test_a_library_exports_our_functions_alone(name):
    path = Path(_ops.library_path()).parent / ("lib%s.so" % name)
    if not path.exists():
        pytest.skip("%s was not built here" % path.name)
    symbols = exported(path)
    assert symbols and all(symbol.startswith("ftbert_") for symbol in symbols)


def test_no_library_needs_tensorflow_or_a_cuda_toolkit():
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf")
    for name in ("ftbert", "ftbert_tf2"):
        needed = [line for line in run([readelf, "-d", _ops.library_path(name)]).splitlines() if "NEEDED" in line]
        assert needed
        for word in ("tensorflow", "cudart", "cublas", "libstdc++"):
            assert not [line for line in needed if word in line]


def test_the_adapter_without_tensorflow_says_what_is_missing():
    code = (
        "import ctypes, sys\n"
        "problem = ctypes.CDLL(sys.argv[1]).ftbert_tf_problem\n"
        "problem.restype = ctypes.c_char_p\n"
        "print(problem().decode())\n"
    )
    said = run([sys.executable, "-c", code, _ops.library_path("ftbert_tf2")])
    assert "Expected TensorFlow 2 in this process" in said


def test_the_abi_number_is_the_headers():
    header = (ROOT / "ftbert" / "_ops" / "include" / "ftbert" / "c_api.h").read_text(encoding="utf-8")
    number = int(header.split("#define FTBERT_ABI_VERSION", 1)[1].split()[0])
    assert _ops.ABI_VERSION == number == ctypes.CDLL(_ops.library_path()).ftbert_abi_version()


def test_the_op_loads_once():
    pytest.importorskip("tensorflow")
    from ftbert._ops.tensorflow_op import load_tensorflow_op

    ops = load_tensorflow_op()
    assert load_tensorflow_op() is ops
    assert callable(ops.ftbert_run) and callable(ops.ftbert_encoder)


def test_version_is_the_same_everywhere():
    import ftbert

    assert 'version = "%s"' % ftbert.__version__ in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


# ---- The ways to install (long: each compiles) ---------------------------------------------------------------------


def copy_of_the_source(tmp_path):
    ignore = shutil.ignore_patterns(".git", "build", "dist", "lib", "__pycache__", "*.egg-info", ".*_cache", ".venv")
    shutil.copytree(str(ROOT), str(tmp_path / "source"), ignore=ignore)
    return tmp_path / "source"


@pytest.mark.slow
def test_sdist_and_wheel(tmp_path):
    """The source archive builds; its wheel serves any Python and installs where there is no compiler's trace."""
    # Not "build" alone: the folder of that name in the source tree would pass for it.
    pytest.importorskip("build.__main__", reason="PyPA's build is not installed")
    source = copy_of_the_source(tmp_path)
    run([sys.executable, "-m", "build", source, "-o", tmp_path / "dist"], env=dict(os.environ, FTBERT_CUDA="0"))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name.endswith(".whl") and "-py3-none-linux_" in wheel.name
    names = zipfile.ZipFile(str(wheel)).namelist()
    assert "ftbert/_ops/lib/libftbert.so" in names and "ftbert/_ops/lib/libftbert_tf2.so" in names
    assert not [name for name in names if name.endswith((".cc", ".cu", ".h", ".o"))]
    metadata = (
        zipfile.ZipFile(str(wheel)).read("ftbert-%s.dist-info/METADATA" % wheel.name.split("-")[1]).decode("utf-8")
    )
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: tensorflow")]
    assert all("extra ==" in line for line in required)


@pytest.mark.slow
def test_an_editable_install(tmp_path):
    source = copy_of_the_source(tmp_path)
    environment = tmp_path / "venv"
    run([sys.executable, "-m", "venv", environment])
    python = environment / "bin" / "python"
    variables = dict(os.environ, FTBERT_CUDA="0", FTBERT_REQUIRE_TENSORFLOW="0")
    run([python, "-m", "pip", "install", "-q", "--no-deps", "-e", source], env=variables)
    code = (
        "import ctypes, importlib.util, os\n"
        "folder = os.path.dirname(importlib.util.find_spec('ftbert').origin)\n"
        "print(folder, ctypes.CDLL(os.path.join(folder, '_ops', 'lib', 'libftbert.so')).ftbert_abi_version())\n"
    )
    said = run([python, "-c", code], cwd=str(tmp_path)).split()
    assert said == [str(source / "ftbert"), str(_ops.ABI_VERSION)]

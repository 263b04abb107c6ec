"""Builds the native libraries with CMake; everything that can be said without running code is in pyproject.toml.

Environment:
    FTBERT_CUDA                0 or 1: never or always build the CUDA engine. Default: when nvcc is found.
    FTBERT_CUDA_ARCHS          architectures, e.g. "80 90a". Default: every one of ours that this nvcc knows.
    FTBERT_REQUIRE_TENSORFLOW  0 or 1: whether the installed package asks pip for tensorflow-cpu. Default: only when the
                               environment that it is installed into has no TensorFlow under any name.
    FTBERT_SANITIZE            e.g. "address,undefined".
    CMAKE_ARGS                 further arguments for CMake's configuration.
    CMAKE_BUILD_PARALLEL_LEVEL how many compilers run at once. Default: the CPUs that the process may use.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
LIBRARY_FOLDER = Path("ftbert", "_ops", "lib")

REQUIREMENTS = [
    "numpy>=1.17",
    # Releases from 0.21 claim Python 3.7 and 3.8 but have no wheels for them; pip would want a Rust compiler.
    "tokenizers>=0.13; python_version >= '3.9'",
    "tokenizers>=0.13,<0.21; python_version < '3.9'",
    "tqdm>=4.60",
    "rich>=12",
    "typer>=0.7",
]

# Every distribution that brings an importable `tensorflow`.
TENSORFLOW_NAMES = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-intel",
    "tensorflow-macos",
    "tensorflow-rocm",
    "tensorflow-cpu-aws",
    "intel-tensorflow",
    "intel-tensorflow-avx512",
    "tf-nightly",
    "tf-nightly-cpu",
    "tf-nightly-gpu",
)
# tensorflow-cpu is half the download of tensorflow, and prediction needs no CUDA in TensorFlow. It exists for x86 only.
TENSORFLOW_REQUIREMENTS = [
    "tensorflow-cpu>=1.14; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    "tensorflow>=1.14; platform_machine != 'x86_64' and platform_machine != 'AMD64'",
]

# Runs in the interpreter that will use the package. Looks at file names only: importing TensorFlow takes seconds.
PROBE = r"""
import glob, json, os, re, sys
names = set(json.loads(sys.argv[1]))
found, cublas = [], []
for folder in sys.path:
    for pattern in ("*.dist-info", "*.egg-info"):
        for info in glob.glob(os.path.join(folder, pattern)):
            parts = os.path.basename(info).rsplit(".", 1)[0].split("-")
            name = re.sub(r"[-_.]+", "-", parts[0]).lower()
            if name in names and len(parts) > 1:
                found.append([name, parts[1]])
    if os.path.isfile(os.path.join(folder, "tensorflow", "__init__.py")) and not found:
        found.append(["tensorflow", ""])  # a copy without metadata, e.g. conda's or one built from source
    cublas += [os.path.dirname(p) for p in glob.glob(os.path.join(folder, "nvidia", "*", "include", "cublasLt.h"))]
print(json.dumps({"tensorflow": found, "cublas": cublas}))
"""

TF1_FLAGS = r"""
import json, tensorflow as tf
print("ftbert:" + json.dumps([tf.__version__, tf.sysconfig.get_compile_flags(), tf.sysconfig.get_link_flags()]))
"""

# argv: libftbert, ABI number, adapter or "". The adapter's failure in a TensorFlow that works is a failure of the
# build.
LOAD_CHECK = r"""
import ctypes, sys
library, abi, adapter = sys.argv[1:4]
got = ctypes.CDLL(library).ftbert_abi_version()
if str(got) != abi:
    sys.exit("%s: expected ABI %s, got %s" % (library, abi, got))
if adapter:
    try:
        import tensorflow.compat.v1 as tf
    except Exception as error:
        print("ftbert: the TensorFlow that is installed does not import, so the op was not tried: %s" % error)
        sys.exit(0)
    ops = tf.load_op_library(adapter)
    for name in ("ftbert_run", "ftbert_encoder"):
        if not callable(getattr(ops, name, None)):
            sys.exit("%s: the op %s is not in it" % (adapter, name))
    print("ftbert: the op loads in TensorFlow " + tf.__version__)
"""


def target_python(code, *arguments):
    """What `code` prints in the interpreter that will use the package.

    pip's build isolation works through PYTHON* variables and a path of its own; -E and a neutral folder leave both
    behind and keep the user's site-packages, where `pip install --user` puts TensorFlow.
    """
    return subprocess.run(
        [sys.executable, "-E", "-c", "import sys; sys.path.pop(0)\n" + code] + list(arguments),
        cwd=os.path.abspath(os.sep),
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    ).stdout


def probe_environment():
    """TensorFlow packages as [name, version] and folders with cuBLASLt's header, in the target environment."""
    return json.loads(target_python(PROBE, json.dumps(TENSORFLOW_NAMES)))


def is_throwaway_environment():
    """Whether this interpreter is one that `python -m build` or uv made for this build alone.

    Such an interpreter says nothing about where the package will live.
    """
    prefix = Path(sys.prefix)
    return prefix.name.startswith("build-env-") or any(part.startswith("builds-v") for part in prefix.parts)


def tensorflow_requirements():
    """[] when a TensorFlow is there, or when nobody can know: pip would install tensorflow-cpu over a `tensorflow`."""
    wanted = os.environ.get("FTBERT_REQUIRE_TENSORFLOW")
    if wanted not in (None, "", "0", "1"):
        raise SystemExit("FTBERT_REQUIRE_TENSORFLOW: expected 0 or 1, got %r." % wanted)
    if wanted:
        return TENSORFLOW_REQUIREMENTS if wanted == "1" else []
    if is_throwaway_environment() or probe_environment()["tensorflow"]:
        return []
    return TENSORFLOW_REQUIREMENTS


def tf1_cmake_arguments(packages):
    """CMake's FTBERT_TF1_* when the target environment has a TensorFlow 1.x; its own flags, none of ours."""
    if not any(version.startswith("1.") for _, version in packages):
        return ["-DFTBERT_TF1_INCLUDE="]
    try:
        output = target_python(TF1_FLAGS)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            "TensorFlow 1.x is installed but does not import, so its op cannot be built. Repair it (often: "
            "pip install 'protobuf<3.21') or uninstall it.\n" + error.stderr[-2000:]
        ) from error
    version, compile_flags, link_flags = json.loads(output.rsplit("ftbert:", 1)[1])
    include = [flag[2:] for flag in compile_flags if flag.startswith("-I")]
    other = [flag for flag in compile_flags if not flag.startswith("-I")]
    folder = next(flag[2:] for flag in link_flags if flag.startswith("-L"))
    name = next(flag[2:] for flag in link_flags if flag.startswith("-l"))
    library = os.path.join(folder, name[1:] if name.startswith(":") else "lib%s.so" % name)
    print("ftbert: TensorFlow %s found, its op is built too" % version)
    return [
        "-DFTBERT_TF1_INCLUDE=" + ";".join(include),
        "-DFTBERT_TF1_COMPILE_FLAGS=" + " ".join(other),
        "-DFTBERT_TF1_LIBRARY=" + library,
    ]


def find_tool(name):
    """The program of PyPI's `cmake` or `ninja` package where it is installed, else the one on PATH, else None."""
    try:
        module = __import__(name)
        folder = getattr(module, "CMAKE_BIN_DIR" if name == "cmake" else "BIN_DIR")
        found = shutil.which(name, path=folder)
        if found:
            return found
    except (ImportError, AttributeError):
        pass
    return shutil.which(name)


def usable_cpus():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CMakeBuild(build_ext):
    """Configures, builds and installs _ops/ with CMake, then copies the libraries to where setuptools wants them."""

    def run(self):
        libraries = self.build_native()
        # The source tree gets them in any case: `python -m ftbert` and `python -m pytest` started in it import from it.
        self.installed = self.put(libraries, ROOT / LIBRARY_FOLDER)
        if not self.inplace:
            target = Path(self.build_lib).resolve() / LIBRARY_FOLDER
            shutil.rmtree(str(target), ignore_errors=True)
            self.installed = self.put(libraries, target)
        self.check_load(Path(self.installed[0]).parent)

    @staticmethod
    def put(libraries, folder):
        """Copies libraries beside their places and renames them: who has an old file open keeps it whole."""
        folder.mkdir(parents=True, exist_ok=True)
        for library in libraries:
            beside = folder / (library.name + ".%d.tmp" % os.getpid())
            shutil.copy2(str(library), str(beside))
            os.replace(str(beside), str(folder / library.name))
        return [str(folder / library.name) for library in libraries]

    def build_native(self):
        cmake, ninja = find_tool("cmake"), find_tool("ninja")
        if cmake is None:
            raise SystemExit("ftbert is compiled with CMake 3.18 or newer, found none. Run: pip install cmake ninja")
        environment = probe_environment()
        arguments = [
            "-DCMAKE_BUILD_TYPE=" + ("Debug" if self.debug else "Release"),
            "-DFTBERT_CUDA=" + (os.environ.get("FTBERT_CUDA") or "AUTO"),
            "-DFTBERT_CUDA_ARCHS=" + os.environ.get("FTBERT_CUDA_ARCHS", ""),
            "-DFTBERT_CUBLAS_HINTS=" + ";".join(environment["cublas"]),
            "-DFTBERT_SANITIZE=" + os.environ.get("FTBERT_SANITIZE", ""),
        ]
        arguments += tf1_cmake_arguments(environment["tensorflow"])
        if ninja:
            arguments += ["-GNinja", "-DCMAKE_MAKE_PROGRAM=" + ninja]
        arguments += os.environ.get("CMAKE_ARGS", "").split()
        # An editable install's build_temp is thrown away; the next one compiles only what changed.
        temp = ROOT / "build" / "temp.editable" if getattr(self, "editable_mode", False) else Path(self.build_temp)
        folder = temp.resolve() / ("ninja" if ninja else "make")
        stage = folder / "stage"
        jobs = self.parallel or os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or usable_cpus()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(str(stage), ignore_errors=True)
        source = str(ROOT / "ftbert" / "_ops")
        self.command([cmake, "--no-warn-unused-cli", "-S", source, "-B", str(folder)] + arguments)
        self.command([cmake, "--build", str(folder), "--parallel", str(jobs)])
        self.command([cmake, "--install", str(folder), "--strip", "--prefix", str(stage)])
        return sorted(path for path in stage.iterdir() if path.is_file())

    @staticmethod
    def command(arguments):
        try:
            subprocess.run(arguments, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit("ftbert: the native build failed, its message stands above (%s)." % error) from error

    @staticmethod
    def check_load(folder):
        """Opens what was built, in a process of its own, as a user's process will."""
        if os.environ.get("FTBERT_SANITIZE"):
            return
        header = (ROOT / "ftbert" / "_ops" / "include" / "ftbert" / "c_api.h").read_text(encoding="utf-8")
        abi = header.split("#define FTBERT_ABI_VERSION", 1)[1].split()[0]
        packages = probe_environment()["tensorflow"]
        adapter = ""
        if packages and not is_throwaway_environment():
            major = "1" if any(version.startswith("1.") for _, version in packages) else "2"
            adapter = str(folder / ("libftbert_tf%s.so" % major))
        try:
            print(target_python(LOAD_CHECK, str(folder / "libftbert.so"), abi, adapter), end="")
        except subprocess.CalledProcessError as error:
            raise SystemExit("ftbert: what was built does not load:\n" + error.stderr[-3000:]) from error

    # What setuptools asks for when it installs, lists or makes an editable wheel.
    def get_outputs(self):
        return getattr(self, "installed", [])

    def get_output_mapping(self):
        return {}


class AnyPythonWheel(bdist_wheel):
    """One binary serves every Python 3: nothing in it touches Python's C API."""

    def get_tag(self):
        return ("py3", "none") + tuple(super().get_tag()[2:])


class NativeDistribution(Distribution):
    def has_ext_modules(self):
        return True


if __name__ == "__main__":
    setup(
        distclass=NativeDistribution,
        license="Apache-2.0",  # here, because old and new setuptools read two different forms of it in pyproject.toml
        ext_modules=[Extension("ftbert._ops.lib", sources=[])],
        cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
        install_requires=REQUIREMENTS + tensorflow_requirements(),
    )

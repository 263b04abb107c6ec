"""Holds ONNX Runtime to AVX2, so that int8 on a machine without dot-product instructions can be compared on one with.

MLAS, its kernel library, picks its kernels by CPUID and has no switch. This makes a copy of the package in which every
CPUID instruction is an invalid one of the same length, and a library to preload whose signal handler answers in its
place, with the bits of AVX-512, AVX-VNNI and AMX cleared. Nothing else differs. Needs objdump and a C compiler.
"""

import os
import re
import shutil
import subprocess

HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

static void answer(int number, siginfo_t* info, void* context) {
  greg_t* r = ((ucontext_t*)context)->uc_mcontext.gregs;
  unsigned a, b, c, d;
  if (memcmp((void*)r[REG_RIP], "\x0f\x0b", 2) != 0) {
    signal(SIGILL, SIG_DFL);
    return;
  }
  unsigned leaf = (unsigned)r[REG_RAX], part = (unsigned)r[REG_RCX];
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) {
    b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
    c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
    d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25);
  } else if (leaf == 7 && part == 1) {
    a &= ~(1u << 4 | 1u << 5 | 1u << 21);
    d &= ~(1u << 4 | 1u << 5 | 1u << 10 | 1u << 19);
  }
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, 0);
}
"""


def replace_cpuid(library):
    """Writes ud2 over every cpuid of the library's .text; returns how many there were."""
    headers = subprocess.check_output(["objdump", "-h", "-j", ".text", library], universal_newlines=True)
    fields = re.search(r"\.text\s+(\S+)\s+(\S+)\s+\S+\s+(\S+)", headers).groups()
    _, address, offset = (int(field, 16) for field in fields)
    code = subprocess.Popen(
        ["objdump", "-d", "-j", ".text", "--no-show-raw-insn", library], stdout=subprocess.PIPE, universal_newlines=True
    )
    places = [int(line.split(":")[0], 16) for line in code.stdout if line.rstrip().endswith("\tcpuid")]
    if code.wait() != 0 or not places:
        raise RuntimeError("%s: objdump found no cpuid instruction in it." % library)
    with open(library, "r+b") as file:
        for place in places:
            file.seek(place - address + offset)
            if file.read(2) != b"\x0f\xa2":
                raise RuntimeError("%s: no cpuid at %x." % (library, place))
            file.seek(place - address + offset)
            file.write(b"\x0f\x0b")
    return len(places)


def hold_to_avx2(python, folder):
    """Makes the copy in `folder` from the interpreter's own package. Returns the environment to run it with."""
    package = os.path.join(folder, "avx2", "onnxruntime")
    preload = os.path.join(folder, "avx2", "cpuid.so")
    find = "import importlib.util as u; print(u.find_spec('onnxruntime').submodule_search_locations[0])"
    source = subprocess.check_output([python, "-c", find], universal_newlines=True).strip()
    shutil.rmtree(os.path.dirname(package), ignore_errors=True)
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "transformers", "tools"))
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-x", "c", "-", "-o", preload],
        input=HANDLER,
        universal_newlines=True,
        check=True,
    )
    count = 0
    capi = os.path.join(package, "capi")
    for name in sorted(os.listdir(capi)):
        if name.startswith("onnxruntime_pybind11_state"):
            count += replace_cpuid(os.path.join(capi, name))
    print("ONNX Runtime held to AVX2: %d places" % count)
    return {"PYTHONPATH": os.path.dirname(package), "LD_PRELOAD": preload}

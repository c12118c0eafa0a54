"""Builds the optional CPU library; everything else about the package is in pyproject.toml."""

import os
import re
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

CSRC = "kernels/csrc"
# No errno and no traps are what vector code needs; the rest of IEEE stays, or NaN inputs would not give NaN outputs.
FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-pthread"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# GCC finds its own AVX-512 header uninitialised, hundreds of times.
FLAGS += ["-w"]
# Each is the same kernel in a translation unit of its own; which one runs is decided at run time.
X86_VARIANTS = {
    "avx2": ["-mavx2", "-mfma", "-mf16c", "-mprfchw"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprfchw", "-mprefer-vector-width=512"],
}


class BuildOptional(build_ext):
    """Compiles the plain C library, and lets the installation go on without it where that does not work."""

    def run(self):
        # Caught here as well: setting the compiler up can fail before any extension is built.
        try:
            super().run()
        except Exception as error:
            self._explain(error)

    def build_extension(self, ext):
        try:
            self._build(ext)
        except Exception as error:
            # What an earlier build left is of other sources.
            if os.path.exists(output := self.get_ext_fullpath(ext.name)):
                os.remove(output)
            self._explain(error)

    def get_ext_filename(self, fullname):
        """Without the tag of a Python version: ctypes opens it, so one file serves all of them."""
        folder, name = os.path.split(super().get_ext_filename(fullname))
        return os.path.join(folder, name.split(".")[0] + os.path.splitext(name)[1])

    def get_export_symbols(self, ext):
        return []  # a plain library: no PyInit function to export

    def _explain(self, error):
        reason = "the compiler failed" if isinstance(error, CompileError | LinkError) else error
        self.warn(
            f"vssm's CPU library was not built ({reason}). Everything works without it, only slower; "
            "to have it, install a C++ compiler (GCC or Clang) and reinstall (docs/install.md)."
        )

    def _build(self, ext):
        if self.compiler.compiler_type == "msvc":
            raise RuntimeError("it needs GCC or Clang")
        output = self.get_ext_fullpath(ext.name)
        for other in set(glob(os.path.join(os.path.dirname(output), "_cpu_scan*"))) - {output}:
            os.remove(other)  # an earlier version of this file named it after a Python version
        built = os.path.getmtime(output) if os.path.exists(output) else 0
        if not self.force and all(os.path.getmtime(path) <= built for path in ext.sources + ext.depends):
            return
        # Of what is built for, which on macOS need not be what it is built on.
        variants = X86_VARIANTS if sysconfig.get_platform().endswith(("x86_64", "amd64")) else {}
        with ThreadPoolExecutor() as pool:
            baseline = pool.submit(self._compile, "scan_baseline", [])
            extra = {name: pool.submit(self._compile, f"scan_{name}", flags) for name, flags in variants.items()}
        objects, macros = baseline.result(), []
        for name, compiled in extra.items():
            # An old compiler may lack the newest instruction set; the others still serve.
            if compiled.exception() is None:
                objects += compiled.result()
                macros.append((f"VSSM_HAVE_{name.upper()}", "1"))
        objects += self._compile("scan", [], macros)
        os.makedirs(os.path.dirname(output), exist_ok=True)
        self.compiler.link_shared_object(objects, output, extra_postargs=["-pthread"], target_lang="c++")

    def _compile(self, name, flags, macros=()):
        return self.compiler.compile(
            [f"{CSRC}/{name}.cpp"], output_dir=self.build_temp, macros=list(macros), extra_postargs=FLAGS + flags
        )


class Wheel(bdist_wheel):
    """Names the wheel after what is in it: a library for one platform and every Python, or none at all."""

    def get_tag(self):
        self.root_is_pure = not self._has_library()
        # Of the platform alone; the base class would add this Python and its ABI.
        return "py3", "none", super().get_tag()[2]

    def _has_library(self):
        build_ext = self.get_finalized_command("build_ext")
        return any(os.path.exists(build_ext.get_ext_fullpath(ext.name)) for ext in self.distribution.ext_modules)


def repository():
    """The repository's address, which only a release knows; an archive made for one remembers it."""
    known = os.environ.get("VSSM_REPOSITORY", "").rstrip("/")
    if not known and os.path.isfile("PKG-INFO"):
        with open("PKG-INFO", encoding="utf-8") as file:
            found = re.search(r"^Project-URL: Repository, (\S+)$", file.read(), re.MULTILINE)
        known = found[1] if found else ""
    return known


def readme(address):
    """The README for the index, which has none of the files that it links to and shows: their addresses are whole."""
    with open("README.md", encoding="utf-8") as file:
        text = file.read()
    if not address:
        return text
    with open("vssm/_version.py", encoding="utf-8") as file:
        tag = "v" + re.search(r'"(.+)"', file.read())[1]

    def whole(match):
        kind = "raw" if match[1].startswith("!") else "blob"
        return f"{match[1]}({address}/{kind}/{tag}/{match[2]})"

    return re.sub(r"(!?\[[^\]]*\])\((?!\w+:|#)([^)\s]+)\)", whole, text)


def links(address):
    """What the index shows beside the README."""
    pages = {"Changelog": "/blob/main/CHANGELOG.md", "Documentation": "/tree/main/docs", "Issues": "/issues"}
    return {"Repository": address} | {name: address + page for name, page in pages.items()} if address else {}


library = Extension(
    "vssm_kernels._cpu_scan",
    sources=sorted(glob(f"{CSRC}/*.cpp")),
    depends=[*sorted(glob(f"{CSRC}/*.h")), "setup.py"],
    language="c++",
    optional=True,
)

ADDRESS = repository()
setup(
    long_description=readme(ADDRESS),
    long_description_content_type="text/markdown",
    project_urls=links(ADDRESS),
    packages=find_packages(".", include=["vssm", "vssm.*"])
    + find_packages("kernels", include=["vssm_kernels", "vssm_kernels.*"])
    + ["vssm.configs"],  # data alone, of which pyproject.toml says where they are
    ext_modules=[library],
    cmdclass={"build_ext": BuildOptional, "bdist_wheel": Wheel},
)

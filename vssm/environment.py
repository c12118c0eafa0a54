"""What runs here: versions, devices, backends of the scan and why others do not run. `vssm env` prints it."""

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vssm_kernels import BACKENDS, cpu_library
from vssm_kernels.backends import unavailable_reason
from vssm_kernels.timing import cpu_name

from ._mmcv import MissingOperatorsFinder
from ._optional import headless_opencv_command
from ._version import __version__

__all__ = ["as_text", "describe"]

# Distributions, in the order of printing.
_PACKAGES = (
    "torch",
    "timm",
    "numpy",
    "safetensors",
    "torchvision",
    "triton",
    "onedl-mmengine",
    "onedl-mmcv",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
    "monai",
    "nibabel",
    "fvcore",
    "onnx",
    "onnxruntime",
    "onnxscript",
)
# Variables that change what runs or how fast.
_VARIABLES = ("VSSM_", "TRITON_", "OMP_", "MKL_NUM", "KMP_", "CUDA_VISIBLE", "HIP_VISIBLE", "PYTORCH_")


def describe() -> dict[str, Any]:
    """Describe the installation and the machine; all values are text, numbers, lists and dicts, as in JSON.

    Returns:
        Entries by name. A part that is not there has a sentence that says why.
    """
    return {
        "vssm": {"version": __version__, "folder": str(Path(__file__).parent), "installed": _installed()},
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "processor": {"name": cpu_name(), "cores": _cores(), "threads of PyTorch": torch.get_num_threads()},
        "devices": _devices(),
        "CUDA": _cuda(),
        "compiled scan": _compiled_scan(),
        "backends": {kind: _backends(kind) for kind in dict.fromkeys(d.split(":")[0] for d in _device_names())},
        "OpenCV": _opencv(),
        "operators of mmcv": _mmcv_operators(),
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }


def as_text(about: Mapping[str, Any], indent: str = "") -> str:
    """Lay a description out for reading, one entry on a line.

    Args:
        about: From :func:`describe`.
        indent: Stands before each line.

    Returns:
        Lines, without a line break at the end.
    """
    lines = []
    for name, value in about.items():
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", as_text(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {value or 'none'}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _installed() -> str:
    """From what kind of wheel: the tag tells whether pip found one with the compiled library, or built one without."""
    try:
        distribution = metadata.distribution("vssm")
    except metadata.PackageNotFoundError:
        return "no, imported from its folder"
    if '"editable": true' in (distribution.read_text("direct_url.json") or ""):
        return "from a clone, editable"
    lines = (distribution.read_text("WHEEL") or "").splitlines()
    tags = [line.removeprefix("Tag: ") for line in lines if line.startswith("Tag: ")]
    return f"from a wheel for {', '.join(tags) or 'an unknown platform'}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_names() -> list[str]:
    names = ["cpu"]
    for kind in ("cuda", "xpu"):
        if (module := getattr(torch, kind, None)) and module.is_available():
            names += [f"{kind}:{i}" for i in range(module.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def _devices() -> dict[str, str]:
    devices = {}
    for name in _device_names():
        kind, _, number = name.partition(":")
        if not number:
            devices[name] = cpu_name() if kind == "cpu" else "Apple's GPU"
            continue
        try:
            about = torch.get_device_module(kind).get_device_properties(int(number))
        except RuntimeError as error:  # of the driver
            devices[name] = f"it does not answer: {_first_line(error)}"
            continue
        devices[name] = f"{about.name}, {about.total_memory / 2**30:.1f} GiB"
        if kind == "cuda":
            devices[name] += f", compute capability {about.major}.{about.minor}"
    return devices


def _cuda() -> str:
    if torch.version.hip:
        return f"PyTorch is built for ROCm {torch.version.hip}"
    if not torch.version.cuda:
        return "PyTorch is built without CUDA"
    built = f"PyTorch is built for CUDA {torch.version.cuda}"
    if torch.cuda.is_available():
        return f"{built}, with cuDNN {torch.backends.cudnn.version()}"
    return f"{built}, and finds no GPU or no driver"


def _compiled_scan() -> dict[str, str] | str:
    reason = cpu_library.unavailable_reason()
    return reason or {"file": str(cpu_library.library_file()), "instruction set": cpu_library.variant()}


def _backends(kind: str) -> dict[str, str]:
    """What each backend says of tensors on this kind of device."""
    device = torch.device(kind)
    return {name: unavailable_reason(name, device, torch.float32) or "available" for name in BACKENDS[1:]}


def _opencv() -> dict[str, str]:
    """Which builds pip knows, and which one is imported: all of them write to one folder."""
    builds = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
    found = {name: _version(name) for name in builds}
    about = {name: version for name, version in found.items() if version != "not installed"}
    try:
        cv2 = importlib.import_module("cv2")
    except ModuleNotFoundError as error:
        return about | {"imported": f"no: {_first_line(error)}"}
    except ImportError as error:
        return about | {"imported": f"no: {_first_line(error)}", "help": headless_opencv_command()}
    lines = (line.split(":", 1) for line in cv2.getBuildInformation().splitlines() if ":" in line)
    windows = {name.strip(): value.strip() for name, value in lines}.get("GUI") or "NONE"
    kind = "headless" if windows == "NONE" else f"with windows ({windows})"
    return about | {"imported": f"{cv2.__version__}, {kind}"}


def _mmcv_operators() -> str:
    """Looks at the files: importing mmcv takes seconds."""
    spec = importlib.util.find_spec("mmcv")
    if spec is None or not spec.origin:
        return "mmcv is not installed"
    if compiled := list(Path(spec.origin).parent.glob("_ext.*")):
        return f"compiled ({compiled[0].name})"
    if any(isinstance(finder, MissingOperatorsFinder) for finder in sys.meta_path):
        return "not compiled; vssm stands in for nms, softnms, RoIAlign and the sigmoid focal loss"
    return "not compiled"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""The published GFLOPs of detectors and segmentors, which the headers of the configs quote."""

import functools
import re
from pathlib import Path

import pytest

pytest.importorskip("fvcore")
pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

# vssm first: it lets mmdet be imported without mmcv's compiled operators.
import vssm.mm  # noqa: E402, F401, I001

from vssm._headers import configs  # noqa: E402
from vssm.profiling.subjects import count_subject, find_subjects  # noqa: E402

REPO = Path(__file__).parents[2]
HEADERS = {
    path: " ".join(line[2:] for line in path.read_text().splitlines() if line.startswith("# "))
    for task in ("detection", "segmentation")
    for path in configs(REPO / "configs" / task)
}


def network(path: Path) -> str:
    """Head and backbone: schedules cost the same."""
    return "_".join(path.stem.split("_")[:2])


NETWORKS = {network(path): path for path in HEADERS}
# More digits, from the comments of the official scripts.
OFFICIAL_SCRIPTS = {
    "mask-rcnn_vmamba-tiny-s2l5": "270.19",
    "mask-rcnn_vmamba-tiny-s1l8": "271.16",
    "mask-rcnn_vmamba-small-s2l15": "348.92",
}
# Printed figures that the count does not give, and why.
NO_CODE = "no code was published, and the classifier's figure does not come out either"
NOT_REPRODUCED = {
    "mask-rcnn_groupmamba-tiny": {"279": NO_CODE},
    "upernet_groupmamba-tiny": {"955": NO_CODE},
    "mask-rcnn_vmamba-small-s2l15": {"384": "the README contradicts the official script, which prints 349"},
    "mask-rcnn_msvmamba-tiny": {"252": "the README contradicts the official config, which says 265"},
    "upernet_msvmamba-tiny": {"942": "942.52, and 942 if the digits are cut off"},
    "upernet_spatialmamba-tiny": {
        "936": "936.52 in training mode, which gives the classifiers; 936.37 in evaluation mode"
    },
}


@functools.cache
def gflops(name: str) -> float:
    build = find_subjects([str(NETWORKS[name])]).popitem()[1]
    return count_subject(build)[1].flops / 1e9


def rounded(value: float, like: str) -> str:
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in HEADERS if HEADERS[p].count("GFLOPs") > 1], ids=lambda path: path.stem)
def test_the_headers(path):
    """Our own figure is right, and so are the published ones unless they are listed."""
    ours, *printed = re.findall(r"([\d.]+) GFLOPs", HEADERS[path])
    value = gflops(network(path))
    assert ours == f"{value:.0f}"
    wrong = {figure for figure in printed if rounded(value, figure) != figure}
    assert wrong == set(NOT_REPRODUCED.get(network(path), ()))


def test_the_page_names_what_does_not_come_out():
    page = (REPO / "docs" / "flops.md").read_text()
    heads = {"mask-rcnn": "Mask R-CNN", "upernet": "UPerNet"}
    for name, figures in NOT_REPRODUCED.items():
        head, backbone = name.split("_")
        for figure in figures:
            row = f"| {heads[head]} on `{backbone.replace('-', '_')}` | {figure} | {gflops(name):.0f} |"
            assert row in page


@pytest.mark.parametrize(("name", "digits"), OFFICIAL_SCRIPTS.items())
def test_the_official_scripts(name, digits):
    assert rounded(gflops(name), digits) == digits

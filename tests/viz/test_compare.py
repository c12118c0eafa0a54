"""Answers next to the truth: which are drawn as right, and one colour for a class in all panels."""

import numpy as np
import pytest
from PIL import Image

from vssm.viz import FoundObject, plot_label_maps, plot_objects
from vssm.viz.compare import overlap
from vssm.viz.palette import ANSWER, CLASSES, RIGHT, TRUTH, class_colours, family_colours

pytest.importorskip("matplotlib")


@pytest.fixture
def figures(monkeypatch):
    """The figures that are written."""
    from matplotlib.figure import Figure

    seen, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (seen.append(self), save(self, *args, **kwargs))
    )
    return seen


def test_objects_are_right_wrong_or_not_found(tmp_path, figures):
    two, seven, nine = (FoundObject((x, 4.0, 10.0, 10.0), name) for x, name in ((2.0, "2"), (20.0, "7"), (40.0, "9")))
    found = [
        FoundObject((3.0, 4.0, 10.0, 10.0), "2"),
        FoundObject((2.0, 5.0, 10.0, 10.0), "2"),  # once more
        FoundObject((20.0, 4.0, 9.0, 10.0), "1"),
        FoundObject((60.0, 20.0, 5.0, 5.0), "3"),
    ]
    image = Image.new("RGB", (64, 32))
    path = plot_objects([(image, [two, seven, nine], found), (image, [], [])], tmp_path / "o.png")
    with Image.open(path) as picture:
        assert picture.width == 1050
    (figure,) = figures
    plain, truth, answers = figure.axes[:3]
    assert [axes.get_title() for axes in (plain, truth, answers)] == ["image", "truth", "prediction"]
    assert not plain.patches and [text.get_text() for text in truth.texts] == ["2", "7", "9"]
    boxes = [(patch.get_x(), patch.get_linestyle()) for patch in answers.patches]
    assert boxes == [(3.0, "-"), (2.0, "-"), (20.0, "-"), (60.0, "-"), (20.0, "--"), (40.0, "--")]
    words = {text.get_text(): text.get_bbox_patch().get_facecolor() for text in answers.texts}
    assert list(words) == ["2", "2, is again", "1, is 7", "3, is nothing"] and len(set(words.values())) == 2
    assert [text.get_text() for text in figure.legends[0].texts] == ["truth", "right", "wrong", "not found"]
    assert len({TRUTH, RIGHT, ANSWER}) == 3


def test_overlap():
    assert overlap((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 2, 2), (2, 2, 2, 2)) == 0


def test_label_maps_share_their_colours(tmp_path, figures):
    truth, answer = np.zeros((8, 12), np.uint8), np.zeros((8, 12), np.uint8)
    truth[:4, :4], answer[:4, :4], answer[6:, 6:] = 2, 2, 1
    truth[4] = 255  # no class
    plot_label_maps(
        [(np.zeros((8, 12, 3), np.uint8), truth, answer)], ("ground", "one", "two", "three"), tmp_path / "l.png"
    )
    (figure,) = figures
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.texts] == ["one", "two"]  # the third is nowhere
    from matplotlib.colors import to_hex

    assert [to_hex(patch.get_facecolor()) for patch in legend.get_patches()] == list(CLASSES[:2])
    for axes in figure.axes[1:3]:
        layer = axes.images[-1]
        assert to_hex(layer.cmap(layer.norm(2))) == CLASSES[1]
        assert not set(layer.get_array().compressed()) - {1, 2}


def test_every_family_has_a_colour_of_its_own():
    colours = family_colours()
    assert len(set(colours.values())) == len(colours) > 5
    assert len(class_colours(["ground"] * 20)) == 19
    assert len(set(class_colours(["ground", *"0123456789"]))) == 10

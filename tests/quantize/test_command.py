"""`vssm quantize` from folders of images to a file that is read back."""

import numpy as np
import pytest
import torch
from PIL import Image

from vssm._errors import DataError
from vssm.commands import main
from vssm.models.create import create_trained_model
from vssm.quantize import load_quantized


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of two classes, and labelled images."""
    torch.manual_seed(0)
    import timm

    model = timm.create_model("vmamba_pico", num_classes=2)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "two.pth")
    random = np.random.RandomState(0)
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(2):
            pixels = random.randint(0, 255, (40, 40, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / name / f"{i}.png")
    return tmp_path


def words(folder, *more: str) -> list[str]:
    start = ["quantize", "vmamba_pico", "--checkpoint", str(folder / "two.pth"), "--img-size", "32", "--recipe", "w8a8"]
    return [*start, "--calibration", str(folder / "val"), "--out", str(folder / "out.safetensors"), *more]


def test_file_table_and_accuracy(trained, capsys):
    assert not main(words(trained, "--labelled", str(trained / "val"), "--images", "3"))
    out = capsys.readouterr().out
    assert "| layer | bits | signal to noise, dB | share of time |" in out
    assert "| stages.0.blocks.0.mixer | scan: u 8, dt 8, B 8, C 8, dt weight 8 |" in out
    assert "calibrated on 3 images of 32x32" in out and "simulated" in out
    assert "% before" in out and "% after" in out
    model = load_quantized(create_trained_model("vmamba_pico", trained / "two.pth"), trained / "out.safetensors")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)


def test_mistakes(trained, capsys):
    (trained / "val" / "c").mkdir()
    Image.new("RGB", (8, 8)).save(trained / "val" / "c" / "0.png")
    with pytest.raises(DataError, match="has 3 classes, the model 2"):
        main(words(trained, "--labelled", str(trained / "val")))
    with pytest.raises(SystemExit):
        main(words(trained, "--out", "x.bin"))
    assert "must end in .safetensors" in capsys.readouterr().err
    assert not (trained / "out.safetensors").exists()

import pytest

from vssm import _cli
from vssm.commands import main

pytest.importorskip("mmengine")

from mmengine.config import Config  # noqa: E402

from vssm._configs import ConfigError, config_names  # noqa: E402
from vssm.engine import load_config  # noqa: E402

# One of each task.
NAMES = [
    "vmamba-pico_digits",
    "vm-unet_isic17",
    "mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco",
    "upernet_vssd-tiny_160k_ade20k-512x512",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_says_the_same_in_any_folder(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert _cli.run(main, ["config", name, "--out", "mine.py"]) == 0
    text = (tmp_path / "mine.py").read_text()
    copy = Config.fromfile("mine.py")
    assert copy.to_dict() == load_config(name).to_dict()
    assert "_base_" not in text and [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    opening = config_names()[name].read_text().splitlines()[0]
    assert opening.startswith("#") and text.splitlines()[1] == opening


def test_options_are_laid_over_it(capsys):
    assert _cli.run(main, ["config", "vmamba-pico_digits", "--cfg-options", "train_cfg.max_epochs=3"]) == 0
    assert Config.fromstring(capsys.readouterr().out, ".py").train_cfg.max_epochs == 3


def test_a_file_is_replaced_only_when_told(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("x = 1\n")
    words = ["config", "vmamba-pico_digits", "--out", str(file)]
    assert _cli.run(main, words) == 2
    assert "exists; say --overwrite" in capsys.readouterr().err and file.read_text() == "x = 1\n"
    assert _cli.run(main, [*words, "--overwrite"]) == 0
    assert "model" in Config.fromfile(file)


def test_what_is_no_config_writes_nothing(tmp_path, capsys):
    assert _cli.run(main, ["config", "vmamba-pic_digits", "--out", str(tmp_path / "sub" / "mine.py")]) == 2
    assert "did you mean 'vmamba-pico_digits'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["config", "vmamba-pico_digits", "--out", str(tmp_path / "mine.yml")])
    assert not list(tmp_path.iterdir())


def test_a_path_of_the_repository_is_told_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"does not exist \(the package's own is called 'vm-unet_isic17'\)\."):
        load_config("configs/medical/vm-unet_isic17.py")

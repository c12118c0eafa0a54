"""The package's configs by name."""

from collections import Counter
from pathlib import Path

import pytest

from vssm import _configs
from vssm._configs import ConfigError, config_folder, config_names, find_config, match_configs

ROOT = Path(__file__).parents[1]


def test_names_are_those_of_the_files_each_once():
    files = [path for path in (ROOT / "configs").glob("*/*.py") if path.parent.name != "_base_"]
    twice = [name for name, count in Counter(path.stem for path in files).items() if count > 1]
    assert not twice
    assert config_names() == {path.stem: path for path in files}


def test_a_config_is_found_by_name_and_a_path_stays(tmp_path, monkeypatch):
    assert find_config("vmamba-pico_digits") == str(ROOT / "configs/classification/vmamba-pico_digits.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vm-unet_isic17").touch()
    for path in ("vmamba-pico_digits.py", "sub/vmamba-pico_digits", "vm-unet_isic17", "./vm-unet_isic18"):
        assert find_config(path) == path
    assert match_configs(["vm-unet*", "none*"]) == ["vm-unet_isic17", "vm-unet_isic18", "vm-unet_synapse"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vm-unet_isic71", r"does not exist \(did you mean 'vm-unet_isic18' or"),
        ("unet_isic", "2 names have it as a part, vm-unet_isic17, vm-unet_isic18\\."),
        ("mask-rcnn", "names have it as a part, .* and more\\."),
        ("unet_syn", "did you mean 'vm-unet_synapse'"),
        ("qqqq", "does not exist; `vssm list configs`"),
        ("", "does not exist"),
    ],
)
def test_other_names_are_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        find_config(name)


def test_a_wheels_own_configs_come_first_and_none_are_missed(tmp_path, monkeypatch):
    package = tmp_path / "vssm"
    monkeypatch.setattr(_configs, "__file__", str(package / "_configs.py"))
    with pytest.raises(ConfigError, match="without its configs"):
        config_folder()
    for folder in (tmp_path / "configs", package / "configs"):
        (folder / "classification" / "_base_").mkdir(parents=True)
        assert config_folder() == folder

"""Data sets: layouts, splits, label orders, protocols, and what they say about broken files."""

import pickle
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from vssm.engine import ConfigError, DataError
from vssm.medical.data import ACDC, ISIC, NiftiFolder, Synapse
from vssm.medical.labels import LABEL_ORDERS, LabelOrderError, detect_label_order, load_split
from vssm.medical.patches import VolumePatches
from vssm.medical.transforms import SkinTransform

from .conftest import ORGANS, abdomen, write_isic, write_nifti, write_nifti_folder, write_synapse

TRANSFORM = dict(size=32)
# Spleen, right kidney, left kidney, gallbladder, liver, stomach, aorta, pancreas as TransUNet numbers them.
OTHER_ORDER = (7, 4, 3, 2, 5, 8, 1, 6)


def test_the_published_splits():
    synapse, acdc = load_split("synapse"), load_split("acdc")
    assert sum(synapse["train_slices"].values()) == 2211
    train, test = set(synapse["train_slices"]), set(synapse["test"])
    assert (len(train), len(test)) == (18, 12) and not train & test
    assert set(synapse["validation"]) < train
    assert (len(set(acdc["valid"])), len(set(acdc["test"]))) == (10, 20) and not set(acdc["valid"]) & set(acdc["test"])


def test_label_orders_name_the_same_organs():
    assert {LABEL_ORDERS["btcv8"][n + 1]: n for n in range(8)} == {organ: n for n, organ in enumerate(OTHER_ORDER)}
    # The challenge: 1 spleen, 2 right kidney, 3 left kidney, 4 gallbladder, 6 liver, 7 stomach, 8 aorta, 11 pancreas.
    kept = {number: organ for number, organ in LABEL_ORDERS["btcv"].items() if organ}
    assert kept == dict(zip((1, 2, 3, 4, 6, 7, 8, 11), OTHER_ORDER, strict=True))


@pytest.fixture(scope="module")
def synapse(tmp_path_factory):
    return write_synapse(tmp_path_factory.mktemp("synapse") / "data")


def test_synapse_slices_and_volumes(synapse):
    train = Synapse(str(synapse), "train", TRANSFORM)
    assert len(train) == 4 and train.metainfo["classes"][7] == "spleen"  # three cases are kept to choose by
    sample = train[0]
    assert sample["image"].shape == (1, 32, 32) and sample["image"].dtype == torch.float32
    assert sample["label"].shape == (32, 32) and sample["label"].dtype == torch.int64
    assert sample["meta"] == {"case": "case0005_slice000"}
    validation = Synapse(str(synapse), "val")
    assert [item.case for item in validation.items] == ["case0010", "case0027", "case0034"]
    validation = validation[0]
    image, label = abdomen(seed=1)
    assert validation["meta"] == {"case": "case0010", "spacing": None}
    assert np.array_equal(validation["image"], image) and np.array_equal(validation["label"], label)
    test = Synapse(str(synapse), "test")
    assert [test[i]["meta"]["case"] for i in range(2)] == ["case0008", "case0022"]
    assert np.array_equal(test[1]["label"], abdomen(depth=3, seed=11)[1])


def test_synapse_published_protocol(synapse):
    assert len(Synapse(str(synapse), "train", TRANSFORM, protocol="published")) == 16
    chosen_by = Synapse(str(synapse), "val", protocol="published")
    assert [item.case for item in chosen_by.items] == ["case0008", "case0022"]
    with pytest.raises(ConfigError, match="'validation', 'published'.*not 'best'"):
        Synapse(str(synapse), "val", protocol="best")
    with pytest.raises(ConfigError, match="validation case 'case0001' is not among"):
        Synapse(str(synapse), "train", TRANSFORM, validation=["case0001"])


def test_synapse_label_orders_are_told_apart_and_never_mixed(synapse, tmp_path):
    inverse = np.argsort(OTHER_ORDER) + 1
    other = write_synapse(tmp_path / "other", order=tuple(inverse))
    raw = np.load(other / "train_npz" / "case0005_slice000.npz")["label"]
    assert (raw == 1).sum() == ORGANS[6]  # 1 is the spleen there
    for split in ("train", "test"):
        options = dict(transform=TRANSFORM) if split == "train" else {}
        ours, theirs = (Synapse(str(root), split, **options)[0]["label"] for root in (synapse, other))
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    chosen = Synapse(str(other), "test", label_order="transunet")[0]["label"]
    assert not torch.equal(chosen, Synapse(str(other), "test")[0]["label"])
    with pytest.raises(LabelOrderError, match="'auto' or one of .*'btcv8'.*not 'mixed'"):
        Synapse(str(other), "test", label_order="mixed")


def test_an_unclear_label_order_is_asked_for():
    with pytest.raises(LabelOrderError, match="voxels of labels 1 to 8: 5, 1.*choose label_order='transunet'"):
        detect_label_order([99, 5, 1, 1, 5, 9, 5, 9, 2], "here")
    with pytest.raises(LabelOrderError, match="cannot be told"):
        detect_label_order([99, 5, 0, 1, 5], "here")
    assert detect_label_order([9] * 14, "here") == "btcv"


def test_synapse_without_lists_expects_the_published_files(synapse, tmp_path):
    (tmp_path / "train_npz").mkdir()
    with pytest.raises(DataError, match=r"2211 of the 2211 files .* do not exist: .*case0005_slice000.* and 2206 more"):
        Synapse(str(tmp_path), "train", TRANSFORM, protocol="published")
    with pytest.raises(DataError, match="12 of the 12 files in the test list"):
        Synapse(str(tmp_path), "test")


def test_other_data_in_synapses_layout(synapse):
    classes = ["background", *"abcdefgh"]
    data = Synapse(str(synapse), "train", TRANSFORM, classes=classes, validation=["case0010"])
    assert data.metainfo["classes"] == tuple(classes)
    few = Synapse(str(synapse), "test", classes=classes[:3])
    with pytest.raises(DataError, match=r"case0008.npy.h5' has the label 3, but the classes are 0 to 2"):
        few[0]


def test_samples_follow_torchs_seed(synapse):
    data = Synapse(str(synapse), "train", dict(size=32, augment="msvm_unet"))

    def draw():
        torch.manual_seed(3)
        return [data[i] for i in range(4)]

    first, again = draw(), draw()
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))
    torch.manual_seed(4)
    assert not all(torch.equal(a["image"], data[i]["image"]) for i, a in enumerate(first))


def test_data_workers_can_be_spawned(synapse, tmp_path):
    """They pickle the data set."""
    nifti, isic = write_nifti_folder(tmp_path / "nifti"), write_isic(tmp_path / "isic", train=10)
    classes = ("background", "one", "two")
    for data in (
        Synapse(str(synapse), "train", dict(size=32, augment="msvm_unet")),
        Synapse(str(synapse), "val"),
        Synapse(str(synapse), "test"),
        ISIC(str(isic), "train", dict(size=32)),
        NiftiFolder(str(nifti), "train", classes, transform=TRANSFORM),
        NiftiFolder(str(nifti), "test", classes),
    ):
        copy = pickle.loads(pickle.dumps(data))
        torch.manual_seed(0)
        sample = data[0]
        torch.manual_seed(0)
        assert torch.equal(copy[0]["image"], sample["image"])


BROKEN = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read"),
    "missing": (lambda path: path.unlink(), "does not exist"),
    "keys": (lambda path: np.savez(path, image=np.ones((4, 4))), r"holds \['image'\], but 'image' .* and 'label'"),
    "shapes": (
        lambda path: np.savez(path, image=np.ones((4, 4)), label=np.ones((4, 5))),
        r"image of the shape \(4, 4\) and a label of the shape \(4, 5\)",
    ),
    "nan": (
        lambda path: np.savez(path, image=np.full((4, 4), np.nan), label=np.ones((4, 4))),
        "16 voxels that are NaN",
    ),
    "empty": (lambda path: np.savez(path, image=np.ones((0, 4)), label=np.ones((0, 4))), r"is empty.*\(0, 4\)"),
    "label": (
        lambda path: np.savez(path, image=np.ones((4, 4)), label=np.full((4, 4), 9)),
        "label 9.* are 0 to 8",
    ),
    "half": (lambda path: np.savez(path, image=np.ones((4, 4)), label=np.full((4, 4), 0.5)), "not whole numbers"),
    "volume": (
        lambda path: np.savez(path, image=np.ones((2, 4, 4)), label=np.ones((2, 4, 4))),
        "slice .* is needed",
    ),
    "pickle": (
        lambda path: np.savez(path, image=np.array([print], dtype=object), label=np.ones((4, 4))),
        "holds object in 'image.npy', not numbers",
    ),
    "text": (lambda path: np.savez(path, image=np.full((4, 4), "a"), label=np.ones((4, 4))), "not numbers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_slices_are_one_sentence(case, tmp_path):
    root = write_synapse(tmp_path / "data")
    data = Synapse(str(root), "train", TRANSFORM, label_order="transunet")
    path = root / "train_npz" / "case0005_slice000.npz"
    damage, said = BROKEN[case]
    damage(path)
    with pytest.raises(DataError, match=said) as error:
        data[0]
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_broken_h5_file_and_a_missing_list_entry(tmp_path):
    root = write_synapse(tmp_path / "data")
    path = root / "test_vol_h5" / "case0022.npy.h5"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match="case0022.npy.h5' cannot be read"):
        Synapse(str(root), "test", label_order="transunet")[1]
    path.unlink()
    with pytest.raises(DataError, match=r"1 of the 2 files in the test list .* do not exist: '.*case0022.npy.h5'"):
        Synapse(str(root), "test")


def acdc_files(root, suffix=".npz"):
    """Every patient of the split with one phase of two tiny slices, the test patients as volumes."""
    split = load_split("acdc")
    image, label = np.random.default_rng(0).random((2, 12, 10), np.float32), np.ones((2, 12, 10), np.uint8)
    label[:, 2:6] = 3
    for number in range(1, 101):
        patient = f"{number:03d}"
        if patient in split["test"]:
            files = {f"test/case_{patient}_volume_ED": (image, label)}
        else:
            part = "valid" if patient in split["valid"] else "train"
            files = {f"{part}/case_{patient}_sliceED_{n}": (image[n], label[n]) for n in (0, 1)}
        for name, (pixels, truth) in files.items():
            path = root / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".npz":
                np.savez(path, img=pixels, label=truth)
            else:
                with pytest.importorskip("h5py").File(path, "w") as file:
                    file["image"], file["label"] = pixels, truth
    return root


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_acdc(tmp_path, suffix):
    root = acdc_files(tmp_path / "acdc", suffix)
    train, val, test = (
        ACDC(str(root), split, TRANSFORM if split == "train" else None) for split in ("train", "val", "test")
    )
    assert (len(train), len(val), len(test)) == (140, 10, 20)
    assert train[0]["image"].shape == (1, 32, 32)
    assert val[0]["image"].shape == (2, 12, 10) and val[0]["meta"]["case"] == "case_019_sliceED"
    assert test[0]["label"].max() == 3 and test.metainfo["classes"][2] == "myocardium"
    published = ACDC(str(root), "val", protocol="published")
    assert [item.case for item in published.items] == [item.case for item in test.items]


def test_acdc_patients_stay_in_their_split(tmp_path):
    root = acdc_files(tmp_path / "acdc")
    stray = root / "train" / "case_002_sliceED_0.npz"
    (root / "train" / "case_001_sliceED_0.npz").rename(stray)
    with pytest.raises(DataError, match="case_002_sliceED_0.npz' is of a patient that is not in the train split"):
        ACDC(str(root), "train", TRANSFORM)
    stray.unlink()
    (root / "train" / "case_001_sliceED_1.npz").unlink()
    with pytest.raises(DataError, match="no file of 1 of the 70 patients in the train split: 001"):
        ACDC(str(root), "train", TRANSFORM)
    (root / "lists_ACDC").mkdir()
    (root / "lists_ACDC" / "train.txt").write_text("case_004_sliceED_0\ncase_005_sliceED_1.npz\n")
    assert len(ACDC(str(root), "train", TRANSFORM)) == 2


def test_isic_pairs_by_name(tmp_path):
    root = write_isic(tmp_path / "isic")
    sizes = {
        (split, protocol): len(ISIC(str(root), split, dict(size=32), protocol))
        for split in ("train", "val", "test")
        for protocol in ("validation", "published")
    }
    assert [sizes[key] for key in sorted(sizes)] == [3, 3, 20, 18, 3, 2]
    train, val = (ISIC(str(root), split, dict(size=32)) for split in ("train", "val"))
    assert not {item.case for item in train.items} & {item.case for item in val.items}
    sample = train[0]
    assert sample["image"].shape == (3, 32, 32) and sample["image"].min() >= 0 and sample["image"].max() <= 255
    assert set(sample["label"].unique().tolist()) == {0, 1}
    # The spot is dark, so a mask of another image would not fit.
    assert (
        sample["image"].mean(0)[sample["label"] == 1].mean()
        < 100
        < sample["image"].mean(0)[sample["label"] == 0].mean()
    )
    (root / "train" / "masks" / "ISIC_0000003_segmentation.png").rename(root / "train" / "masks" / "other.png")
    with pytest.raises(DataError, match=r"2 files .* have no partner .*: .*ISIC_0000003.jpg, .*other.png"):
        ISIC(str(root), "train")


def test_isic_broken_files(tmp_path):
    root = write_isic(tmp_path / "isic")
    data = ISIC(str(root), "test", dict(size=32))
    Image.new("L", (20, 20)).save(root / "val" / "masks" / "ISIC_0000000_segmentation.png")
    with pytest.raises(DataError, match=r"ISIC_0000000.jpg' is \(30, 40\) pixels, but its mask .* \(20, 20\)"):
        data[0]
    (root / "val" / "images" / "ISIC_0000001.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="ISIC_0000001.jpg' cannot be read"):
        data[1]


def test_nifti_files_in_any_orientation(tmp_path):
    root = write_nifti_folder(tmp_path / "a")
    classes = ("background", "one", "two")
    volume = NiftiFolder(str(root), "test", classes)[0]
    assert volume["image"].shape == (8, 36, 40) and volume["meta"] == {"case": "v2", "spacing": (3.0, 1.0, 0.5)}
    # The same volume stored with its axes in another order and direction.
    import nibabel

    for kind in ("images", "labels"):
        source = nibabel.load(root / "test" / kind / "v2.nii.gz")
        nibabel.save(
            source.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]])),
            root / "test" / kind / "v2.nii.gz",
        )
    turned = NiftiFolder(str(root), "test", classes)[0]
    assert torch.equal(turned["image"], volume["image"]) and torch.equal(turned["label"], volume["label"])
    assert turned["meta"]["spacing"] == pytest.approx((3.0, 1.0, 0.5))
    train = NiftiFolder(str(root), "train", classes, transform=TRANSFORM)
    assert len(train) == 8 and train[3]["image"].shape == (1, 32, 32)


def test_nifti_options(tmp_path):
    root = write_nifti_folder(tmp_path / "a")
    mapped = NiftiFolder(str(root), "test", ("background", "any"), label_map={0: 0, 1: 1, 2: 1})[0]
    assert mapped["label"].unique().tolist() == [0, 1]
    windowed = NiftiFolder(str(root), "test", ("b", "o", "t"), window=(0.5, 1.0), axis=0)[0]
    assert windowed["image"].shape == (40, 8, 36) and windowed["image"].min() == 0 and windowed["image"].max() == 1
    with pytest.raises(DataError, match="lacks 1 of dataset.ids: v9"):
        NiftiFolder(str(root), "test", ids=["v2", "v9"])
    with pytest.raises(ConfigError, match="maps to the class 5, but there are 2 classes"):
        NiftiFolder(str(root), "test", label_map={0: 0, 1: 5})
    with pytest.raises(ConfigError, match="unknown option 'sise'"):
        NiftiFolder(str(root), "train", ("b", "o", "t"), transform=dict(sise=3))


def test_all_broken_volumes_are_named_at_once(tmp_path):
    root = tmp_path / "a"
    for number in range(5):
        write_nifti_folder(root, splits=("train",))
        for kind in ("images", "labels"):
            (root / "train" / kind / "v0.nii.gz").rename(root / "train" / kind / f"c{number}.nii.gz")
    folder = root / "train"
    (folder / "images" / "c0.nii.gz").write_bytes(b"no volume")
    write_nifti(folder / "images" / "c1.nii.gz", np.full((40, 36, 8), np.nan, np.float32))
    write_nifti(folder / "images" / "c2.nii.gz", np.ones((40, 36, 7), np.float32))
    write_nifti(folder / "labels" / "c3.nii.gz", np.zeros((40, 36, 8), np.uint8), np.diag([2.0, 2, 2, 1]))
    write_nifti(folder / "labels" / "c4.nii.gz", np.full((40, 36, 8), 7, np.uint8))
    with pytest.raises(DataError) as error:
        NiftiFolder(str(root), "train", ("b", "o", "t"), transform=TRANSFORM)
    said = str(error.value)
    assert said.startswith("5 files cannot be used.") and "\n" not in said
    for part in (
        r"c0.nii.gz' cannot be read",
        r"c1.nii.gz' .*11520 voxels that are NaN",
        r"c2.nii.gz' .*shape \(40, 36, 7\) and a label of the shape \(40, 36, 8\)",
        r"c3.nii.gz' have different affines",
        r"c4.nii.gz' has the label 7, but the classes are 0 to 2",
    ):
        assert re.search(part, said), part


@pytest.mark.parametrize("kind", [Synapse, ACDC, ISIC, NiftiFolder])
def test_a_missing_folder_says_where_it_was_looked_for(kind, tmp_path, monkeypatch):
    env = f"VSSM_{'NIFTI' if kind is NiftiFolder else kind.__name__.upper()}"
    monkeypatch.delenv(env, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"data/\w+' does not exist \(neither .*dataset.root.*{env} is set"):
        kind()
    monkeypatch.setenv(env, str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=rf"elsewhere' does not exist \(the environment variable {env}"):
        kind()
    with pytest.raises(DataError, match="here' does not exist .*dataset.root"):
        kind("here")


def test_classes_are_names(synapse, tmp_path):
    root = str(write_nifti_folder(tmp_path / "a", splits=("train",)))
    for data in (partial(NiftiFolder, root), partial(Synapse, str(synapse))):
        with pytest.raises(ConfigError, match=r"dataset.classes is the text 'liver', whose letters .* \('liver',\)"):
            data(classes="liver")
        for wrong in (3, [], ["background", 1]):
            with pytest.raises(ConfigError, match=rf"dataset.classes is a list of names.*not {re.escape(repr(wrong))}"):
                data(classes=wrong)


@pytest.mark.parametrize(
    "window", [(275, -125), (5, 5), "extreme", (1, 2, 3), 5, (None, 5), ("0", "1"), (0, float("nan")), []]
)
def test_windows_that_are_none(window):
    words = re.escape(f"dataset.window is (low, high) with low < high, 'extremes' or None, not {window!r}.")
    with pytest.raises(ConfigError, match=words):
        NiftiFolder("nowhere", "test", window=window)
    with pytest.raises(ConfigError, match=words):
        NiftiFolder.nifti_options({"window": window})
    for right in ((-125, 275), [0.5, 1.0], "extremes", None):
        assert NiftiFolder.nifti_options({"window": right})["window"] == right


def test_sizes_and_scalings_that_are_none(tmp_path):
    root = str(write_nifti_folder(tmp_path / "a", splits=("train",)))
    classes = ("background", "one", "two")
    for size in (0, -3, (32, 40), 2.5, "32", True):
        words = re.escape(f"a whole number from 1, their side, not {size!r}.")
        with pytest.raises(ConfigError, match=words):
            NiftiFolder(root, classes=classes, transform=dict(size=size))
        with pytest.raises(ConfigError, match=words):
            SkinTransform(size)
    volumes = NiftiFolder(root, classes=classes, volumes=True)
    for options, words in (
        (dict(std=0), "std .* above 0{}, not 0"),
        (dict(std=-1.0), "std .* above 0{}, not -1.0"),
        (dict(std="a"), "std .* above 0{}, not 'a'"),
        (dict(mean=float("nan")), "mean .* a number{}, not nan"),
    ):
        with pytest.raises(ConfigError, match=words.format("")):
            NiftiFolder(root, classes=classes, transform=options)
        with pytest.raises(ConfigError, match=words.format(" or None")):
            VolumePatches(volumes, (8, 8, 8), cache=False, **options)
    VolumePatches(volumes, (8, 8, 8), cache=False, mean=None, std=None)

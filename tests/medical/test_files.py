"""Files of volumes as people have them: names, headers, damage, links to other files, bombs."""

import gzip
import io
import logging
import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from vssm import _inputs
from vssm._errors import DataError
from vssm.engine import ConfigError
from vssm.medical import files
from vssm.medical.data import ISIC, NiftiFolder, Synapse, read_nifti_pair
from vssm.medical.files import read_arrays, read_nifti, read_nifti_labels, stem, write_h5
from vssm.medical.files import write_nifti as write_volume
from vssm.medical.labels import check_label_map
from vssm.medical.listing import by_name, list_files, pair_files
from vssm.medical.nifti import slice_spacing
from vssm.medical.predict import find_volumes

from .conftest import write_isic, write_nifti, write_nifti_folder, write_synapse

nibabel = pytest.importorskip("nibabel")
h5py = pytest.importorskip("h5py")


@pytest.fixture
def said(monkeypatch, caplog):
    """The records that are logged, as if there had been none before."""
    monkeypatch.setattr(_inputs, "_said", set())
    caplog.set_level(logging.WARNING, logger="vssm")
    return lambda: [record.getMessage() for record in caplog.records]


def test_stems_in_either_case():
    names = ("a.nii.gz", "a.NII.GZ", "a.Nii", "a.npy.h5", "a.NPY.H5", "a.png")
    assert {stem(name) for name in names} == {"a"} and stem("p.01.NII.gz") == "p.01"


def test_names_of_volumes(tmp_path, said):
    volume = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    for name in ("a.nii.gz", "b.nii", "sub/c.nii.gz", ".hidden/d.nii.gz"):
        write_nifti(tmp_path / name, volume)
    (tmp_path / "a.nii.gz").rename(tmp_path / "A.NII.GZ")
    (tmp_path / "b.nii").rename(tmp_path / "B.NII")
    (tmp_path / "._A.NII.GZ").write_bytes(bytes(50))
    (tmp_path / "notes.txt").write_text("")
    for _ in range(2):
        found = find_volumes([tmp_path])
        assert [path.name for path in found] == ["A.NII.GZ", "B.NII", "c.nii.gz"]
    assert all(np.array_equal(read_nifti(path)[0], volume) for path in found)
    assert said() == [f"'{tmp_path}': 3 files are used, 3 others are not (._A.NII.GZ, d.nii.gz, notes.txt)."]  # once


def test_files_of_other_systems_beside_a_data_set(tmp_path, said):
    root = write_nifti_folder(tmp_path / "a")
    for kind in ("images", "labels"):
        folder = root / "test" / kind
        (folder / "v2.nii.gz").rename(folder / "V2.NII.GZ")
        (folder / "._V2.NII.GZ").write_bytes(bytes(50))
        (folder / "deeper").mkdir()
    data = NiftiFolder(str(root), "test", ("b", "o", "t"))
    assert [item.case for item in data.items] == ["V2"] and data[0]["label"].max() == 2
    assert len(said()) == 2 and all("2 others are not (._V2.NII.GZ, deeper/)" in text for text in said())


def test_two_files_of_one_case_are_refused(tmp_path):
    root = write_nifti_folder(tmp_path / "a")
    images, labels = root / "test" / "images", root / "test" / "labels"
    write_nifti(images / "v2.nii", np.zeros((40, 36, 8), np.float32))
    with pytest.raises(DataError, match=r"v2.nii' and 'v2.nii.gz' are two files of the same case, 'v2'"):
        pair_files(images, labels, (".nii", ".nii.gz"))
    (images / "v2.nii").rename(images / "v2_0001.nii")  # nnU-Net's second channel
    with pytest.raises(DataError, match="no partner of the same name: .*v2_0001.nii"):
        pair_files(images, labels, (".nii", ".nii.gz"))
    assert by_name([]) == {}


def test_pipes_are_no_volumes(tmp_path):
    for name in ("x.nii.gz", "x.nii", "x.npz", "x.h5"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="is a named pipe, not an ordinary file"):
            (read_nifti if ".nii" in name else read_arrays)(tmp_path / name)
    assert list_files(tmp_path, (".nii", ".nii.gz")) == []


VOLUME = np.random.default_rng(0).integers(0, 200, (20, 18, 9)).astype(np.int16)


@pytest.mark.parametrize("damage", ["bits", "checksum", "length", "cut", "cut early", "garbage", "longer"])
def test_damaged_streams_are_noticed(damage, tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", VOLUME)
    raw = gzip.decompress(path.read_bytes())
    good = gzip.compress(raw, compresslevel=0)  # stored blocks: a changed byte still decompresses
    place = good.index(raw[2000:2100])
    damaged = {
        "bits": good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :],
        "checksum": good[:-8] + bytes(4) + good[-4:],
        "length": good[:-4] + bytes(4),
        "cut": good[:-4],
        "cut early": good[:300],
        "garbage": good + b"garbage",
        "longer": gzip.compress(raw + bytes(20 * 2**20)),
    }[damage]
    path.write_bytes(damaged)
    for read in (read_nifti, read_nifti_labels):
        with pytest.raises(DataError, match="compressed stream is damaged|longer than its header") as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    path.write_bytes(good)
    assert np.array_equal(read_nifti(path)[0], VOLUME) and np.array_equal(read_nifti_labels(path)[0], VOLUME)


def patch(path, *changes):
    raw = bytearray(gzip.decompress(path.read_bytes()))
    for offset, layout, *values in changes:
        struct.pack_into(f"<{layout}", raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw)))


NAN = float("nan")
AFFINES = {
    "singular": ([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], "a singular affine"),
    "twice the same axis": ([1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0], "a singular affine"),
    "zero": ([0] * 12, "a singular affine"),
    "NaN": ([NAN, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "NaN or infinite"),
    "infinite": ([1, 0, 0, float("inf"), 0, 1, 0, 0, 0, 0, 1, 0], "NaN or infinite"),
}


@pytest.mark.parametrize("case", AFFINES)
def test_affines_that_say_nothing(case, tmp_path):
    rows, words = AFFINES[case]
    path = write_nifti(tmp_path / "v.nii.gz", VOLUME)
    patch(path, (252, "hh", 0, 1), (280, "12f", *rows))
    for job in (lambda: read_nifti(path), lambda: read_nifti_pair(path, path, {})):
        with pytest.raises(DataError, match=f"v.nii.gz' has .*{words}"):
            job()


@pytest.mark.parametrize("name", ["a.b.nii.gz", "a.nii", "A.NII.GZ"])
def test_volumes_are_written_as_they_are_read(name, tmp_path):
    source = read_nifti(write_nifti(tmp_path / "v.nii.gz", VOLUME))[1]
    write_volume(tmp_path / name, VOLUME.astype(np.uint8), source.affine, source.header)
    first = (tmp_path / name).read_bytes()
    labels, image = read_nifti_labels(tmp_path / name)
    assert labels.dtype == np.uint8 and np.array_equal(labels, VOLUME) and np.array_equal(image.affine, source.affine)
    assert np.array_equal(nibabel.load(tmp_path / name).dataobj, VOLUME)
    write_volume(tmp_path / name, VOLUME.astype(np.uint8), source.affine, source.header)
    assert (tmp_path / name).read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {"v.nii.gz", name}


def test_voxel_sizes_are_the_affines(tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", VOLUME)
    patch(path, (80, "3f", NAN, 0, -7))
    assert slice_spacing(read_nifti(path)[1]) == (3.0, 1.0, 0.5)


def test_what_is_no_volume_of_numbers(tmp_path):
    colours = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, array, words in (
        ("complex", np.ones((4, 4, 4), np.complex64), "complex numbers"),
        ("colours", colours, "colours"),
    ):
        path = write_nifti(tmp_path / f"{name}.nii.gz", array)
        with pytest.raises(DataError, match=f"holds {words}, not one real number"):
            read_nifti(path)
    path = write_nifti(tmp_path / "bomb.nii.gz", VOLUME)
    patch(path, (40, "8h", 3, 32767, 32767, 32767, 1, 1, 1, 1))
    with pytest.raises(DataError, match=r"shape is \(32767, 32767, 32767\), which is more than"):
        read_nifti(path)
    second = nibabel.Nifti2Image(VOLUME, np.eye(4))
    nibabel.save(second, tmp_path / "two.nii.gz")
    assert np.array_equal(read_nifti(tmp_path / "two.nii.gz")[0], VOLUME)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("most", [2, 13, 200])
def test_labels_stored_with_a_scale_factor(dtype, most, tmp_path):
    """As programs do that hand floats to a library and ask it for integers."""
    labels = np.random.default_rng(0).integers(0, most + 1, (9, 8, 7))
    image = nibabel.Nifti1Image(labels.astype(np.float64), np.eye(4))
    image.set_data_dtype(dtype)
    nibabel.save(image, tmp_path / "l.nii.gz")
    read, image = read_nifti_labels(tmp_path / "l.nii.gz")
    assert read.dtype.kind in "iu" and np.array_equal(read, labels)
    if dtype is np.uint8:
        assert image.dataobj.slope != 1
    pair = read_nifti_pair(tmp_path / "l.nii.gz", tmp_path / "l.nii.gz", dict.fromkeys(range(most + 1), 1) | {0: 0})
    assert (pair[1] > 0).sum() == (labels > 0).sum()


def test_values_between_labels_are_refused(tmp_path):
    soft = np.linspace(0, 1, 9 * 8 * 7).reshape(9, 8, 7)
    for dtype in (np.uint8, np.float32):
        image = nibabel.Nifti1Image(soft, np.eye(4))
        image.set_data_dtype(dtype)
        nibabel.save(image, tmp_path / "l.nii.gz")
        with pytest.raises(DataError, match="labels that are not whole numbers"):
            read_nifti_labels(tmp_path / "l.nii.gz")
    write_nifti(tmp_path / "l.nii.gz", np.full((4, 4, 4), np.nan, np.float32))
    with pytest.raises(DataError, match="NaN or infinite"):
        read_nifti_labels(tmp_path / "l.nii.gz")


def test_large_labels_stay_exact(tmp_path):
    labels = np.full((4, 4, 4), 2**24 + 1, np.int32)
    write_nifti(tmp_path / "l.nii.gz", labels)
    assert np.array_equal(read_nifti_labels(tmp_path / "l.nii.gz")[0], labels)


def test_gaps_in_labels(tmp_path):
    root = write_nifti_folder(tmp_path / "a")
    path = root / "test" / "labels" / "v2.nii.gz"
    labels, image = read_nifti_labels(path)
    write_nifti(path, np.where(labels == 2, 4, labels).astype(np.uint8), image.affine)
    classes = ("background", "one", "two")
    with pytest.raises(DataError, match=r"label 4, but .* 0 to 2; say with dataset.label_map .*\(0, 1, 4\)"):
        NiftiFolder(str(root), "test", classes)[0]
    for label_map in ({0: 0, 1: 1, 4: 2}, {"0": 0, "1": 1, "4": 2}, {0: 0, 1: 0, 4: 0, "1": 1, "4": 2}):
        data = NiftiFolder(str(root), "test", classes, label_map=label_map)[0]
        assert np.array_equal(np.bincount(data["label"].flatten()), np.bincount(labels.ravel()))
    with pytest.raises(DataError, match=r"label 1, but the classes are \[0, 4\]; say with dataset.label_map"):
        NiftiFolder(str(root), "test", classes, label_map={0: 0, 4: 2})[0]


def test_label_maps_that_are_none():
    assert check_label_map(None, 3) == {0: 0, 1: 1, 2: 2} and check_label_map({"-1": 0, 255.0: 1}, 2) == {-1: 0, 255: 1}
    for wrong, words in (
        ({"a": 0}, "key 'a'"),
        ({1.5: 0}, "key 1.5"),
        ({None: 0}, "key None"),
        ({1: "1"}, "class 1, but"),
        ({1: 2}, "class 2, but there are 2"),
        ([0, 1], "gives numbers classes"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_label_map(wrong, 2)


def test_label_map_of_other_data_in_synapses_layout(tmp_path):
    root = write_synapse(tmp_path / "data")
    classes = ["background", "small", "large"]
    options = dict(classes=classes, validation=["case0010"])
    with pytest.raises(DataError, match=r"label 3, but the classes are 0 to 2; say with dataset.label_map"):
        Synapse(str(root), "test", **options)[0]
    sizes = {"0": 0, **{str(n): 1 for n in (1, 2, 6)}, **{str(n): 2 for n in (3, 4, 5, 7, 8)}}
    label = Synapse(str(root), "test", label_map=sizes, **options)[0]["label"]
    assert label.unique().tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="label_map is for other data"):
        Synapse(str(root), "test", label_map=sizes)


def test_data_sets_without_samples(tmp_path):
    root = write_isic(tmp_path / "isic", train=9)
    assert len(ISIC(str(root), "train", dict(size=32))) == 9
    with pytest.raises(DataError, match="every tenth image to choose by, but .*train' holds only 9"):
        ISIC(str(root), "val", dict(size=32))
    nifti = write_nifti_folder(tmp_path / "nifti")
    with pytest.raises(DataError, match="NiftiFolder has no samples"):
        NiftiFolder(str(nifti), "test", ids=[])
    synapse = write_synapse(tmp_path / "synapse")
    lists = synapse / "lists" / "lists_Synapse"
    (lists / "test_vol.txt").write_text("\n")
    with pytest.raises(DataError, match="There is no file in the test list"):
        Synapse(str(synapse), "test")
    (lists / "test_vol.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="test_vol.txt' cannot be read"):
        Synapse(str(synapse), "test")


def test_hdf5_files_cannot_point_elsewhere(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_bytes(bytes(range(64)))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["image"] = np.ones((8, 8))
    layout = h5py.VirtualLayout((8, 8), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "image", (8, 8), "f8")

    def soft(file):
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        file["image"] = h5py.SoftLink("/elsewhere/image")

    makers = {
        "other files": lambda file: file.create_dataset("image", (8, 8), "u1", external=[(str(secret), 0, 64)]),
        "link": lambda file: file.__setitem__("image", h5py.ExternalLink(str(tmp_path / "other.h5"), "image")),
        "a link": soft,
        "of 'image' in other": lambda file: file.create_virtual_dataset("image", layout),
        "group": lambda file: file.create_group("image"),
        "more than an image may": lambda file: file.create_dataset("image", (40000, 40000), "u1", chunks=(100, 100)),
    }
    for words, make in makers.items():
        with h5py.File(tmp_path / "a.h5", "w") as file:
            make(file)
            file["label"] = np.zeros((8, 8), np.uint8)
        with pytest.raises(DataError, match=words):
            read_arrays(tmp_path / "a.h5")


def test_archives_are_read_to_their_checksums_and_not_without_bound(tmp_path):
    path = tmp_path / "a.npz"
    image, label = np.random.default_rng(0).random((64, 64)).astype(np.float32), np.zeros((64, 64), np.uint8)
    np.savez(path, image=image, label=label)
    raw = bytearray(path.read_bytes())
    raw[raw.index(image.tobytes()) + 5000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="CRC-32"):
        read_arrays(path)

    def member(array, shape=None):
        out = io.BytesIO()
        header = {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": shape or array.shape,
        }
        np.lib.format.write_array_header_1_0(out, header)
        return out.getvalue() + array.tobytes()

    for shape, words in (((32, 64), "longer than its header"), ((10**6, 10**6), "more than an image may have")):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("image.npy", member(image, shape))
            file.writestr("label.npy", member(label))
        with pytest.raises(DataError, match=words):
            read_arrays(path)
    path.rename(tmp_path / "A.NPZ")
    np.savez(path, image=image, label=label)
    path.rename(tmp_path / "A.NPZ")
    assert np.array_equal(read_arrays(tmp_path / "A.NPZ")[0], image)


def test_names_are_compared_in_linear_time(tmp_path):
    from pathlib import Path

    start = time.perf_counter()
    by_name([Path(f"case{number:06d}.nii") for number in range(50_000)])
    assert time.perf_counter() - start < 10


def refusal(read, path):
    """What a reader says of a file, and how many bytes of memory it took to say it."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as error:
            read(path)
        return str(error.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_large_elements_of_hdf5_files_are_refused_unread(tmp_path):
    path = tmp_path / "a.h5"
    arrays = h5py.h5t.array_create(h5py.h5t.NATIVE_DOUBLE, (1000, 1000))
    texts = h5py.h5t.py_create(np.dtype("S100000000"))
    records = h5py.h5t.py_create(np.dtype([("a", "f8", (1000, 1000)), ("b", "u1")]))
    number = h5py.h5t.NATIVE_UINT8
    large = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    large.set_chunk((40_000, 40_000))
    for kind, shape, plist, words in (
        (arrays, (50,), None, r"'image', not numbers"),
        (texts, (20,), None, r"holds \|S100000000 in 'image', not numbers"),
        (records, (20,), None, r"'image', not numbers"),
        (number, (8, 8), large, r"\(40000, 40000\), which is more than an image may have"),
    ):
        with h5py.File(path, "w") as file:
            space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(shape) if plist else None)
            h5py.h5d.create(file.id, b"image", kind, space, plist)
            file["label"] = np.zeros((8, 8), np.uint8)
        said, memory = refusal(read_arrays, path)
        assert re.search(words, said) and str(path) in said and memory < 2**20
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = h5py.Empty("f4"), np.zeros((8, 8), np.uint8)
    assert "holds nothing in 'image'" in refusal(read_arrays, path)[0]
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = np.ones((8, 8), np.float16), np.eye(8, dtype=bool)
    assert np.array_equal(read_arrays(path)[1], np.eye(8))


def test_large_elements_of_archives_are_refused_unread(tmp_path):
    path = tmp_path / "a.npz"
    header = {"descr": "|V1000000", "fortran_order": False, "shape": (10,)}
    for descr, words in (("|V1000000", "|V1000000"), ("<U250000", "<U250000"), (("<f8", (400, 400)), "('<f8', (400,")):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("image.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header | {"descr": descr})
            member.write(bytes(10**7))
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("label.npy", b"")
        said, memory = refusal(read_arrays, path)
        assert words in said and said.endswith("in 'image.npy', not numbers.") and memory < 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**7) + bytes(10**7))
        file.writestr("label.npy", b"")
    said, memory = refusal(read_arrays, path)
    assert said.endswith("holds 'image.npy' with a header that is too long.") and memory < 2**20


def test_headers_of_volumes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_HEADER", 2**20)
    path = tmp_path / "v.nii.gz"
    for size in (2**10, 2**23):
        image = nibabel.Nifti1Image(VOLUME, np.diag([-0.5, -1.0, 3.0, 1.0]))
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, bytes(size - 8)))
        nibabel.save(image, path)
        if size == 2**10:
            assert np.array_equal(read_nifti(path)[0], VOLUME)
    # Long extensions; without saying where they end; no extensions, but voxels as far away.
    for change in ((), ((108, "f", 0),), ((108, "f", 2**23), (348, "4B", 0, 0, 0, 0))):
        patch(path, *change)
        said, memory = refusal(read_nifti, path)
        assert said == f"'{path}' has a header that is damaged, or longer than 1,048,576 bytes." and memory < 2**21
    (tmp_path / "v.nii").write_bytes(gzip.decompress(path.read_bytes()))
    assert "has a header that is damaged" in refusal(read_nifti_labels, tmp_path / "v.nii")[0]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from vssm._errors import UserError
from vssm.medical.files import write_h5

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    write_h5(sys.argv[1], image=np.random.default_rng(0).random(50_000))
except UserError as error:
    print(error)
"""


def test_hdf5_files_on_a_full_disk(tmp_path):
    """In a program of its own: HDF5 ended the whole of it."""
    path = tmp_path / "a.npy.h5"
    image, label = np.random.default_rng(0).random((3, 8, 8)).astype(np.float32), np.ones((3, 8, 8), np.uint8)
    write_h5(path, image=image, label=label)
    before = path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        f"The file '{path}' cannot be written: File too large.\n",
        "",
    )
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert all(np.array_equal(read, wrote) for read, wrote in zip(read_arrays(path), (image, label), strict=True))

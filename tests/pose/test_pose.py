"""Pose estimation: crops and heatmaps, the estimator, COCO's metric, and a run from training to prediction."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmengine")
pytest.importorskip("pycocotools")
pytest.importorskip("skimage")

from mmengine.registry import MODELS  # noqa: E402

from tests import parity  # noqa: E402
from vssm import _inputs  # noqa: E402
from vssm._errors import DataError  # noqa: E402
from vssm.checkpoint import CheckpointError  # noqa: E402
from vssm.engine import run  # noqa: E402
from vssm.engine.config import ConfigError, load_config  # noqa: E402
from vssm.pose import CocoKeypoints, DigitKeypoints, HeatmapCodec, PoseEstimator, PosePredictor  # noqa: E402
from vssm.pose.codec import box_to_region, crop_image, crop_matrix, flip_back, map_points, region_to_points  # noqa: E402
from vssm.pose.digits import stroke_points  # noqa: E402
from vssm.pose.metrics import KeypointAP, average_precision  # noqa: E402
from vssm.pose.predict import read_boxes  # noqa: E402

SIZE = (64, 48)


def test_points_go_to_the_crop_and_back():
    region = box_to_region((10, 20, 30, 80), SIZE)
    assert region.tolist() == [25, 60, 75, 100]  # as high as the padded box, and of the crop's shape
    points = np.array([[25.0, 60.0], [11.0, 93.0]])
    inside = map_points(points, crop_matrix(region, SIZE))
    assert np.allclose(inside[0], [24, 32])
    assert np.allclose(region_to_points(inside, region, SIZE), points)


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_a_bright_pixel_is_where_its_point_goes(degrees):
    image = np.zeros((100, 120, 3), dtype=np.uint8)
    image[39:42, 59:62] = 255
    matrix = crop_matrix(box_to_region((40, 20, 40, 40), SIZE), SIZE, degrees)
    crop = np.asarray(crop_image(Image.fromarray(image), matrix, SIZE)).astype(float)[..., 0]
    assert crop.shape == SIZE
    rows, columns = np.indices(SIZE)
    middle = [(crop * columns).sum() / crop.sum(), (crop * rows).sum() / crop.sum()]
    assert np.allclose(middle, map_points(np.array([60.0, 40.0]), matrix), atol=0.3)


def test_heatmaps_say_where_the_points_were():
    codec = HeatmapCodec(SIZE, 4, 2.0)
    points = np.array([[20.0, 30.0], [0.0, 0.0], [-90.0, 5.0], [8.0, 8.0]])
    heatmaps, weights = codec.encode(points, np.array([True, True, True, False]))
    assert heatmaps.shape == (4, 16, 12) and weights.tolist() == [1, 1, 0, 0]
    assert heatmaps[0].max() == 1 and heatmaps[0, 8, 5] == 1 and heatmaps[2:].max() == 0
    assert heatmaps[0, 8, 7] == pytest.approx(np.exp(-4 / 8))
    found, scores = codec.decode(heatmaps[None])
    assert np.abs(found[0, 0].numpy() - points[0]).max() <= 2 and scores[0, 0] == 1
    # A quarter of a pixel towards the higher neighbour.
    peak = torch.zeros(1, 1, 16, 12)
    peak[0, 0, 5, 5], peak[0, 0, 5, 6] = 1.0, 0.5
    assert codec.decode(peak)[0][0, 0].tolist() == [21, 20]


def test_mirrored_heatmaps_are_turned_back():
    heatmaps = torch.rand(1, 3, 4, 6)
    mirrored = heatmaps[:, [1, 0, 2]].flip(-1)
    assert torch.equal(flip_back(mirrored, ((0, 1),), shift=False), heatmaps)
    assert torch.equal(flip_back(mirrored, ((0, 1),))[..., 1:], heatmaps[..., :-1])


def test_strokes_of_known_shapes():
    line = np.zeros((40, 20))
    line[4:36, 8:13] = 1
    points, labelled = stroke_points(line)
    assert labelled.tolist() == [True, True, False]
    assert np.abs(points[:2] - [[10, 6], [10, 33]]).max() <= 3
    plus = np.zeros((41, 41))
    plus[3:38, 18:23] = plus[18:23, 3:38] = 1
    points, labelled = stroke_points(plus)
    assert labelled.all() and np.abs(points[2] - [20, 20]).max() <= 1.5
    assert not stroke_points(np.ones((9, 9)))[1][2]


def test_metric_is_cocos():
    data = DigitKeypoints("val", 4)
    truth = data.ground_truth()
    labelled = [one for one in truth["annotations"] if one["num_keypoints"]]
    right = [dict(image_id=a["image_id"], category_id=1, keypoints=a["keypoints"], score=1.0) for a in labelled]
    sigmas = data.metainfo["sigmas"]
    assert average_precision(truth, right, sigmas)["AP"] == pytest.approx(100)
    wrong = [dict(one, keypoints=(np.array(one["keypoints"]) + 30).tolist()) for one in right]
    assert average_precision(truth, wrong, sigmas)["AP"] < 5
    assert average_precision(truth, [], sigmas)["AP"] == 0


def keypoint_file(folder, change=lambda data: None, categories=2):
    """Four objects with three keypoints, two to an image and at one place, of categories in turn."""
    names = ["a", "b", "c"]
    keypoints = [60.0, 70.0, 2, 80.0, 85.0, 2, 100.0, 100.0, 2]
    data = dict(
        images=[dict(id=n, file_name=f"{n}.png", width=200, height=200) for n in (1, 2)],
        categories=[dict(id=n + 1, name=f"kind {n + 1}", keypoints=list(names)) for n in range(categories)],
        annotations=[
            dict(id=n + 1, image_id=n // 2 + 1, category_id=n % categories + 1, bbox=[50, 50, 100, 100], area=8000.0)
            | dict(iscrowd=0, num_keypoints=3, keypoints=list(keypoints))
            for n in range(4)
        ],
    )
    change(data)
    for image in (1, 2):
        Image.new("RGB", (200, 200), "gray").save(folder / f"{image}.png")
    (folder / "keypoints.json").write_text(json.dumps(data))
    return str(folder / "keypoints.json")


def exact_ap(file, folder, **options):
    """The AP of answers that are the labels, and how many there are."""
    options = dict(ann_file=file, images=str(folder), size=SIZE, flip_pairs=()) | options
    data, metric = CocoKeypoints(**options), KeypointAP(dict(options, type=CocoKeypoints))
    for sample in data:
        points = map_points(np.array([[60, 70], [80, 85], [100, 100]]), crop_matrix(sample["region"].numpy(), SIZE))
        metric.process(None, [dict(sample, points=torch.tensor(points), scores=torch.ones(3))])
    return metric.evaluate(len(data))["pose/AP"], len(data)


def test_each_category_is_measured_as_itself(tmp_path):
    assert exact_ap(keypoint_file(tmp_path), tmp_path) == (pytest.approx(100), 4)
    boxes = tmp_path / "boxes.json"
    found = [dict(image_id=i, category_id=c, bbox=[50, 50, 100, 100], score=1) for i in (1, 2) for c in (1, 2, 9)]
    boxes.write_text(json.dumps(found))
    assert exact_ap(keypoint_file(tmp_path), tmp_path, boxes=str(boxes)) == (pytest.approx(100), 4)

    def without_names(data):
        data["categories"][1].pop("keypoints")
        data["annotations"][1].pop("keypoints")

    # Only the objects of the one category are samples and truth.
    assert exact_ap(keypoint_file(tmp_path, without_names), tmp_path) == (pytest.approx(100), 2)
    file = keypoint_file(tmp_path, lambda data: data["categories"][1].update(keypoints=["a", "b", "d"]))
    with pytest.raises(DataError, match="different keypoints, 'kind 1' has a, b, c and 'kind 2' has a, b, d"):
        CocoKeypoints(file, str(tmp_path))


@pytest.mark.parametrize("key", ["num_keypoints", "area", "iscrowd", "id"])
def test_optional_keys_are_filled_in(key, tmp_path):
    def change(data):
        for one in data["annotations"]:
            one.pop(key)

    assert exact_ap(keypoint_file(tmp_path, change), tmp_path) == (pytest.approx(100), 4)
    # pycocotools takes an object of the number 0 for none.
    file = keypoint_file(tmp_path, lambda data: data["annotations"][0].update(id=0, iscrowd=0))
    assert exact_ap(file, tmp_path)[0] == pytest.approx(100)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("images", dict(id="1"), r"images\[0\] with the id '1'; ids are whole numbers"),
        ("images", dict(id=2), "gives the id 2 to two images"),
        ("annotations", dict(image_id="1"), r"annotations\[0\] with the image_id '1'; the ids are 1, 2"),
        ("annotations", dict(category_id=9), r"annotations\[0\] with the category_id 9; the ids are 1, 2"),
        ("annotations", dict(bbox=[float("nan"), 1, 2, 3]), r"annotations\[0\] without a bbox of four numbers"),
        ("annotations", dict(keypoints=[1, 2, 2]), r"annotations\[0\] without keypoints .* for each of 3"),
    ],
)
def test_broken_entries_are_one_sentence(part, change, words, tmp_path):
    file = keypoint_file(tmp_path, lambda data: data[part][0].update(change))
    with pytest.raises(DataError, match=words) as error:
        CocoKeypoints(file, str(tmp_path))
    assert "\n" not in str(error.value)


def test_detections_are_of_the_files_images(tmp_path):
    boxes = tmp_path / "boxes.json"
    whole = dict(image_id=1, category_id=1, bbox=[50, 50, 100, 100], score=1)
    for change, words in (
        (dict(image_id=9), "an image 9"),
        (dict(bbox=[1]), "without a bbox"),
        (None, "no detections"),
    ):
        boxes.write_text(json.dumps([whole, change and whole | change]))
        with pytest.raises(DataError, match=words):
            CocoKeypoints(keypoint_file(tmp_path), str(tmp_path), str(boxes))


def coco_files(folder):
    """Two persons in an image, one of them a crowd."""
    Image.new("RGB", (100, 80), "gray").save(folder / "0.png")
    points = [[30 + i, 20 + 2 * i, 2] for i in range(17)]
    one = dict(id=1, image_id=7, category_id=1, bbox=[20, 10, 40, 60], area=2400, iscrowd=0, num_keypoints=17)
    one["keypoints"] = sum(points, [])
    from vssm.pose.data import COCO_PERSON

    category = dict(id=1, name="person", keypoints=list(COCO_PERSON["keypoints"]))
    images = [dict(id=7, file_name="0.png", width=100, height=80)]
    file = folder / "persons.json"
    annotations = [one, dict(one, id=2, iscrowd=1)]
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[category])))
    boxes = folder / "boxes.json"
    boxes.write_text(json.dumps([dict(image_id=7, category_id=1, bbox=[20, 10, 40, 60], score=0.5)]))
    return str(file), str(boxes)


def test_cocos_files(tmp_path):
    file, boxes = coco_files(tmp_path)
    data = CocoKeypoints(file, str(tmp_path), size=SIZE)
    assert len(data) == 1 and data[0]["weights"].sum() == 17 and len(data.metainfo["sigmas"]) == 17
    torch.manual_seed(0)
    data = CocoKeypoints(file, str(tmp_path), size=SIZE, augment=dict(half_body_prob=1.0, flip_prob=1.0))
    sample = data[0]
    assert sample["inputs"].shape == (3, *SIZE) and sample["heatmaps"].shape == (17, 16, 12)
    found = CocoKeypoints(file, str(tmp_path), boxes, size=SIZE)[0]
    assert found["box_score"] == 0.5 and found["weights"].sum() == 0
    with pytest.raises(Exception, match="cannot be read"):
        CocoKeypoints(str(tmp_path / "none.json"), str(tmp_path))
    with pytest.raises(ConfigError, match="flip_probability"):
        CocoKeypoints(file, str(tmp_path), augment=dict(flip_probability=1.0))


def test_other_keypoints_say_what_a_mirror_does(tmp_path):
    file, _ = coco_files(tmp_path)
    content = json.loads(Path(file).read_text())
    content["categories"][0]["keypoints"] = [f"joint {i}" for i in range(17)]
    Path(file).write_text(json.dumps(content))
    with pytest.raises(DataError, match="flip_pairs must say"):
        CocoKeypoints(file, str(tmp_path), augment={})
    assert CocoKeypoints(file, str(tmp_path), augment=dict(flip_prob=0.0)).metainfo["sigmas"] == (0.05,) * 17
    data = CocoKeypoints(file, str(tmp_path), augment={}, flip_pairs=[[0, 1]], sigmas=[0.1] * 17)
    assert data.metainfo["flip_pairs"] == ((0, 1),) and data.metainfo["sigmas"] == (0.1,) * 17
    for wrong, part in ((dict(flip_pairs=[[0, 17]]), "below 17"), (dict(sigmas=[0.1]), "each of 17")):
        with pytest.raises(DataError, match=part):
            CocoKeypoints(file, str(tmp_path), **wrong)


def test_mirrored_points_change_places(tmp_path):
    file, _ = coco_files(tmp_path)
    fixed = dict(shift_prob=0, scale=(1, 1), degrees_prob=0, half_body_prob=0)
    plain = CocoKeypoints(file, str(tmp_path), size=SIZE, augment=dict(fixed, flip_prob=0))[0]["heatmaps"]
    mirrored = CocoKeypoints(file, str(tmp_path), size=SIZE, augment=dict(fixed, flip_prob=1))[0]["heatmaps"]
    codec = HeatmapCodec(SIZE)
    (a, _), (b, _) = codec.decode(plain[None]), codec.decode(mirrored[None])
    assert (a[0, 5, 0] + b[0, 6, 0] - (SIZE[1] - 1)).abs() <= 4 and (a[0, 5, 1] - b[0, 6, 1]).abs() <= 1


def official(gated: bool) -> dict:
    """An official file of pose estimation: without neck, classifier and the other outputs of the last fusion."""
    record = parity.load("hrvmamba")["variants"]["_unit" if gated else "_unit_dw"]
    names = {
        name: shape
        for name, shape in record["state_dict"].items()
        if not name.startswith(("neck.", "head.", *(f"stage4.0.fuse_layers.{i}." for i in (1, 2, 3))))
    }
    weights = {f"backbone.{k}": v for k, v in parity.state_dict({"state_dict": names}).items()}
    width = 8 if gated else 80
    return weights | {"head.final_layer.weight": torch.randn(17, width, 1, 1), "head.final_layer.bias": torch.randn(17)}


UNIT = dict(name="hrvmamba_pico", depths=(1, 1, 1), stem_dim=64)
PLAIN = dict(UNIT, se=False, pos_conv=False, dims=(80, 16, 32, 64), offset_conv=(True, False, False, False))


@pytest.mark.parametrize("gated", [True, False])
def test_official_files_load_whole(gated):
    weights, own = official(gated), PoseEstimator(UNIT if gated else PLAIN, size=SIZE)
    given = dict(weights)
    own.convert_on_load(given, "")
    assert given.keys() == own.state_dict().keys()
    own.load_state_dict(given)
    assert torch.equal(own.head.bias, weights["head.final_layer.bias"])
    other = PoseEstimator(PLAIN if gated else UNIT, size=SIZE)
    with pytest.raises(CheckpointError, match="se=True" if gated else "se=False"):
        other.convert_on_load(dict(weights), "")


def test_estimator():
    torch.manual_seed(0)
    net = PoseEstimator(UNIT, keypoints=3, size=SIZE, flip_pairs=((0, 1),)).eval()
    x = torch.randn(2, 3, *SIZE)
    assert net(x).shape == (2, 3, 16, 12)
    target = net(x).detach()
    assert net(x, target, torch.ones(2, 3), "loss")["loss"] == 0
    loss = net(x, target + 1, torch.tensor([[1.0, 0, 0], [0, 0, 0]]), "loss")["loss"]
    assert loss.item() == pytest.approx(1 / 6, rel=1e-4)
    found = net(x, mode="predict", image_id=torch.tensor([3, 4]))
    assert found[1]["points"].shape == (3, 2) and found[1]["image_id"] == 4
    with pytest.raises(ValueError, match="'loss' or 'predict', not 'train'"):
        net(x, mode="train")


def test_run(tmp_path, capsys):
    """Training, testing and prediction by the same tools as of other tasks."""
    few = ["train_dataloader.dataset.count=6", "val_dataloader.dataset.count=3", "test_dataloader.dataset.count=3"]
    few += ["val_evaluator.dataset.count=3", "test_evaluator.dataset.count=3", "train_dataloader.batch_size=8"]
    few += ["train_cfg.max_epochs=1", "model.model.depths=(1,1)", "model.model.dims=(8,8,16)"]
    config = "configs/pose/heatmap_hrvmamba-pico_digits.py"
    metrics = run.train(config, str(tmp_path / "run"), options=few)
    assert 0 <= metrics["pose/AP"] <= 100
    checkpoint = str(tmp_path / "run" / "epoch_1.pth")
    assert run.test(config, checkpoint, str(tmp_path / "test"), options=few) == metrics
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    (tmp_path / "boxes.json").write_text(json.dumps({"a.png": [[0, 0, 20, 20], [10, 5, 30, 30]]}))
    options = [*few, f"boxes={tmp_path / 'boxes.json'}"]
    (tmp_path / "b").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "b" / "a.png")
    arguments = [config, checkpoint, str(tmp_path / "a.png"), str(tmp_path / "b")]
    code = run.predict(arguments, out=str(tmp_path / "drawn"), json_file=str(tmp_path / "a.json"), options=options)
    assert code == 0
    for name, size in (("a.png", (50, 40)), ("a_2.png", (30, 20))):
        assert Image.open(tmp_path / "drawn" / name).size == size
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["keypoints"] == ["top", "bottom", "crossing"] and len(said["images"][0]["poses"]) == 2
    run.check(config, few, samples=2)
    with pytest.raises(ConfigError, match="3 keypoints, but the model 4"):
        run.train(config, str(tmp_path / "other"), options=[*few, "model.keypoints=4"])


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[10, 10, 0, 0]], r"\[10, 10, 0, 0\] for 'a.png'; a box is \[left, top, width, height\]"),
        ([[10, 10, -50, 50]], r"\[10, 10, -50, 50\] for 'a.png'"),
        ([[10, 10, 50]], r"\[10, 10, 50\] for 'a.png'"),
        ([[10, 10, "50", 50]], r"'50', 50\] for 'a.png'"),
        ([[float("nan"), 10, 50, 50]], r"\[nan, 10, 50, 50\] for 'a.png'"),
        ([10, 10, 50, 50], "holds 10 for 'a.png'"),
        (None, "a list of boxes for 'a.png', not None"),
    ],
)
def test_boxes_that_are_none(boxes, words, tmp_path):
    (tmp_path / "boxes.json").write_text(json.dumps({"b.png": [[0, 0, 9, 9]], "a.png": boxes}))
    with pytest.raises(DataError, match=words):
        read_boxes(dict(boxes=str(tmp_path / "boxes.json")))


def test_only_images_without_a_list_are_one_box(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(_inputs, "_said", set())
    files = [str(tmp_path / f"{name}.png") for name in "abc"]
    for file in files:
        Image.new("RGB", (50, 40)).save(file)
    cfg = load_config("configs/pose/heatmap_hrvmamba-pico_digits.py")
    cfg.merge_from_dict({"model.model.depths": (1, 1), "model.model.dims": (8, 8, 16)})
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={}), tmp_path / "a.pth")

    def boxes_of(boxes):
        predictor = PosePredictor(cfg, tmp_path / "a.pth", "cpu", boxes)
        return [[pose.box for pose in answer.poses] for answer in predictor(files)]

    some = [(1, 2, 30, 20), (5, 5, 9, 9)]
    assert boxes_of({"a.png": [], files[1]: some}) == [[], some, [(0, 0, 50, 40)]]
    assert not caplog.records
    assert boxes_of({"other.png": some}) == [[(0, 0, 50, 40)]] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "The boxes are of 'other.png', of none of the 3 images: each image is one box."
    ]
    with pytest.raises(DataError, match=r"boxes holds \[1, 2\] for 'a.png'"):
        boxes_of({"a.png": [[1, 2]]})


@pytest.mark.parametrize("size", ["256x192", "384x288"])
def test_published_configs(size):
    cfg = load_config(f"configs/pose/heatmap_hrvmamba-small_210e_coco-{size}.py")
    model = dict(cfg.model, model=dict(cfg.model.model, pretrained=False))
    model.pop("type")
    net = PoseEstimator(**model)
    assert net.codec.size == tuple(map(int, size.split("x")))
    # The trunk of the official count, without the last fusion's three other outputs, and the head.
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == 8
    assert cfg.train_dataloader.dataset.sigma == cfg.model.sigma == (2.0 if size == "256x192" else 3.0)

"""Data sets of four images, and runs of one iteration, in the layouts of COCO and ADE20K."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

from PIL import Image  # noqa: E402

# vssm first: it lets mmdet be imported without mmcv's compiled operators.
import vssm.mm  # noqa: E402, F401, I001

REPO = Path(__file__).parents[2]
_numbers = itertools.count()

COMMON = """
custom_imports = dict(imports=["vssm.mm"], allow_failed_imports=False)
backbone = dict(_delete_=True, type="VSSMBackbone", model_name="vmamba_pico", drop_path_rate=0.1)
randomness = dict(seed=0)
optim_wrapper = dict(
    type="OptimWrapper", constructor="TimmOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05), paramwise_cfg=dict(layer_decay=0.8),
)
"""
DETECTION = """
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "mmdet::_base_/default_runtime.py"]
{common}
model = dict(
    backbone=backbone, neck=dict(in_channels=[32, 64, 128, 256], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16), mask_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=2),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1, num_classes=2),
    ),
    train_cfg=dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=32))),
)
dataset = dict(
    type="CocoDataset", data_root="{root}", ann_file="annotations.json", data_prefix=dict(img="images/"),
    metainfo=dict(classes=("square", "bar"), palette=[(220, 20, 60), (0, 0, 142)]),
)
train_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(96, 64), keep_ratio=True), dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="Resize", scale=(96, 64), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(**dataset, pipeline=train_pipeline, filter_cfg=dict(filter_empty_gt=True)),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file="{root}/annotations.json", metric=["bbox", "segm"])
test_evaluator = val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs={length}, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
"""
SEGMENTATION = """
_base_ = ["mmseg::_base_/models/upernet_swin.py", "mmseg::_base_/default_runtime.py"]
{common}
data_preprocessor = dict(
    type="SegDataPreProcessor", mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
    pad_val=0, seg_pad_val=255, size=(64, 64),
)
model = dict(
    data_preprocessor=data_preprocessor, backbone=backbone,
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=16, num_classes=2),
    auxiliary_head=dict(in_channels=128, channels=16, num_classes=2),
)
dataset = dict(
    type="BaseSegDataset", data_root="{root}", data_prefix=dict(img_path="images", seg_map_path="labels"),
    img_suffix=".png", seg_map_suffix=".png",
    metainfo=dict(classes=("ground", "thing"), palette=[(0, 0, 0), (255, 0, 0)]),
)
train_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"),
    dict(type="RandomCrop", crop_size=(64, 64)), dict(type="PackSegInputs"),
]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(**dataset, pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
train_cfg = dict(type="IterBasedTrainLoop", max_iters={length}, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=1))
"""


@pytest.fixture(scope="session")
def dense_data(tmp_path_factory) -> Path:
    """Images of 64 x 80 pixels with a bright square and a bright bar each, annotated for both tasks."""
    root = tmp_path_factory.mktemp("dense")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(4):
        image = random.integers(0, 80, (64, 80, 3), dtype=np.uint8)
        label = np.zeros((64, 80), dtype=np.uint8)
        for category, (width, height) in enumerate(((20, 20), (40, 8)), 1):
            x, y = int(random.integers(0, 80 - width)), int(random.integers(0, 24)) + 32 * (category - 1)
            image[y : y + height, x : x + width] += 150
            label[y : y + height, x : x + width] = 1
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": category, "iscrowd": 0,
                    "bbox": [x, y, width, height], "area": width * height, "segmentation": [corners],
                }
            )  # fmt: skip
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray(label).save(root / "labels" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 80})
    categories = [{"id": 1, "name": "square"}, {"id": 2, "name": "bar"}]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations.json").write_text(json.dumps(whole))
    return root


@pytest.fixture
def dense_config(tmp_path, dense_data):
    """Write the config of a run; each gets its own name, by which mmengine keeps loggers."""

    def write(task: str, length: int = 1, more: str = "", root: Path = dense_data) -> Path:
        text = {"detection": DETECTION, "segmentation": SEGMENTATION}[task]
        path = tmp_path / f"{task}_{os.getpid()}_{next(_numbers)}.py"
        path.write_text(text.format(common=COMMON, root=root, length=length) + more)
        return path

    return write

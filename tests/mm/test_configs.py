"""Every config of a detector or segmentor builds, each kind trains and predicts. tests/test_zoo.py has the sizes."""

import copy
import importlib
import re
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")
pytest.importorskip("mmseg")

# vssm first: it lets mmdet be imported without mmcv's compiled operators.
import vssm.mm  # noqa: E402, F401, I001
from mmdet.models.necks import FPN  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.structures.bbox import HorizontalBoxes  # noqa: E402
from mmdet.structures.mask import BitmapMasks  # noqa: E402
from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.dataset import Compose  # noqa: E402
from mmengine.model import revert_sync_batchnorm  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from mmengine.structures import InstanceData, PixelData  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402
from timm.layers import weight_init  # noqa: E402
from torch import nn  # noqa: E402

from tests.quick import read_config  # noqa: E402
from vssm._errors import MissingExtraError  # noqa: E402
from vssm.engine import load_config  # noqa: E402
from vssm.mm import fill_widths  # noqa: E402
from vssm.models import family_of  # noqa: E402
from vssm.models._backbone import Backbone  # noqa: E402
from vssm.zoo import recipes  # noqa: E402
from vssm_kernels.install import install_command  # noqa: E402

REPO = Path(__file__).parents[2]
# Those of the small sets have no published figures; test_mini_runs.py trains them.
DETECTION = recipes(REPO / "configs" / "detection")
SEGMENTATION = recipes(REPO / "configs" / "segmentation")
CONFIGS = [*DETECTION, *SEGMENTATION]
# One for each head and backbone: schedules and data sets change little of a model.
NETWORKS = list({tuple(path.stem.split("_")[:2]): path for path in reversed(CONFIGS)}.values())
BY_STEM = {path.stem: path for path in CONFIGS}
LOSSES = {
    "mask-rcnn": {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"},
    "cascade-mask-rcnn": {
        *("loss_rpn_cls", "loss_rpn_bbox"),
        *(f"s{stage}.{loss}" for stage in range(3) for loss in ("loss_cls", "loss_bbox", "loss_mask")),
    },
    "retinanet": {"loss_cls", "loss_bbox"},
    "yolo": {"loss_cls", "loss_bbox", "loss_dfl"},
    "upernet": {"decode.loss_ce", "aux.loss_ce"},
    "semantic-fpn": {"decode.loss_ce"},
    "mmscope": {"decode.loss_ce"},
}
# Classes and crops of the segmentors' data sets, by what the names of configs say.
DATA = {
    "ade20k-512x512": ("ADE20KDataset", 150, 512),
    "cityscapes-1024x1024": ("CityscapesDataset", 19, 1024),
    "coco-stuff164k-512x512": ("COCOStuffDataset", 171, 512),
    "coco-stuff10k-512x512": ("COCOStuffDataset", 171, 512),
}


def read(path):
    cfg = read_config(path)
    cfg.model.backbone.pretrained = False
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg):
    return MODELS.build(cfg.model)


def build_quickly(cfg, device="cpu"):
    """With uniform weights in place of what takes longer than all else, the usual initial values."""
    draws = [name for name in vars(nn.init) if re.fullmatch(r"(trunc_)?normal_|uniform_|(kaiming|xavier)_\w+_", name)]
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(Backbone, "init_weights", lambda self: None))
        for module, name in [(weight_init, "_trunc_normal_"), *((nn.init, name) for name in draws)]:
            stack.enter_context(mock.patch.object(module, name, _fill))
        stack.enter_context(torch.device(device))
        return build(cfg)


@torch.no_grad()
def _fill(tensor, *args, **kwargs):
    return tensor if tensor.is_meta else tensor.uniform_(-0.02, 0.02)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_names(path):
    """The name of a config says its backbone; training starts from published weights, a YOLO's from scratch."""
    backbone = read_config(path).model.backbone
    assert backbone.pretrained is (not path.stem.startswith("yolo_"))
    assert path.stem.split("_")[1] == backbone.model_name.removeprefix("vssm_").replace("_", "-")


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_widths(path):
    """At full size, without values: the losses of every family and head are in `test_trains_and_predicts`."""
    cfg = read(path)
    model = build_quickly(cfg, "meta")
    widths = model.backbone.channels
    # A pyramid of maps of one width keeps them.
    reader = model.neck if hasattr(getattr(model, "neck", None), "in_channels") else model.decode_head
    assert list(reader.in_channels) == widths
    if "auxiliary_head" in cfg.model:
        assert model.auxiliary_head.in_channels == widths[model.auxiliary_head.in_index]


# Epochs or steps, what resizes the images, and the sides of which batches have multiples.
SCHEDULES = {
    "1x": (12, "Resize", 32),
    "ms-3x": (36, "RandomChoice", 32),
    "lsj-100e": (184375, "RandomResize", 1024),
    "300e": (300, "Mosaic", 32),
}


@pytest.mark.parametrize("path", DETECTION, ids=lambda path: path.stem)
def test_recipe_of_a_detector(path):
    """Checks the settings that must agree within a config."""
    cfg = read(path)
    head, schedule = path.stem.split("_")[0], path.stem.split("_")[3]
    length, resize, side = SCHEDULES[schedule]
    steps = cfg.param_scheduler[-1]
    assert steps.end == cfg.train_cfg.get("max_epochs" if steps.by_epoch else "max_iters") == length
    assert max(steps.get("milestones", [0])) < steps.end
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    assert cfg.model.data_preprocessor.pad_size_divisor == side
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert resize in kinds and "RandomFlip" in kinds
    assert ("segm" in cfg.val_evaluator.metric) == (head not in ("retinanet", "yolo"))


@pytest.mark.parametrize("path", SEGMENTATION, ids=lambda path: path.stem)
def test_recipe_of_a_segmentor(path):
    """As above."""
    cfg = read(path)
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters
    assert f"_{cfg.train_cfg.max_iters // 1000}k_" in path.stem
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    kind, classes, side = DATA[path.stem.split("_")[-1]]
    assert {cfg.train_dataloader.dataset.type, cfg.val_dataloader.dataset.type} == {kind}
    heads = [cfg.model[name] for name in ("decode_head", "auxiliary_head") if name in cfg.model]
    assert {head.num_classes for head in heads} == {classes}
    crop = next(step for step in cfg.train_dataloader.dataset.pipeline if step.type == "RandomCrop")
    assert crop.crop_size == cfg.model.data_preprocessor.size == (side, side)
    assert cfg.model.test_cfg.mode == "whole" or cfg.model.test_cfg.crop_size == (side, side)
    assert [step.prob for step in cfg.tta_pipeline[1].transforms[1]] == [0.0, 1.0]


# Which parameters the official training spares from weight decay, under our names.
IN_BLOCKS = r"backbone\..*(blocks\.\d+\..*norm|outnorm)"
PLAIN = r"blocks\.\d+\.norm|pos_embed|A_logs|Ds$|direction_Bs"
SPARED = {
    "mask-rcnn_vmamba-tiny-v0_fpn_1x_coco": rf"{IN_BLOCKS}|downsample\.norm",
    "mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco": IN_BLOCKS,
    "upernet_vmamba-tiny-s1l8_160k_ade20k-512x512": IN_BLOCKS,
    "mask-rcnn_efficientvmamba-tiny_fpn_1x_coco": rf"{IN_BLOCKS}|downsample\.norm",
    "mask-rcnn_msvmamba-tiny_fpn_1x_coco": rf"{IN_BLOCKS}|downsample\.norm",
    "mask-rcnn_groupmamba-tiny_fpn_1x_coco": r"norm",
    "mask-rcnn_spatialmamba-tiny_fpn_1x_coco": r"out_norm|outnorm|backbone.*\.bn\.",
    "upernet_spatialmamba-tiny_160k_ade20k-512x512": r"out_norm|outnorm|backbone.*\.bn\.",
    "mask-rcnn_vssd-tiny_fpn_1x_coco": rf"{IN_BLOCKS}|backbone.*\.bn\.",
    "mask-rcnn_efficientvim-m4_fpn_1x_coco": r"(?!)",
    "mmscope_segman-tiny_160k_ade20k-512x512": r"backbone\..*blocks\.\d+\..*norm",
    "mask-rcnn_plainmamba-l1_fpn_1x_coco": rf"{PLAIN}|bias|_norm\.|adapter\.norms|level_embed",
    "upernet_plainmamba-l1_160k_ade20k-512x512": rf"{PLAIN}|outnorm",
    "upernet_vim-tiny-patch16-224_60k_ade20k-512x512": r"bias|\.norm\.|Ds$|pos_embed|\.bn\.|upsample_4x\.1\.",
    "yolo_mambayolo-tiny_pafpn_300e_coco": r"bias|norm\d?\.weight",
}


@pytest.mark.parametrize("stem", SPARED)
def test_the_official_weight_decay(stem):
    cfg = read(BY_STEM[stem])
    model = build_quickly(cfg, "meta")
    cfg.optim_wrapper.type = "OptimWrapper"
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    spared = {id(p) for group in wrapper.optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
    found = {name for name, parameter in model.named_parameters() if id(parameter) in spared}
    assert found == {name for name, _ in model.named_parameters() if re.search(SPARED[stem], name)}


def test_rules_of_weight_decay_that_are_spelt_out_are_the_families():
    """Configs that name a table of configs/_base_ decay what they did."""
    tables = Config.fromfile(REPO / "configs" / "_base_" / "weight_decay.py")
    for family, table in (
        ("vmamba", "vmamba"),
        ("efficientvmamba", "numbered_stem"),
        ("groupmamba", "groupmamba"),
        ("msvmamba", "numbered_stem"),
        ("spatialmamba", "spatialmamba"),
        ("vssd", "vssd"),
    ):
        rules = {name: {"decay_mult": factor} for name, factor in family_of(family).dense_decay.items()}
        assert tables[f"decay_{table}"] == rules


def pico(**parts):
    return ConfigDict(backbone=dict(type="VSSMBackbone", model_name="vmamba_pico"), **parts)


@pytest.mark.parametrize(
    ("parts", "path", "widths"),
    [
        (dict(neck=dict(type="mmdet.FPN", in_channels=None)), ("neck",), [32, 64, 128, 256]),
        (dict(neck=dict(type=FPN)), ("neck",), [32, 64, 128, 256]),
        (dict(neck=[dict(type="mmdet.FPN"), dict(type="mmdet.DyHead")]), ("neck", 0), [32, 64, 128, 256]),
        (dict(neck=dict(type="mmdet.FPN", in_channels=[1, 2])), ("neck",), [1, 2]),
        (dict(neck=dict(type="mmseg.Feature2Pyramid", embed_dim=8)), ("neck",), None),
        (dict(decode_head=dict(type="mmseg.FCNHead")), ("decode_head",), 256),
        (dict(decode_head=dict(type="mmseg.UPerHead", in_index=[0, 2])), ("decode_head",), [32, 128]),
        (dict(decode_head=dict(type="MMSCopEHead")), ("decode_head",), [64, 128, 256]),
        (dict(decode_head={}, auxiliary_head=[dict(in_index=1), dict(in_index=2)]), ("auxiliary_head", 1), 128),
        (dict(neck=dict(type="mmdet.FPN"), decode_head=dict(type="FPNHead")), ("decode_head",), None),
    ],
)
def test_widths_come_from_the_backbone(parts, path, widths):
    model = pico(**parts)
    given = copy.deepcopy(model)
    found = fill_widths(model)
    for key in path:
        found = found[key]
    assert found.get("in_channels") == widths and model == given


def test_models_of_others_are_left_alone():
    model = ConfigDict(backbone=dict(type="mmdet.ResNet", depth=18), neck=dict(type="mmdet.FPN", in_channels=None))
    assert fill_widths(model) is model and fill_widths(None) is None


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_their_own_registries_fill_widths_too(scope):
    """`init_detector` and `init_model` build without mmengine's Runner."""
    stem = {"mmdet": "mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco", "mmseg": "upernet_vmamba-tiny-s1l8_160k_ade20k-512x512"}
    cfg = shrink(read(BY_STEM[stem[scope]]), "vmamba_pico")
    registry = importlib.import_module(f"{scope}.registry").MODELS
    model = registry.build(cfg.model)
    assert list((model.neck if scope == "mmdet" else model.decode_head).in_channels) == model.backbone.channels


def test_a_wrong_width_is_an_error():
    cfg = shrink(read(BY_STEM["mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco"]), "vmamba_pico")
    cfg.model.neck.in_channels = [32, 64, 128, 255]
    with pytest.raises(RuntimeError, match="255"):
        build(cfg).extract_feat(torch.zeros(1, 3, 64, 64))


# One of each family and head, with the family's smallest backbone.
RUN = [
    ("mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco", "vmamba_pico"),
    ("cascade-mask-rcnn_vmamba-tiny-s1l8_fpn_1x_coco", "vmamba_pico"),
    ("mask-rcnn_efficientvmamba-tiny_fpn_1x_coco", "efficientvmamba_pico"),
    ("retinanet_efficientvmamba-tiny_fpn_1x_coco", "efficientvmamba_pico"),
    ("mask-rcnn_groupmamba-tiny_fpn_1x_coco", "groupmamba_pico"),
    ("mask-rcnn_msvmamba-micro_fpn_ms-3x_coco", "msvmamba_pico"),
    ("mask-rcnn_spatialmamba-tiny_fpn_1x_coco", "spatialmamba_pico"),
    ("mask-rcnn_vssd-micro_fpn_1x_coco", "vssd_pico"),
    ("mask-rcnn_efficientvim-m4_fpn_1x_coco", "vssm_efficientvim_pico"),
    ("retinanet_efficientvim-m4_fpn_1x_coco", "vssm_efficientvim_pico"),
    ("mask-rcnn_plainmamba-l1_fpn_1x_coco", "plainmamba_pico"),
    ("retinanet_plainmamba-l1_fpn_1x_coco", "plainmamba_pico"),
    ("cascade-mask-rcnn_vim-tiny-patch16-224_simple-pyramid_lsj-100e_coco", "vim_pico"),
    ("upernet_vmamba-tiny-s1l8_160k_ade20k-512x512", "vmamba_pico"),
    ("upernet_efficientvmamba-tiny_160k_ade20k-512x512", "efficientvmamba_pico"),
    ("upernet_groupmamba-tiny_160k_ade20k-512x512", "groupmamba_pico"),
    ("upernet_msvmamba-micro_160k_ade20k-512x512", "msvmamba_pico"),
    ("upernet_spatialmamba-tiny_160k_ade20k-512x512", "spatialmamba_pico"),
    ("upernet_vssd-micro_160k_ade20k-512x512", "vssd_pico"),
    ("upernet_plainmamba-l1_160k_ade20k-512x512", "plainmamba_pico"),
    ("upernet_vim-tiny-patch16-224_60k_ade20k-512x512", "vim_pico"),
    ("semantic-fpn_efficientvim-m4_40k_ade20k-512x512", "vssm_efficientvim_pico"),
    ("mmscope_segman-tiny_160k_ade20k-512x512", "segman_pico"),
    ("upernet_a2mamba-tiny_160k_ade20k-512x512", "a2mamba_pico"),
    ("mask-rcnn_a2mamba-tiny_fpn_1x_coco", "a2mamba_pico"),
    ("upernet_hrvmamba-base_160k_ade20k-512x512", "hrvmamba_pico"),
    ("yolo_mambayolo-tiny_pafpn_300e_coco", "mambayolo_pico"),
]


def test_every_family_and_head_is_run():
    def kinds(paths):
        return {(path.stem.split("_")[0], path.stem.split("_")[1].split("-")[0]) for path in paths}

    assert kinds(BY_STEM[stem] for stem, _ in RUN) == kinds(CONFIGS)


def limit(cfg):
    """Send few proposals into a config's heads, and keep few results."""
    model = cfg.model
    if cfg.default_scope == "mmdet":
        model.data_preprocessor.pad_size_divisor = 32
    if "roi_head" in model:
        model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
        model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
        for stage in model.train_cfg.rcnn if isinstance(model.train_cfg.rcnn, list) else [model.train_cfg.rcnn]:
            stage.sampler.num = 16
    elif "bbox_head" in model:
        model.test_cfg.update(nms_pre=50, score_thr=0.0, max_per_img=5)
    return cfg


def shrink(cfg, name):
    """Put a small backbone under a config's heads, and make these narrow."""
    model = cfg.model
    model.backbone.model_name = name
    if model.backbone.out_indices == (23,):  # the last block
        model.backbone.out_indices = (3,)
    if "adapter" in model.backbone:
        model.backbone.adapter.update(num_heads=4, prior_width=8)
    if "embed_dim" in model.get("neck", {}):
        model.neck.embed_dim = model.auxiliary_head.in_channels = 32
        model.decode_head.in_channels = [32] * 4
    if "auxiliary_head" in model:
        model.auxiliary_head.channels = model.decode_head.channels = 16
    if model.get("decode_head", {}).get("type") == "MMSCopEHead":
        model.decode_head.update(channels=16, map_channels=16)
    if "roi_head" in model:
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 16
    return limit(cfg)


def sample(scope, height=64, width=96):
    """One image with two objects, or with two classes."""
    shapes = dict(img_shape=(height, width), ori_shape=(height, width), pad_shape=(height, width))
    if scope == "mmseg":
        data = SegDataSample(metainfo=shapes)
        labels = torch.zeros(1, height, width, dtype=torch.long)
        labels[:, :, 40:] = 7
        data.gt_sem_seg = PixelData(data=labels)
        return data
    data = DetDataSample(metainfo=dict(shapes, scale_factor=(1.0, 1.0), batch_input_shape=(height, width)))
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0], [30.0, 10.0, 90.0, 60.0]])
    masks = np.zeros((2, height, width), dtype=np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    masks = BitmapMasks(masks, height, width)
    data.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([3, 17]), masks=masks)
    data.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return data


def training_losses(model, cfg, samples):
    """The terms of the loss on random images, by name."""
    images = [torch.randint(0, 256, (3, *sample.img_shape), dtype=torch.uint8) for sample in samples]
    # mmseg pads to whole crops while it trains.
    model.data_preprocessor.size = None if cfg.default_scope == "mmdet" else samples[0].img_shape
    data = dict(inputs=images, data_samples=copy.deepcopy(samples))
    model = revert_sync_batchnorm(model.train())
    _, terms = model.parse_losses(model(**model.data_preprocessor(data, training=True), mode="loss"))
    return {name: term for name, term in terms.items() if "loss_" in name}


@pytest.mark.parametrize(("stem", "name"), RUN, ids=[stem for stem, _ in RUN])
def test_trains_and_predicts(stem, name):
    torch.manual_seed(0)
    cfg = shrink(read(BY_STEM[stem]), name)
    model = build(cfg)
    samples = [sample(cfg.default_scope) for _ in range(2)]

    losses = training_losses(model, cfg, samples)
    loss = sum(losses.values())
    loss.backward()
    assert set(losses) == LOSSES[stem.split("_")[0]] and torch.isfinite(loss)
    # Several processes wait for every gradient, unless they are told that some do not come.
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused or cfg.get("find_unused_parameters"), unused
    trained = [parameter.grad for parameter in model.backbone.parameters() if parameter.grad is not None]
    assert trained and all(torch.isfinite(gradient).all() for gradient in trained)

    model.eval()
    with torch.no_grad():
        image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
        results = model.test_step(dict(inputs=[image], data_samples=samples[:1]))
    if cfg.default_scope == "mmseg":
        assert results[0].pred_sem_seg.data.shape == (1, 64, 96)
        assert results[0].seg_logits.data.shape == (150, 64, 96)
    else:
        found = results[0].pred_instances
        assert 0 < len(found) <= 5 and found.bboxes.shape == (len(found), 4)
        assert ("masks" in found) == ("mask-rcnn" in stem)
        if "masks" in found:
            assert found.masks.shape == (len(found), 64, 96)


def test_the_many_scales():
    """Short sides from 480 to 800 pixels, the long one at most 1333; with the crop and without."""
    cfg = read(BY_STEM["mask-rcnn_vmamba-tiny-s1l8_fpn_ms-3x_coco"])
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline[2:])
    data = sample("mmdet", 200, 300)
    np.random.seed(0)
    sizes = []
    for _ in range(40):
        result = pipeline(
            dict(
                img=np.zeros((200, 300, 3), dtype=np.uint8),
                img_shape=(200, 300),
                ori_shape=(200, 300),
                img_id=0,
                img_path="",
                gt_bboxes=HorizontalBoxes(data.gt_instances.bboxes.clone()),
                gt_bboxes_labels=np.array([3, 17]),
                gt_masks=BitmapMasks(np.ones((2, 200, 300), dtype=np.uint8), 200, 300),
                gt_ignore_flags=np.zeros(2, dtype=bool),
            )
        )
        if result is not None:
            sizes.append(tuple(result["inputs"].shape[1:]))
    assert all(max(size) <= 1333 and min(size) <= 800 for size in sizes)
    plain = [size for size in sizes if abs(size[1] / size[0] - 1.5) < 0.01]
    assert 0 < len(plain) < len(sizes)
    assert len({min(size) for size in plain}) > 3 and all(480 <= min(size) <= 800 for size in plain)


def test_without_mmdet_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("mmengine.config.config.is_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=re.escape(f"needs the [mm] extra: {install_command('mm')}")):
        load_config(str(DETECTION[0]))

# Mask R-CNN on efficientvmamba_tiny, 12 epochs: 11.29 M parameters, 60 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 35.6, mask AP 33.2; 11 M, 60 GFLOPs.
# Trained in mixed precision. The figures are from secondary sources, not checked against the paper.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x.py",
    "../_base_/weight_decay.py",
]

# What is 256 wide elsewhere is 128 wide, the fully connected layers 512: so the published size and FLOPs come out.
model = dict(
    backbone=dict(model_name="efficientvmamba_tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(in_channels=128, conv_out_channels=128),
    ),
)
optim_wrapper = dict(type="AutoAmpOptimWrapper", paramwise_cfg=dict(custom_keys=_base_.decay_numbered_stem))

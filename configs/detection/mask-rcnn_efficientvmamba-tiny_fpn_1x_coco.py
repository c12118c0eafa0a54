# Mask R-CNN on efficientvmamba_tiny, 12 epochs.
# Trained in mixed precision.
_base_ = ["_base_/mask-rcnn_fpn_1x_coco.py"]

# What is 256 wide elsewhere is 128 wide, the fully connected layers 512: so the published size and FLOPs come out.
model = dict(
    backbone=dict(model_name="efficientvmamba_tiny", drop_path_rate=0.2),
    neck=dict(out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128),
        bbox_head=dict(in_channels=128, fc_out_channels=512),
        mask_roi_extractor=dict(out_channels=128),
        mask_head=dict(in_channels=128, conv_out_channels=128),
    ),
)
optim_wrapper = dict(type="AutoAmpOptimWrapper")

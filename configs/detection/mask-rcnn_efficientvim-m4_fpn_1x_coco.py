# Mask R-CNN on vssm_efficientvim_m4, 12 epochs: 39.32 M parameters, 190 GFLOPs at 1280 x 800 pixels.
# Published for COCO val2017: box AP 39.7, mask AP 36.4.
# Officially in one process of 16 images, from the weights of 450 epochs.
# Weights: none known.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_instance.py",
    "_base_/mask-rcnn_fpn.py",
    "_base_/schedule_1x_efficientvim.py",
]

model = dict(
    backbone=dict(model_name="vssm_efficientvim_m4", out_indices=(0, 1, 2), norm_eval=True),
    neck=dict(_delete_=True, type="FinerFPN", in_channels=[224, 320, 512], out_channels=256, num_outs=5, num_finer=2),
)

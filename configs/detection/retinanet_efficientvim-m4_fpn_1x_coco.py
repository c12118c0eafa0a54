# RetinaNet on vssm_efficientvim_m4, 12 epochs.
# Officially in one process of 16 images, from the weights of 450 epochs.
_base_ = [
    "_base_/default_runtime.py",
    "_base_/coco_detection.py",
    "_base_/retinanet_fpn.py",
    "_base_/schedule_1x_efficientvim.py",
]

model = dict(
    backbone=dict(model_name="vssm_efficientvim_m4", out_indices=(0, 1, 2), norm_eval=True),
    neck=dict(
        _delete_=True,
        type="FinerFPN",
        in_channels=None,
        out_channels=256,
        num_outs=5,
        num_finer=1,
        add_extra_convs="on_input",
    ),
)

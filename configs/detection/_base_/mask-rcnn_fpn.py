# mmdet's Mask R-CNN with an FPN, on one of this package's backbones, which a leaf names.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="VSSMBackbone",
        pretrained=True,
        out_indices=(0, 1, 2, 3),
        out_norm=True,
        frozen_stages=-1,
        with_cp=False,
    ),
    # Those of the backbone's maps.
    neck=dict(in_channels=None),
)

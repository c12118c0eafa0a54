# mmseg's Semantic FPN for the 150 classes of ADE20K, on one of this package's backbones, which a leaf
# names. The batch norms are synchronised (SyncBN); without several processes or without GPUs the runner makes them
# plain ones.
_base_ = ["mmseg::_base_/models/fpn_r50.py"]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="VSSMBackbone",
        pretrained=True,
        frozen_stages=-1,
        with_cp=False,
    ),
    # Those of the backbone's maps.
    neck=dict(in_channels=None),
    decode_head=dict(num_classes=150),
)

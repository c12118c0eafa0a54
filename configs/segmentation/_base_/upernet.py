# mmseg's UPerNet for the 150 classes of ADE20K, on one of this package's backbones: a leaf names it and its
# widths. The batch norms are synchronised (SyncBN); without several processes or without GPUs the runner makes them
# plain ones.
_base_ = ["mmseg::_base_/models/upernet_swin.py"]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type="VSSMBackbone",
        pretrained=True,
        out_indices=(0, 1, 2, 3),
        out_norm=True,
        frozen_stages=-1,
        with_cp=False,
    ),
    decode_head=dict(num_classes=150),
    auxiliary_head=dict(num_classes=150),
)

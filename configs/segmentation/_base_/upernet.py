# mmseg's UPerNet for the 150 classes of ADE20K, on one of this package's backbones, which a leaf names.
# The batch norms are synchronised (SyncBN); without several processes or without GPUs the runner makes them
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
    # The widths are those of the backbone's maps.
    decode_head=dict(in_channels=None, num_classes=150),
    auxiliary_head=dict(in_channels=None, num_classes=150),
)

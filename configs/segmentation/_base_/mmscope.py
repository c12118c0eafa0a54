# SegMAN's decoder MMSCopE for the 150 classes of ADE20K, on one of this package's backbones, which a leaf names with
# the two widths of the decoder. The batch norms are synchronised (SyncBN); without several processes or without GPUs
# the runner makes them plain ones, which take more than one image a batch.
_base_ = ["mmseg::_base_/models/segformer_mit-b0.py"]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        _delete_=True,
        type="VSSMBackbone",
        pretrained=True,
        # The decoder reads no finer map.
        out_indices=(1, 2, 3),
        out_norm=True,
        frozen_stages=-1,
        with_cp=False,
    ),
    decode_head=dict(
        _delete_=True,
        type="MMSCopEHead",
        # Those of the backbone's maps.
        in_channels=None,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
)

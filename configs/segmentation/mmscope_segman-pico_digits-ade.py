# SegMAN's decoder from scratch on handwritten digits on photographs; else as
# upernet_segman-pico_digits-ade.py. The logits have stride 8, and strokes are some five pixels wide: the true labels,
# averaged to stride 8 and enlarged again, have an mIoU of 54. The decoder reads strides 4, 8 and 16 with
# --cfg-options "model.backbone.out_indices=[0,1,2]".
_base_ = ["upernet_segman-pico_digits-ade.py"]

model = dict(
    backbone=dict(out_indices=(1, 2, 3)),
    decode_head=dict(
        _delete_=True,
        type="MMSCopEHead",
        channels=_base_.channels,
        map_channels=_base_.channels,
        dropout_ratio=0.0,
        num_classes=len(_base_.classes),
        norm_cfg=dict(type="GN", num_groups=8),
        loss_decode=dict(**_base_.loss, loss_weight=1.0),
    ),
    auxiliary_head=None,
)

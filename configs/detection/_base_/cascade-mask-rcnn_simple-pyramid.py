# ViTDet's Cascade Mask R-CNN (arXiv 2203.16527): a pyramid of a plain net's last map, a deeper RPN, and LayerNorms in
# the heads of boxes and masks. A leaf names the backbone.
_base_ = ["cascade-mask-rcnn_fpn.py"]

norm_cfg = dict(type="LayerNorm2d", eps=1e-6)
model = dict(
    neck=dict(_delete_=True, type="SimpleFeaturePyramid", in_channels=None, out_channels=256),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=[
            dict(
                type="Shared4Conv1FCBBoxHead",
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                norm_cfg=norm_cfg,
                bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=stds),
                reg_class_agnostic=True,
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
            for stds in ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
        ],
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

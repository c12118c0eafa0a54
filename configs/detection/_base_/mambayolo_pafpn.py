# Mamba YOLO's detector; a leaf names the backbone. Nothing of it starts from published weights: there are none.
model = dict(
    type="MambaYOLODetector",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
        bgr_to_rgb=True,
        # The grey of the letterbox, which stands at the right and at the bottom here, officially around the image.
        pad_size_divisor=32,
        pad_value=114 / 255,
    ),
    backbone=dict(type="VSSMBackbone", pretrained=False, out_indices=(1, 2, 3), out_norm=True),
    # The widths are those of the backbone's maps, the head's those of the neck.
    neck=dict(type="ODSSPAFPN", in_channels=None, depth=1),
    bbox_head=dict(type="MambaYOLOHead", num_classes=80),
    train_cfg=None,
    test_cfg=dict(nms_pre=30000, score_thr=0.001, nms=dict(type="nms", iou_threshold=0.7), max_per_img=300),
)

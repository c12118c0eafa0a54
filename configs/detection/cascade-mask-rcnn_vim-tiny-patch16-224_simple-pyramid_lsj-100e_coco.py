# Cascade Mask R-CNN on vim_tiny_patch16_224, about 100 epochs with large-scale jitter.
# The net rotates its stream and does not halve the sum of its directions, as published; so was the file
# vim_tiny_73p1.pth trained (--cfg-options model.backbone.pretrained=FILE), and the later weights were not.
_base_ = ["_base_/cascade-mask-rcnn_vim_lsj-100e_coco.py"]

model = dict(
    backbone=dict(
        model_name="vim_tiny_patch16_224",
        out_indices=(23,),
        class_token=False,
        rope=True,
        halve=False,
        drop_path_rate=0.1,
    ),
)

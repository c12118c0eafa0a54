# Mask R-CNN on COCO for 12 epochs, on a plain net with a ViT-Adapter, as PlainMamba's authors train it. The batch norms
# of the neck and the box head are synchronised (SyncBN); without several processes or GPUs the runner makes them plain.
_base_ = ["default_runtime.py", "coco_instance.py", "mask-rcnn_fpn.py", "schedule_1x_plainmamba.py"]

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(out_indices=None, adapter=dict(num_heads=6)),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm_cfg),
    ),
)

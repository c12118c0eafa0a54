# RetinaNet on COCO for 12 epochs, on a plain net with a ViT-Adapter, as PlainMamba's authors train it.
_base_ = ["default_runtime.py", "coco_detection.py", "retinanet_fpn.py", "schedule_1x_plainmamba.py"]

model = dict(
    backbone=dict(out_indices=None, adapter=dict(num_heads=6)),
    neck=dict(start_level=1, add_extra_convs="on_output", norm_cfg=dict(type="SyncBN", requires_grad=True)),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
# The finest map, of stride 4, is read by no level, so what makes it has no gradient for several processes to wait for.
find_unused_parameters = True

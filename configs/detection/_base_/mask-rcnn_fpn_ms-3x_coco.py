# Mask R-CNN on COCO for 36 epochs at many scales, with the weight decay that the backbone's family declares.
_base_ = ["default_runtime.py", "coco_instance_ms.py", "mask-rcnn_fpn.py", "schedule_3x.py"]

optim_wrapper = dict(constructor="FamilyDecayConstructor")

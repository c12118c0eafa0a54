# Mask R-CNN on COCO for 12 epochs, with the weight decay that the backbone's family declares.
_base_ = ["default_runtime.py", "coco_instance.py", "mask-rcnn_fpn.py", "schedule_1x.py"]

optim_wrapper = dict(constructor="FamilyDecayConstructor")

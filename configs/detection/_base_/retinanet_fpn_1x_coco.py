# RetinaNet on COCO for 12 epochs, with the weight decay that the backbone's family declares.
_base_ = ["default_runtime.py", "coco_detection.py", "retinanet_fpn.py", "schedule_1x.py"]

optim_wrapper = dict(constructor="FamilyDecayConstructor")
# The finest map, of stride 4, is read by no level, so what makes it has no gradient for several processes to wait for.
find_unused_parameters = True

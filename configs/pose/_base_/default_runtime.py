# The runtime of classifiers with the types of pose estimation.
_base_ = ["../../classification/_base_/default_runtime.py"]

custom_imports = dict(imports=["vssm.pose"], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(save_best="pose/AP", rule="greater"))
# For `vssm predict`: a JSON file with lists of boxes (left, top, width, height) by the images' paths or names. None:
# each image is one box.
boxes = None

# UPerNet on ADE20K for 160 000 steps, with the weight decay that the backbone's family declares.
_base_ = ["default_runtime.py", "ade20k_512.py", "upernet.py", "schedule_160k.py"]

optim_wrapper = dict(constructor="FamilyDecayConstructor")

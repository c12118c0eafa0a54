# As in1k_300e.py, with smaller rates.
_base_ = ["default_runtime.py", "imagenet_224.py", "schedule_300e_lr6e-4.py", "classifier.py"]

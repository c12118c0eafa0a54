# mmseg's runtime with this package's types. The hooks are in the schedules.
_base_ = ["mmseg::_base_/default_runtime.py"]

custom_imports = dict(imports=["vssm.mm"], allow_failed_imports=False)

randomness = dict(seed=0)

# GroupMamba-B.
_base_ = ["_base_/in1k_300e_groupmamba.py"]

model = dict(model=dict(name="groupmamba_base"))

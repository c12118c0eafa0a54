# UPerNet on efficientvmamba_small, 160 000 steps.
# The recipe was not published: this is VMamba's.
_base_ = ["_base_/upernet_160k_ade20k-512x512.py"]

# The head is 512 wide elsewhere; with this width the published size and FLOPs come out.
model = dict(backbone=dict(model_name="efficientvmamba_small", drop_path_rate=0.2), decode_head=dict(channels=384))

# SegMAN-T on Cityscapes, 160 000 steps.
# The official config has 150 outputs, of which it trains the first 19. Should its file have them too, keep the first 19
# rows of the file's `decode_head.conv_seg.weight` and `.bias`.
_base_ = ["_base_/mmscope_160k_cityscapes-1024x1024.py"]

model = dict(backbone=dict(model_name="segman_tiny"), decode_head=dict(channels=128, map_channels=192))

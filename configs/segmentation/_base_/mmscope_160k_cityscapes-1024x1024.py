# SegMAN's recipe on Cityscapes: 160 000 steps of 8 images, in single precision. Tested in windows of 1024 x 1024
# pixels, 768 pixels apart.
_base_ = ["default_runtime.py", "cityscapes_1024.py", "mmscope.py", "schedule_160k_mmscope.py"]

model = dict(
    data_preprocessor=dict(size=(1024, 1024)),
    decode_head=dict(num_classes=19),
    test_cfg=dict(mode="slide", crop_size=(1024, 1024), stride=(768, 768)),
)
# 8 processes x 1 image. With another total, `--cfg-options auto_scale_lr.enable=True` scales the rate.
auto_scale_lr = dict(base_batch_size=8)

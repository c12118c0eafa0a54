# What every run shares: hooks, log, randomness. Importing vssm.classify registers our types with mmengine.
custom_imports = dict(imports=["vssm.classify"], allow_failed_imports=False)
default_scope = "mmengine"

default_hooks = dict(
    # A run that was killed and resumed has the losses of one that was not.
    epoch_seed=dict(type="EpochSeedHook"),
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    logger=dict(type="LoggerHook", interval=100),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # Two are kept, so that the older one is there while the newer one is being written.
    checkpoint=dict(type="AtomicCheckpointHook", interval=1, max_keep_ckpts=2, save_best="accuracy/top1"),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
visualizer = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")])
log_processor = dict(type="LogProcessor", window_size=100, by_epoch=True)
log_level = "INFO"

randomness = dict(seed=0)
load_from = None
resume = False

# Fully sharded data parallel: parameters, gradients and the optimiser's state are cut up over the processes, in pieces
# of a million parameters and more. For a run of any config:  _base_ = ["<that config>.py", "../_base_/fsdp.py"]
runner_type = "FlexibleRunner"
strategy = dict(
    type="FSDPStrategy",
    model_wrapper=dict(
        type="MMFullyShardedDataParallel",
        auto_wrap_policy=dict(type="torch.distributed.fsdp.wrap.size_based_auto_wrap_policy", min_num_params=1_000_000),
        use_orig_params=True,
    ),
    # One file that any number of processes can read.
    state_dict_cfg="full",
)

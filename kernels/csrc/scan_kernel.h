// The kernels of one instruction-set variant.
#pragma once

#include "deform.h"
#include "mamba.h"
#include "map_pass.h"
#include "neighborhood.h"
#include "scan_line.h"
#include "scan_map.h"
#include "ssd.h"

#define VSSM_KERNELS(name)                                                                                              \
    {                                                                                                                   \
        name, kLanes, forward_units, forward_scratch_bytes, forward, backward_units, backward_scratch_bytes, backward,  \
            forward_2d_units, forward_2d_scratch_bytes, forward_2d, backward_2d_units, backward_2d_scratch_bytes,       \
            backward_2d, mamba_inputs, mamba_gate,                                                                      \
            depthwise_scratch_bytes, depthwise, depthwise_grad, deform, deform_grad,                                    \
            neighborhood_scratch_bytes, neighborhood, neighborhood_grad,                                                \
            ssd_units, ssd_scratch_bytes, ssd, ssd_grad_scratch_bytes, ssd_grad,                                        \
            norm_units, norm_scratch_bytes, norm                                                                        \
    }

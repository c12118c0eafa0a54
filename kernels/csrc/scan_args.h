// What the C ABI in scan.cpp hands to the kernels, and what each instruction-set variant of the kernels offers.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace vssm {

struct Shape {
    int64_t batch, channels, groups, states, length;
    bool softplus;

    int64_t group_size() const { return channels / groups; }
};

// All arrays are float32 and contiguous: u, delta, y (batch, channels, length); A (channels, states);
// B, C (batch, groups, states, length); last_state (batch, channels, states); D, delta_bias (channels) or null.
struct ForwardArgs {
    Shape shape;
    const float *u, *delta, *A, *B, *C, *D, *delta_bias;
    float *y, *last_state;
};

// The channels of a group are cut into strips of this many whatever the vector width or the thread count. A strip sums its
// own share of dB and dC; the shares are added in order, so the gradients do not depend on who computed what.
constexpr int64_t kStrip = 32;

struct BackwardArgs {
    Shape shape;
    const float *grad_y, *grad_last_state;
    const float *u, *delta, *A, *B, *C, *D, *delta_bias;
    float *grad_u, *grad_delta;
    // Shares of the strips: (batch, groups, strips, states, length).
    float *strip_B, *strip_C;
    // Shares of the images, double because they are sums over whole sequences: (batch, channels[, states]).
    double *image_A, *image_D, *image_bias;

    int64_t strips() const { return (shape.group_size() + kStrip - 1) / kStrip; }
};

// One work unit is independent of every other one. `scratch` is private to the calling thread and 64-byte aligned.
struct Kernels {
    const char *name;
    int64_t (*forward_units)(const Shape &);
    size_t (*forward_scratch_bytes)(const Shape &);
    void (*forward)(const ForwardArgs &, int64_t unit, void *scratch);
    int64_t (*backward_units)(const Shape &);
    size_t (*backward_scratch_bytes)(const Shape &);
    void (*backward)(const BackwardArgs &, int64_t unit, void *scratch);
};

extern const Kernels baseline_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;

}  // namespace vssm

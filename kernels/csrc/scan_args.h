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

// How the values of a map lie in memory; cpu_library.py numbers them alike.
enum Dtype : int64_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A channels-last map; strides count values. The values of sequence k at position p of image b lie side by side from
// data + b * batch + p * position + k * sequence on.
struct Map {
    const void *data;
    int64_t batch, position, sequence;

    template <class T>
    const T *at(int64_t b, int64_t k) const {
        return static_cast<const T *>(data) + b * batch + k * sequence;
    }
};

// A scan of maps along routes: sequence k joins the routes first_route[k] up to first_route[k + 1], and its steps are the
// entries starts[k] up to starts[k + 1] of the two tables. A route visits no position twice. Handed over by cpu.py;
// cpu_structs.py declares the same fields.
struct Scan2d {
    int64_t batch, positions, channels, sequences, routes, states;
    int64_t rank;                // of the step size; 0 when it is given in full
    int64_t softplus;            // whether it goes through softplus
    int64_t merge;               // whether the routes' results are summed
    int64_t own_input;           // whether every sequence has a u of its own
    int64_t dtype;               // of the four maps; all else is float32
    const int64_t *starts;       // (sequences + 1)
    const int64_t *first_route;  // (sequences + 1)
    const int32_t *visited;      // the position at every step
    const int32_t *route_rows;   // position * routes + route at every step: the row of a result kept apart
    const uint8_t *covers;       // (routes): whether a route visits every position
    Map u, dt, B, C;             // C.data null: the states are summed
    const float *A;              // (sequences, channels, states)
    const float *D, *delta_bias;  // (sequences, channels) or null
    const float *dt_weight;      // (sequences, channels, rank) or null

    int64_t length(int64_t k) const { return starts[k + 1] - starts[k]; }
    int64_t longest() const {
        int64_t longest = 0;
        for (int64_t k = 0; k < sequences; ++k) longest = length(k) > longest ? length(k) : longest;
        return longest;
    }
    // One route that visits every position: each row of a result is written exactly once.
    bool simple(int64_t k) const { return first_route[k + 1] - first_route[k] == 1 && covers[first_route[k]]; }
};

// What a Mamba mixer does between its projections in and out: the causal convolutions, SiLU, the projection to step size, B
// and C, the scan, the gate. Sequence 0 looks at earlier tokens, sequence 1 at later ones. Handed over by cpu.py;
// cpu_structs.py declares the same fields.
struct Mamba {
    const Scan2d *scan;        // of what is computed here: u, and dt, B and C side by side in `projected`
    const float *xz;           // (batch, positions, 2 channels): the input, then that of the gate
    int64_t taps;
    const float *conv_weight;  // (sequences, channels, taps)
    const float *conv_bias;    // (sequences, channels) or null
    const float *projection;   // (sequences, rank + 2 states, channels)
    float *u;                  // (batch, positions, sequences, channels)
    float *projected;          // (batch, positions, sequences, rank + 2 states)
    float scale;               // of the result

    int64_t outputs() const { return scan->rank + 2 * scan->states; }
};

// Positions of one image are shared out in tiles of this many, a multiple of 4.
struct MambaTiles {
    const Mamba *mamba;
    float *y;  // (batch, positions, channels)
    int64_t tile;

    int64_t per_image() const { return (mamba->scan->positions + tile - 1) / tile; }
    int64_t units() const { return mamba->scan->batch * per_image(); }
};

struct Forward2d {
    const Scan2d *scan;
    bool by_route;  // y is (batch, positions, routes, channels), and a unit is one sequence; else summed over the routes
    float *y;
};

// The images of a backward pass go in slabs of this many, which bounds the shares below.
constexpr int64_t kSlab = 8;

struct Backward2d {
    const Scan2d *scan;
    bool by_route;          // as in the forward, for a grad_u that the sequences share
    int64_t image, images;  // of this slab
    int64_t strip, strips;  // channels to a strip, and how many; as in the 1-D scan
    const float *grad_y;
    float *grad_u;   // of by_route: starts at the slab
    float *grad_dt;  // of a step size given in full
    // Sums over the channels of a strip, as rows over the steps of a sequence: the states of B, those of C if there is one,
    // the ranks of dt. (images, sequences, strips, rows, steps).
    float *shares;
    // Sums over the positions, to be added to, `lanes` of them side by side for a block of as many channels:
    // (place in a slab, sequences, blocks, values, lanes). The values are the states of A, D, delta_bias, the ranks of
    // dt_weight.
    double *sums;

    int64_t rows() const { return scan->states * (scan->C.data ? 2 : 1) + scan->rank; }
    // `i` is the place in the slab.
    float *share(int64_t i, int64_t k, int64_t s) const {
        const int64_t *starts = scan->starts;
        const int64_t steps = (i * starts[scan->sequences] + starts[k]) * strips + s * scan->length(k);
        return shares + steps * rows();
    }
};

// A depth-wise convolution of a channels-last map. Handed over by cpu_maps.py; cpu_structs.py declares the same fields.
//     y = scale silu(bias + sum over taps of weight x) + skip other
struct Depthwise {
    int64_t images, height, width, out_height, out_width, channels;
    int64_t stride, taps;
    int64_t dense3;     // whether the taps are those of a 3 x 3 kernel, row by row
    int64_t replicate;  // pixels outside the map repeat its edge; else they are zero
    int64_t silu;
    int64_t x_dtype, y_dtype;
    const int32_t *offsets;  // (taps, 2): rows and columns from the pixel at the output's place
    const float *weight;     // (taps, channels)
    const float *bias;       // (channels) or null
    const void *x;
    int64_t x_image, x_row, x_column;
    const float *scale;  // (images, out_height, out_width) or null
    const float *skip;   // (channels) or null
    const void *other;   // as y; strides as those of x
    int64_t other_image, other_row, other_column;
    void *y;  // (images, out_height, out_width, channels)
};

// The gradient of a depth-wise convolution's weight: for each tap the sum of g x over all pixels, pixels outside the map being
// zero. Handed over by cpu_maps.py.
struct DepthwiseGrad {
    int64_t images, height, width, out_height, out_width, channels;
    int64_t stride, taps, parts;
    int64_t x_dtype, g_dtype;
    const int32_t *offsets;  // as in Depthwise
    const void *x;
    int64_t x_image, x_row, x_column;
    const void *g;
    int64_t g_image, g_row, g_column;
    float *sums;  // (parts, taps, channels): of a part of the rows each; zeros to begin with
};

// What groups of channels find at moved points of a map, see deform.h, and its gradients. Handed over by cpu_maps.py. All maps are
// channels-last and contiguous.
struct Deform {
    int64_t images, height, width, groups, group_channels;
    const float *x;        // (images, height, width, groups, group_channels)
    const float *numbers;  // (images, height, width, groups, 27): of nine points the steps right and down, then the weights
    float *y;              // as x
    const float *grad;     // as x; null where only y is wanted
    float *grad_x;         // as x, zeros to begin with
    float *grad_numbers;   // as numbers
};

// The state-space dual of Mamba-2 and its gradients, see ssd.h. Handed over by cpu_maps.py. All is contiguous.
struct Ssd {
    int64_t batch, length, heads, head_dim, groups, states;
    int64_t softplus;      // whether the step size goes through softplus
    const float *x;        // (batch, length, heads, head_dim)
    const float *dt;       // (batch, length, heads)
    const float *A;        // (heads)
    const float *B, *C;    // (batch, length, groups, states)
    const float *D;        // (heads, head_dim) or null
    const float *dt_bias;  // (heads) or null
    float *y;              // as x
    const float *grad_y;   // as x; null where only y is wanted
    float *grad_x, *grad_dt;
    float *grad_B, *grad_C;  // zeros to begin with
    double *grad_A;          // (batch, heads): of each image
};

// Neighbourhood attention, see neighborhood.h. Handed over by cpu_maps.py. Strides are of images, rows, columns and heads;
// channels lie side by side.
struct Neighborhood {
    int64_t images, height, width, heads, channels, value_channels;
    int64_t window_height, window_width, dilation_height, dilation_width;
    int64_t rows;   // that a unit takes
    int64_t dtype;  // of the maps
    double scale;   // of the products of queries and keys
    const void *q, *k, *v;
    int64_t q_strides[4], k_strides[4], v_strides[4];
    const float *bias;  // (heads, 2 window_height - 1, 2 window_width - 1) or null
    void *y;             // (images, height, width, heads, value_channels)
    const float *grad_y;  // as y; null where only y is wanted
    float *grad_q, *grad_k, *grad_v;  // (images, height, width, heads, channels or value_channels)
    float *grad_bias;                 // (units, 2 window_height - 1, 2 window_width - 1)

    int64_t remainders() const { return dilation_height < height ? dilation_height : height; }
    int64_t blocks() const { return ((height + dilation_height - 1) / dilation_height + rows - 1) / rows; }
    int64_t units() const { return images * heads * remainders() * blocks(); }
};

// LayerNorm of rows, times a gate. A row of `groups` has weights of its own. Handed over by cpu_maps.py.
struct Norm {
    int64_t rows, groups, channels;  // rows: of all groups
    int64_t silu;                    // whether the gate goes through SiLU
    int64_t x_dtype, y_dtype;
    const void *x;
    int64_t x_row, x_group;
    const float *weight, *bias;  // (groups, channels)
    const void *gate;            // dtype of y; may be null
    int64_t gate_row, gate_group;
    void *y;  // (rows, channels)
    double eps;
};

// One work unit is independent of every other one. `scratch` is private to the calling thread and 64-byte aligned.
struct Kernels {
    const char *name;
    int lanes;
    int64_t (*forward_units)(const Shape &);
    size_t (*forward_scratch_bytes)(const Shape &);
    void (*forward)(const ForwardArgs &, int64_t unit, void *scratch);
    int64_t (*backward_units)(const Shape &);
    size_t (*backward_scratch_bytes)(const Shape &);
    void (*backward)(const BackwardArgs &, int64_t unit, void *scratch);
    int64_t (*forward_2d_units)(const Forward2d &);
    size_t (*forward_2d_scratch_bytes)(const Scan2d &);
    void (*forward_2d)(const Forward2d &, int64_t unit, void *scratch);
    int64_t (*backward_2d_units)(const Backward2d &);
    size_t (*backward_2d_scratch_bytes)(const Scan2d &);
    void (*backward_2d)(const Backward2d &, int64_t unit, void *scratch);
    void (*mamba_inputs)(const MambaTiles &, int64_t unit, void *scratch);
    void (*mamba_gate)(const MambaTiles &, int64_t unit);
    size_t (*depthwise_scratch_bytes)(const Depthwise &);
    void (*depthwise)(const Depthwise &, int64_t unit, void *scratch);
    void (*depthwise_grad)(const DepthwiseGrad &, int64_t unit, void *scratch);
    void (*deform)(const Deform &, int64_t unit, void *scratch);
    void (*deform_grad)(const Deform &, int64_t unit, void *scratch);
    size_t (*neighborhood_scratch_bytes)(const Neighborhood &);
    void (*neighborhood)(const Neighborhood &, int64_t unit, void *scratch);
    void (*neighborhood_grad)(const Neighborhood &, int64_t unit, void *scratch);
    int64_t (*ssd_units)(const Ssd &);
    size_t (*ssd_scratch_bytes)(const Ssd &);
    void (*ssd)(const Ssd &, int64_t unit, void *scratch);
    size_t (*ssd_grad_scratch_bytes)(const Ssd &);
    void (*ssd_grad)(const Ssd &, int64_t unit, void *scratch);
    int64_t (*norm_units)(const Norm &);
    size_t (*norm_scratch_bytes)(const Norm &);
    void (*norm)(const Norm &, int64_t unit, void *scratch);
};

extern const Kernels baseline_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;

}  // namespace vssm

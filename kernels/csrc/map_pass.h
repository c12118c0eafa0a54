// Passes over channels-last maps that would take several each, and a copy between any two: the depth-wise convolution with what
// follows it, and LayerNorm with a gate. Sums are float32 whatever the dtypes of the maps.
#pragma once

#include "scan_core.h"

namespace {

using vssm::Depthwise;
using vssm::DepthwiseGrad;
using vssm::Norm;

// x sigmoid(x) of kWide vectors.
VSSM_INLINE void silu(Vec *v) {
    const Wide<kWide> x = load_wide(v);
    store_wide(v, x * sigmoid(x, exp_minus_abs(x)));
}

// ---- depth-wise convolution ------------------------------------------------------------------------------------------------

// The sums of several columns stay in registers only where the loop over them is no loop.
#define VSSM_UNROLL _Pragma("GCC unroll 16")

// Columns of a row taken together, so that a row of weights is loaded once for all of them.
constexpr int kColumns = 8;

// One row of the result: of T, to Out.
template <class T, class Out>
struct DepthwiseRow {
    const Depthwise &d;
    int64_t image, row;
    // Where each tap reads for each of the columns taken together; all zeros where it reads nothing.
    const T **sources;
    const T *zeros;

    // The source of output column `column` and the tap (dy, dx).
    VSSM_MEMBER const T *source(int64_t column, int64_t dy, int64_t dx) const {
        int64_t y = row * d.stride + dy, x = column * d.stride + dx;
        if (d.replicate) {
            y = y < 0 ? 0 : y < d.height ? y : d.height - 1;
            x = x < 0 ? 0 : x < d.width ? x : d.width - 1;
        } else if (y < 0 || y >= d.height || x < 0 || x >= d.width) {
            return zeros;
        }
        return static_cast<const T *>(d.x) + image * d.x_image + y * d.x_row + x * d.x_column;
    }

    void run() const {
        // A dense 3 x 3 kernel shares what it reads among neighbouring columns.
        const bool dense = d.dense3 && d.stride == 1;
        for (int64_t column = 0; column < d.out_width; column += kColumns) {
            const int count = d.out_width - column < kColumns ? static_cast<int>(d.out_width - column) : kColumns;
            if (dense) {
                for (int y = 0; y < 3; ++y)
                    for (int i = 0; i < kColumns + 2; ++i)
                        sources[y * (kColumns + 2) + i] = i < count + 2 ? source(column + i, y - 1, -1) : zeros;
            } else {
                for (int64_t tap = 0; tap < d.taps; ++tap)
                    for (int i = 0; i < kColumns; ++i)
                        sources[tap * kColumns + i] =
                            i < count ? source(column + i, d.offsets[2 * tap], d.offsets[2 * tap + 1]) : zeros;
            }
            for (int64_t channel = 0; channel < d.channels; channel += kLanes) {
                const int64_t left = d.channels - channel;
                const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
                Vec sum[kColumns];
                const Vec start = load_lanes(d.bias ? d.bias + channel : nullptr, lanes);
                VSSM_UNROLL for (int i = 0; i < kColumns; ++i) sum[i] = start;
                if (dense && lanes == kLanes)
                    add_dense(channel, sum, [](const auto *p) { return load(p); });
                else if (dense)
                    add_dense(channel, sum, [lanes](const auto *p) { return load_lanes(p, lanes); });
                else if (lanes == kLanes)
                    add_taps(channel, sum, [](const auto *p) { return load(p); });
                else
                    add_taps(channel, sum, [lanes](const auto *p) { return load_lanes(p, lanes); });
                finish(column, count, channel, lanes, sum);
            }
        }
    }

    template <class Load>
    VSSM_MEMBER void add_dense(int64_t channel, Vec *sum, const Load &read) const {
        for (int y = 0; y < 3; ++y) {
            const float *row = d.weight + y * 3 * d.channels + channel;
            const Vec left = read(row), middle = read(row + d.channels), right = read(row + 2 * d.channels);
            const T **from = sources + y * (kColumns + 2);
            Vec before = read(from[0] + channel), here = read(from[1] + channel);
            VSSM_UNROLL for (int i = 0; i < kColumns; ++i) {
                const Vec after = read(from[i + 2] + channel);
                sum[i] += left * before;
                sum[i] += middle * here;
                sum[i] += right * after;
                before = here;
                here = after;
            }
        }
    }

    template <class Load>
    VSSM_MEMBER void add_taps(int64_t channel, Vec *sum, const Load &read) const {
        for (int64_t tap = 0; tap < d.taps; ++tap) {
            const Vec weight = read(d.weight + tap * d.channels + channel);
            VSSM_UNROLL for (int i = 0; i < kColumns; ++i) sum[i] += weight * read(sources[tap * kColumns + i] + channel);
        }
    }

    VSSM_MEMBER void finish(int64_t column, int count, int64_t channel, int lanes, Vec *sum) const {
        const int64_t pixel = (image * d.out_height + row) * d.out_width + column;
        if (d.silu) {
            VSSM_UNROLL for (int i = 0; i < kColumns; i += kWide) silu(sum + i);
        }
        if (d.scale)
            for (int i = 0; i < count; ++i) sum[i] *= d.scale[pixel + i];
        if (d.skip) {
            const Vec skip = load_lanes(d.skip + channel, lanes);
            const auto *other = static_cast<const Out *>(d.other) + image * d.other_image + row * d.other_row;
            for (int i = 0; i < count; ++i)
                sum[i] += skip * load_lanes(other + (column + i) * d.other_column + channel, lanes);
        }
        auto *to = static_cast<Out *>(d.y) + pixel * d.channels + channel;
        if (count == kColumns && lanes == kLanes) {
            VSSM_UNROLL for (int i = 0; i < kColumns; ++i) store_lanes(to + i * d.channels, kLanes, sum[i]);
        } else {
            for (int i = 0; i < count; ++i) store_lanes(to + i * d.channels, lanes, sum[i]);
        }
    }
};

static size_t depthwise_scratch_bytes(const Depthwise &d) {
    Arena arena(nullptr);
    arena.take<const void *>((d.taps > 9 ? d.taps : 9) * (kColumns + 2));
    arena.take<float>(d.channels + kLanes);
    return arena.used();
}

// A unit is a row of an image.
static void depthwise(const Depthwise &d, int64_t unit, void *memory) {
    with_type(d.x_dtype, [&](auto in) {
        with_type(d.y_dtype, [&](auto out) {
            using T = decltype(in);
            Arena arena(memory);
            const T **sources = arena.take<const T *>((d.taps > 9 ? d.taps : 9) * (kColumns + 2));
            float *zeros = arena.take<float>(d.channels + kLanes);
            for (int64_t i = 0; i < d.channels + kLanes; ++i) zeros[i] = 0;
            DepthwiseRow<T, decltype(out)>{d, unit / d.out_height, unit % d.out_height, sources,
                                           reinterpret_cast<const T *>(zeros)}
                .run();
        });
    });
}

// ---- the gradient of a depth-wise convolution's weight ---------------------------------------------------------------------

// Adds what one row of the result's gradient gives, to the sums of kVectors vectors of channels, or to `lanes` of one vector.
template <class T, class G>
struct WeightGradient {
    const DepthwiseGrad &d;
    float *sums;

    template <int kVectors, class Load>
    VSSM_MEMBER void add(int64_t image, int64_t row, int64_t channel, int lanes, const Load &read) const {
        const G *g = static_cast<const G *>(d.g) + image * d.g_image + row * d.g_row + channel;
        const T *map = static_cast<const T *>(d.x) + image * d.x_image + channel;
        for (int64_t tap = 0; tap < d.taps; ++tap) {
            const int64_t y = row * d.stride + d.offsets[2 * tap], right = d.offsets[2 * tap + 1];
            if (y < 0 || y >= d.height || right >= d.width) continue;
            // The columns for which the tap reads a pixel of the map.
            const int64_t first = right < 0 ? (d.stride - 1 - right) / d.stride : 0;
            const int64_t last = (d.width - 1 - right) / d.stride, end = last < d.out_width ? last + 1 : d.out_width;
            const T *x = map + y * d.x_row + right * d.x_column;
            Vec sum[2][kVectors] = {};
            const auto one = [&](int64_t column, Vec *to) {
                for (int v = 0; v < kVectors; ++v)
                    to[v] += read(g + column * d.g_column + v * kLanes) *
                             read(x + column * d.stride * d.x_column + v * kLanes);
            };
            int64_t column = first;
            for (; column + 1 < end; column += 2) {
                one(column, sum[0]);
                one(column + 1, sum[1]);
            }
            if (column < end) one(column, sum[0]);
            float *to = sums + tap * d.channels + channel;
            for (int v = 0; v < kVectors; ++v)
                store_lanes(to + v * kLanes, lanes, load_lanes(to + v * kLanes, lanes) + sum[0][v] + sum[1][v]);
        }
    }

    void run(int64_t first, int64_t end) const {
        for (int64_t row = first; row < end; ++row) {
            const int64_t image = row / d.out_height, y = row % d.out_height;
            int64_t channel = 0;
            for (; channel + 2 * kLanes <= d.channels; channel += 2 * kLanes)
                add<2>(image, y, channel, kLanes, [](const auto *p) { return load(p); });
            for (; channel < d.channels; channel += kLanes) {
                const int lanes = d.channels - channel < kLanes ? static_cast<int>(d.channels - channel) : kLanes;
                add<1>(image, y, channel, lanes, [lanes](const auto *p) { return load_lanes(p, lanes); });
            }
        }
    }
};

// A unit is a part of the rows of all images.
static void depthwise_grad(const DepthwiseGrad &d, int64_t unit, void *) {
    const int64_t rows = d.images * d.out_height;
    with_type(d.x_dtype, [&](auto in) {
        with_type(d.g_dtype, [&](auto out) {
            WeightGradient<decltype(in), decltype(out)>{d, d.sums + unit * d.taps * d.channels}
                .run(unit * rows / d.parts, (unit + 1) * rows / d.parts);
        });
    });
}

// ---- LayerNorm -------------------------------------------------------------------------------------------------------------

// Calls whole(i, 4) and whole(i, 1) for blocks of four and of single vectors, then part(last) for what is left of the row.
template <class Whole, class Part>
VSSM_INLINE void over_row(int64_t channels, const Whole &whole, const Part &part) {
    int64_t i = 0;
    for (; (i + kWide) * kLanes <= channels; i += kWide) whole(i, Indices<0, 1, 2, 3>());
    for (; (i + 1) * kLanes <= channels; ++i) whole(i, Indices<0>());
    if (i * kLanes < channels) part(i);
}

template <class T, int... J>
VSSM_INLINE void read_part(Indices<J...>, const T *x, int64_t i, Vec *values, Vec *sums) {
    ((sums[J] += values[i + J] = load(x + (i + J) * kLanes)), ...);
}

template <int... J>
VSSM_INLINE void square_part(Indices<J...>, float mean, int64_t i, Vec *values, Vec *sums) {
    ((values[i + J] -= mean, sums[J] += values[i + J] * values[i + J]), ...);
}

template <class Gate, int... J>
VSSM_INLINE void write_part(Indices<J...>, const Norm &n, float factor, const float *weight, const float *bias,
                            const Gate *gate, int64_t i, const Vec *values, Gate *to) {
    Vec gates[kWide] = {};
    if (gate) {
        ((gates[J] = load(gate + (i + J) * kLanes)), ...);
        if (n.silu) silu(gates);
    }
    const auto one = [&](int j) {
        const int64_t at = (i + j) * kLanes;
        const Vec y = values[i + j] * factor * load(weight + at) + load(bias + at);
        store_lanes(to + at, kLanes, gate ? y * gates[j] : y);
    };
    (one(J), ...);
}

// One row: normalised, scaled, gated. `values` holds it as float32.
template <class T, class Gate>
VSSM_INLINE void norm_row(const Norm &n, int64_t row, Vec *values) {
    const int64_t outer = row / n.groups, group = row % n.groups;
    const int last = static_cast<int>(n.channels % kLanes);
    const auto *x = static_cast<const T *>(n.x) + outer * n.x_row + group * n.x_group;
    const float count = static_cast<float>(n.channels);

    Vec sums[kWide] = {};
    const auto read = [&](int64_t i, auto js) { read_part(js, x, i, values, sums); };
    over_row(n.channels, read, [&](int64_t i) { sums[0] += values[i] = load_lanes(x + i * kLanes, last); });
    const float mean = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) / count;

    for (Vec &sum : sums) sum = Vec{};
    const auto square = [&](int64_t i, auto js) { square_part(js, mean, i, values, sums); };
    over_row(n.channels, square, [&](int64_t i) {
        Vec off = values[i] - mean;
        for (int r = last; r < kLanes; ++r) off[r] = 0;
        values[i] = off;
        sums[0] += off * off;
    });
    const float variance = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) / count;
    const float factor = 1 / __builtin_sqrtf(variance + static_cast<float>(n.eps));

    const auto *gate = n.gate ? static_cast<const Gate *>(n.gate) + outer * n.gate_row + group * n.gate_group : nullptr;
    auto *to = static_cast<Gate *>(n.y) + row * n.channels;
    const float *weight = n.weight + group * n.channels, *bias = n.bias + group * n.channels;
    const auto write = [&](int64_t i, auto js) { write_part(js, n, factor, weight, bias, gate, i, values, to); };
    over_row(n.channels, write, [&](int64_t i) {
        const int64_t at = i * kLanes;
        Vec gates[kWide] = {};
        Vec y = values[i] * factor * load_lanes(weight + at, last) + load_lanes(bias + at, last);
        if (gate) {
            gates[0] = load_lanes(gate + at, last);
            if (n.silu) silu(gates);
            y *= gates[0];
        }
        store_lanes(to + at, last, y);
    });
}

constexpr int64_t kNormRows = 16;

static size_t norm_scratch_bytes(const Norm &n) { return (n.channels + kLanes) * sizeof(float) + 64; }

// A unit is kNormRows rows.
static void norm(const Norm &n, int64_t unit, void *memory) {
    const int64_t end = (unit + 1) * kNormRows < n.rows ? (unit + 1) * kNormRows : n.rows;
    with_type(n.x_dtype, [&](auto in) {
        with_type(n.y_dtype, [&](auto out) {
            for (int64_t row = unit * kNormRows; row < end; ++row)
                norm_row<decltype(in), decltype(out)>(n, row, static_cast<Vec *>(memory));
        });
    });
}

static int64_t norm_units(const Norm &n) { return (n.rows + kNormRows - 1) / kNormRows; }

}  // namespace

// What a Mamba mixer does around its scan: the causal convolutions, the projection to step size, B and C, and the gate.
#pragma once

#include "scan_core.h"

namespace {

using vssm::Mamba;
using vssm::MambaTiles;
using vssm::Scan2d;

template <int Count>
VSSM_INLINE Wide<Count> silu(Wide<Count> x) { return x * sigmoid(x, exp_minus_abs(x)); }

// kLanes channels, or the last few of a row.
template <bool Whole>
VSSM_INLINE Vec load_some(const float *p, int lanes) {
    return Whole ? load(p) : load_lanes(p, lanes);
}

template <bool Whole>
VSSM_INLINE void store_some(float *p, int lanes, Vec v) {
    if (Whole)
        store(p, v);
    else
        memcpy(p, &v, lanes * sizeof(float));
}

// The rows of one image: kLanes channels (or fewer) at a time.
struct Tile {
    int64_t b, first, end;

    Tile(const MambaTiles &args, int64_t unit) {
        const int64_t positions = args.mamba->scan->positions;
        b = unit / args.per_image();
        first = unit % args.per_image() * args.tile;
        end = first + args.tile < positions ? first + args.tile : positions;
    }
};

// Convolves and activates some channels of a tile, for one direction: token t looks back over taps - 1 tokens, or ahead.
template <bool Whole>
VSSM_INLINE void convolve(const Mamba &m, const Tile &tile, int64_t k, int64_t channel, int lanes, Vec *weight) {
    const Scan2d &s = *m.scan;
    const int64_t parameter = k * s.channels + channel, row = s.sequences * s.channels;
    const int64_t in_row = 2 * s.channels, step = k == 0 ? in_row : -in_row;
    const float *x = m.xz + tile.b * s.positions * in_row + channel;
    float *u = m.u + tile.b * s.positions * row + parameter;
    const Vec bias = load_lanes(m.conv_bias ? m.conv_bias + parameter : nullptr, lanes);
    load_states(m.conv_weight + parameter * m.taps, m.taps, lanes, weight);
    const int64_t past = m.taps - 1;
    for (int64_t t = tile.first; t < tile.end; t += kWide) {
        const float *from = x + t * in_row - past * step;
        Wide<kWide> sum;
        for (int i = 0; i < kWide; ++i) sum.v[i] = bias;
        if (t + kWide <= tile.end && (k == 0 ? t >= past : t + kWide - 1 + past < s.positions)) {
            for (int64_t j = 0; j < m.taps; ++j, from += step)
                for (int i = 0; i < kWide; ++i) sum.v[i] += weight[j] * load_some<Whole>(from + i * in_row, lanes);
            sum = silu(sum);
            for (int i = 0; i < kWide; ++i) store_some<Whole>(u + (t + i) * row, lanes, sum.v[i]);
        } else {  // some tokens do not exist
            const int count = tile.end - t < kWide ? static_cast<int>(tile.end - t) : kWide;
            for (int64_t j = 0; j < m.taps; ++j, from += step)
                for (int i = 0; i < count; ++i) {
                    const int64_t token = k == 0 ? t + i - past + j : t + i + past - j;
                    if (token >= 0 && token < s.positions)
                        sum.v[i] += weight[j] * load_some<Whole>(from + i * in_row, lanes);
                }
            sum = silu(sum);
            for (int i = 0; i < count; ++i) store_some<Whole>(u + (t + i) * row, lanes, sum.v[i]);
        }
    }
}

// Outputs and tokens that are multiplied together: as many sums as a vector has lanes, which one reduction adds up.
constexpr int kOutputs = 4, kTokens = kLanes / kOutputs;

static void project(const Mamba &m, const Tile &tile, int64_t k) {
    const Scan2d &s = *m.scan;
    const int64_t outputs = m.outputs(), row = s.sequences * s.channels, out_row = s.sequences * outputs;
    const int64_t whole = s.channels / kLanes * kLanes;
    const int rest = static_cast<int>(s.channels - whole);
    const float *u = m.u + tile.b * s.positions * row + k * s.channels;
    const float *weight = m.projection + k * outputs * s.channels;
    float *out = m.projected + tile.b * s.positions * out_row + k * outputs;
    for (int64_t o = 0; o < outputs; o += kOutputs) {
        const float *w[kOutputs];
        for (int j = 0; j < kOutputs; ++j) w[j] = weight + (o + j < outputs ? o + j : outputs - 1) * s.channels;
        for (int64_t t = tile.first; t < tile.end; t += kTokens) {
            const float *x[kTokens];
            for (int i = 0; i < kTokens; ++i) x[i] = u + (t + i < tile.end ? t + i : tile.end - 1) * row;
            Vec sum[kLanes] = {};
            for (int64_t c = 0; c < whole; c += kLanes) {
                Vec a[kOutputs];
                for (int j = 0; j < kOutputs; ++j) a[j] = load(w[j] + c);
                for (int i = 0; i < kTokens; ++i) {
                    const Vec v = load(x[i] + c);
                    for (int j = 0; j < kOutputs; ++j) sum[i * kOutputs + j] += v * a[j];
                }
            }
            if (rest)
                for (int i = 0; i < kTokens; ++i)
                    for (int j = 0; j < kOutputs; ++j)
                        sum[i * kOutputs + j] += load_lanes(x[i] + whole, rest) * load_lanes(w[j] + whole, rest);
            const Vec total = sum_each(sum);
            const int count = outputs - o < kOutputs ? static_cast<int>(outputs - o) : kOutputs;
            for (int i = 0; i < kTokens && t + i < tile.end; ++i)
                for (int j = 0; j < count; ++j) out[(t + i) * out_row + o + j] = total[i * kOutputs + j];
        }
    }
}

// All that the scan reads of the tokens of a tile.
static void mamba_inputs(const MambaTiles &args, int64_t unit, void *memory) {
    const Mamba &m = *args.mamba;
    const Scan2d &s = *m.scan;
    const Tile tile(args, unit);
    for (int64_t k = 0; k < s.sequences; ++k) {
        Vec *weight = static_cast<Vec *>(memory);
        int64_t c = 0;
        for (; c + kLanes <= s.channels; c += kLanes) convolve<true>(m, tile, k, c, kLanes, weight);
        if (c < s.channels) convolve<false>(m, tile, k, c, static_cast<int>(s.channels - c), weight);
        project(m, tile, k);
    }
}

// y times SiLU(z) times the scale, for the tokens of a tile.
static void mamba_gate(const MambaTiles &args, int64_t unit) {
    const Mamba &m = *args.mamba;
    const Scan2d &s = *m.scan;
    const Tile tile(args, unit);
    for (int64_t t = tile.first; t < tile.end; ++t) {
        const int64_t row = tile.b * s.positions + t;
        const float *z = m.xz + (2 * row + 1) * s.channels;
        float *y = args.y + row * s.channels;
        int64_t c = 0;
        for (; c + kWide * kLanes <= s.channels; c += kWide * kLanes) {
            Wide<kWide> gate;
            for (int i = 0; i < kWide; ++i) gate.v[i] = load(z + c + i * kLanes);
            gate = silu(gate) * m.scale;
            for (int i = 0; i < kWide; ++i) store(y + c + i * kLanes, load(y + c + i * kLanes) * gate.v[i]);
        }
        for (; c < s.channels; c += kLanes) {
            const int lanes = s.channels - c < kLanes ? static_cast<int>(s.channels - c) : kLanes;
            const Wide<1> gate = silu(Wide<1>{{load_lanes(z + c, lanes)}}) * m.scale;
            store_some<false>(y + c, lanes, load_lanes(y + c, lanes) * gate.v[0]);
        }
    }
}

}  // namespace

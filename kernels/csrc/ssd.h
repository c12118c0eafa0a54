// The state-space dual of Mamba-2, forward and backward: the recurrence itself, one position after the other, in float32.
//
// On a CPU this is quicker than the matrix products in chunks that its authors made for GPUs: a state stays in the first-level
// cache, and no decay between two positions of a chunk has to be computed or kept.
#pragma once

#include "scan_core.h"

namespace {

using vssm::Ssd;

// Step sizes and decays of the positions from `first` on, of one head. The buffers have room for whole vectors.
VSSM_INLINE void ssd_steps(const Ssd &s, int64_t image, int64_t head, int64_t first, int64_t count, float *raw, float *step,
                           float *decay) {
    const float *dt = s.dt + (image * s.length + first) * s.heads + head;
    const float bias = s.dt_bias ? s.dt_bias[head] : 0;
    for (int64_t t = 0; t < (count + kLanes - 1) / kLanes * kLanes; ++t) raw[t] = t < count ? dt[t * s.heads] + bias : 0;
    const Wide<1> rate{{splat(s.A[head] * kLog2e)}};
    for (int64_t t = 0; t < count; t += kLanes) {
        Wide<1> x{{load(raw + t)}};
        if (s.softplus) x = softplus(x, exp_minus_abs(x));
        store(step + t, x.v[0]);
        store(decay + t, exp2_product(x, rate).v[0]);
    }
}

// A unit is kLanes channels of a head, or fewer, of an image.
static int64_t ssd_units(const Ssd &s) { return s.batch * s.heads * ((s.head_dim + kLanes - 1) / kLanes); }

static size_t ssd_scratch_bytes(const Ssd &s) { return (s.states * kLanes + 3 * kChunk) * sizeof(float); }

// Count positions of kLanes channels; `state` has a row of channels for each state.
template <int Count>
VSSM_INLINE void ssd_positions(const Ssd &s, int64_t row, int64_t head, int64_t channel, int lanes, const float *step,
                               const float *decay, Vec *state) {
    const int64_t group_row = row * s.groups + head / (s.heads / s.groups), next = s.groups * s.states;
    const float *B = s.B + group_row * s.states, *C = s.C + group_row * s.states;
    const int64_t at = (row * s.heads + head) * s.head_dim + channel, next_x = s.heads * s.head_dim;
    const Vec skip = load_lanes(s.D ? s.D + head * s.head_dim + channel : nullptr, lanes);
    Vec x[Count], sum[Count];
    for (int i = 0; i < Count; ++i) {
        x[i] = lanes == kLanes ? load(s.x + at + i * next_x) : load_lanes(s.x + at + i * next_x, lanes);
        sum[i] = skip * x[i];
        x[i] *= step[i];
    }
    for (int64_t n = 0; n < s.states; ++n) {
        Vec h = state[n];
        for (int i = 0; i < Count; ++i) {
            h = h * decay[i] + B[i * next + n] * x[i];
            sum[i] += C[i * next + n] * h;
        }
        state[n] = h;
    }
    for (int i = 0; i < Count; ++i) store_lanes(s.y + at + i * next_x, lanes, sum[i]);
}

static void ssd(const Ssd &s, int64_t unit, void *memory) {
    const int64_t blocks = (s.head_dim + kLanes - 1) / kLanes;
    const int64_t channel = unit % blocks * kLanes, head = unit / blocks % s.heads, image = unit / blocks / s.heads;
    const int64_t left = s.head_dim - channel;
    const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
    Arena arena(memory);
    Vec *state = arena.take<Vec>(s.states);
    float *raw = arena.take<float>(kChunk), *step = arena.take<float>(kChunk), *decay = arena.take<float>(kChunk);
    for (int64_t n = 0; n < s.states; ++n) state[n] = Vec{};
    for (int64_t first = 0; first < s.length; first += kChunk) {
        const int64_t count = s.length - first < kChunk ? s.length - first : kChunk;
        ssd_steps(s, image, head, first, count, raw, step, decay);
        int64_t t = 0;
        const int64_t row = image * s.length + first;
        for (; t + kWide <= count; t += kWide)
            ssd_positions<kWide>(s, row + t, head, channel, lanes, step + t, decay + t, state);
        for (; t < count; ++t) ssd_positions<1>(s, row + t, head, channel, lanes, step + t, decay + t, state);
    }
}

// ---- backward ------------------------------------------------------------------------------------------------------------
//
// Here the states are on the lanes, which are what the gradients of B and C keep apart. The states before every span of
// positions are computed first; then, span by span from the last one, those within it, and the gradients from its end on.

// The scratch memory of one unit; rows of states are padded to whole vectors.
struct SsdGrad {
    int64_t vectors, span, spans;
    float *raw, *step, *decay, *grad_step;  // (span)
    Vec *B, *C;                             // (span, vectors)
    Vec *kept;                              // (spans, head_dim, vectors): the state before each span
    Vec *states;                            // (span + 1, head_dim, vectors)
    Vec *grad;                              // (head_dim, vectors): of the state
    Vec *grad_input;                        // (head_dim): of step times x, to be summed over the lanes
    size_t bytes;

    SsdGrad(const Ssd &s, void *memory) {
        Arena arena(memory);
        vectors = (s.states + kLanes - 1) / kLanes;
        span = kLanes;
        while (span * span < s.length) span += kLanes;
        spans = (s.length + span - 1) / span;
        raw = arena.take<float>(span);
        step = arena.take<float>(span);
        decay = arena.take<float>(span);
        grad_step = arena.take<float>(span);
        B = arena.take<Vec>(span * vectors);
        C = arena.take<Vec>(span * vectors);
        kept = arena.take<Vec>(spans * s.head_dim * vectors);
        states = arena.take<Vec>((span + 1) * s.head_dim * vectors);
        grad = arena.take<Vec>(s.head_dim * vectors);
        grad_input = arena.take<Vec>(s.head_dim);
        bytes = arena.used();
    }
};

static size_t ssd_grad_scratch_bytes(const Ssd &s) { return SsdGrad(s, nullptr).bytes; }

// What a span reads of its head: step sizes, decays, rows of B and C.
VSSM_INLINE void ssd_read_span(const Ssd &s, const SsdGrad &m, int64_t image, int64_t head, int64_t first, int64_t count) {
    ssd_steps(s, image, head, first, count, m.raw, m.step, m.decay);
    const int64_t row = (image * s.length + first) * s.groups + head / (s.heads / s.groups);
    for (int64_t i = 0; i < count; ++i)
        for (int64_t j = 0; j < m.vectors; ++j) {
            const int64_t at = (row + i * s.groups) * s.states + j * kLanes, left = s.states - j * kLanes;
            const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
            m.B[i * m.vectors + j] = load_lanes(s.B + at, lanes);
            m.C[i * m.vectors + j] = load_lanes(s.C + at, lanes);
        }
}

// The state after position i of a span, from that before it; they may be one.
VSSM_INLINE void ssd_advance(const Ssd &s, const SsdGrad &m, int64_t i, const float *x, const Vec *before, Vec *after) {
    const float step = m.step[i], decay = m.decay[i];
    const Vec *B = m.B + i * m.vectors;
    for (int64_t p = 0; p < s.head_dim; ++p) {
        const float v = step * x[p];
        for (int64_t j = 0; j < m.vectors; ++j, ++before, ++after) *after = *before * decay + v * B[j];
    }
}

// For Count vectors of states, what position i adds to the gradients of B and C and to that of step times x; the gradient of
// the state goes on to the position before. Returns what it had in common with that state.
template <int Count>
VSSM_INLINE Vec ssd_grad_states(const Ssd &s, const SsdGrad &m, int64_t i, int64_t j, const float *x, const float *grad_y,
                                float *grad_B, float *grad_C) {
    const Vec *before = m.states + i * s.head_dim * m.vectors + j, *after = before + s.head_dim * m.vectors;
    const float step = m.step[i], decay = m.decay[i];
    Vec *grad = m.grad + j;
    Vec B[Count], C[Count], to_B[Count], to_C[Count], common{};
    for (int k = 0; k < Count; ++k) {
        B[k] = m.B[i * m.vectors + j + k];
        C[k] = m.C[i * m.vectors + j + k];
        to_B[k] = to_C[k] = Vec{};
    }
    for (int64_t p = 0; p < s.head_dim; ++p, before += m.vectors, after += m.vectors, grad += m.vectors) {
        const float v = step * x[p];
        Vec sum = m.grad_input[p];
        for (int k = 0; k < Count; ++k) {
            const Vec g = grad[k] + grad_y[p] * C[k];
            to_C[k] += grad_y[p] * after[k];
            to_B[k] += v * g;
            sum += g * B[k];
            common += g * before[k];
            grad[k] = g * decay;
        }
        m.grad_input[p] = sum;
    }
    for (int k = 0; k < Count; ++k) {
        const int64_t first = (j + k) * kLanes, left = s.states - first;
        const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
        store_lanes(grad_B + first, lanes, load_lanes(grad_B + first, lanes) + to_B[k]);
        store_lanes(grad_C + first, lanes, load_lanes(grad_C + first, lanes) + to_C[k]);
    }
    return common;
}

// All gradients of position i of a span, which is `row` of all positions. Returns that of the logarithm of the decay.
VSSM_INLINE float ssd_grad_position(const Ssd &s, const SsdGrad &m, int64_t i, int64_t row, int64_t head) {
    constexpr int kSome = kLanes == 16 ? 4 : 2;  // vectors whose sums stay in registers
    const int64_t at = (row * s.heads + head) * s.head_dim;
    const int64_t at_group = (row * s.groups + head / (s.heads / s.groups)) * s.states;
    const float *x = s.x + at, *grad_y = s.grad_y + at;
    for (int64_t p = 0; p < s.head_dim; ++p) m.grad_input[p] = Vec{};
    Vec common{};
    int64_t j = 0;
    for (; j + kSome <= m.vectors; j += kSome)
        common += ssd_grad_states<kSome>(s, m, i, j, x, grad_y, s.grad_B + at_group, s.grad_C + at_group);
    for (; j < m.vectors; ++j)
        common += ssd_grad_states<1>(s, m, i, j, x, grad_y, s.grad_B + at_group, s.grad_C + at_group);

    const float *D = s.D ? s.D + head * s.head_dim : nullptr;
    Vec step_sum{};
    for (int64_t p = 0; p < s.head_dim; p += kLanes) {
        const int lanes = s.head_dim - p < kLanes ? static_cast<int>(s.head_dim - p) : kLanes;
        Vec rows[kLanes];
        for (int r = 0; r < kLanes; ++r) rows[r] = r < lanes ? m.grad_input[p + r] : Vec{};
        const Vec grad = sum_each(rows), skip = load_lanes(D ? D + p : nullptr, lanes);
        step_sum += grad * load_lanes(x + p, lanes);
        store_lanes(s.grad_x + at + p, lanes, grad * m.step[i] + skip * load_lanes(grad_y + p, lanes));
    }
    const float grad_log = m.decay[i] * sum_lanes(common);
    m.grad_step[i] = grad_log * s.A[head] + sum_lanes(step_sum);
    return grad_log;
}

// A unit is a group of an image: its heads add to one gradient of B and of C, in order.
static void ssd_grad(const Ssd &s, int64_t unit, void *memory) {
    const SsdGrad m(s, memory);
    const int64_t group = unit % s.groups, image = unit / s.groups, per_group = s.heads / s.groups;
    const int64_t state = s.head_dim * m.vectors, x_row = s.heads * s.head_dim;
    for (int64_t head = group * per_group; head < (group + 1) * per_group; ++head) {
        const float *x = s.x + (image * s.length * s.heads + head) * s.head_dim;
        for (int64_t k = 0; k < state; ++k) m.kept[k] = m.grad[k] = Vec{};
        for (int64_t span = 0; span + 1 < m.spans; ++span) {
            const int64_t first = span * m.span;
            ssd_read_span(s, m, image, head, first, m.span);
            const Vec *before = m.kept + span * state;
            Vec *after = m.kept + (span + 1) * state;
            for (int64_t i = 0; i < m.span; ++i, before = after)
                ssd_advance(s, m, i, x + (first + i) * x_row, before, after);
        }
        double grad_A = 0;
        for (int64_t span = m.spans - 1; span >= 0; --span) {
            const int64_t first = span * m.span, left = s.length - first, count = left < m.span ? left : m.span;
            ssd_read_span(s, m, image, head, first, count);
            for (int64_t k = 0; k < state; ++k) m.states[k] = m.kept[span * state + k];
            for (int64_t i = 0; i < count; ++i)
                ssd_advance(s, m, i, x + (first + i) * x_row, m.states + i * state, m.states + (i + 1) * state);
            for (int64_t i = count - 1; i >= 0; --i) {
                const float grad_log = ssd_grad_position(s, m, i, image * s.length + first + i, head);
                grad_A += static_cast<double>(grad_log) * m.step[i];
            }
            float *grad_dt = s.grad_dt + (image * s.length + first) * s.heads + head;
            for (int64_t t = 0; t < count; t += kLanes) {
                Wide<1> grad{{load(m.grad_step + t)}};
                const Wide<1> raw{{load(m.raw + t)}};
                if (s.softplus) grad = grad * sigmoid(raw, exp_minus_abs(raw));
                for (int i = 0; i < kLanes && t + i < count; ++i) grad_dt[(t + i) * s.heads] = grad.v[0][i];
            }
        }
        s.grad_A[image * s.heads + head] = grad_A;
    }
}

}  // namespace

// The selective scan, forward and backward, with channels on the lanes of a vector: what does not depend on how the inputs
// and outputs lie in memory.
//
// A scan takes kLanes channels through one sequence in chunks of positions. A View reads a chunk of the inputs into
// (position, lane) buffers and writes a chunk of results; in between, the recurrence is the plain sequential one, kLanes
// channels at a time, with the states in registers. B and C are scalars there.
//
// Lanes past the last channel are fed zeros, and positions past the end are never written.
#pragma once

#include "scan_args.h"
#include "simd_half.h"

namespace {

using vssm::kStrip;

// Positions; a multiple of kLanes. With it the buffers of a chunk stay in the first-level cache.
constexpr int kChunk = 32;
// States advanced together: enough to keep the units busy, few enough for their vectors to stay in registers.
constexpr int kStates = 4;
// Vectors taken together through exp2 and softplus; positions go in steps of a divisor of it.
constexpr int kWide = 4;

// Hands out pieces of the scratch memory, or counts the bytes when given none.
class Arena {
   public:
    explicit Arena(void *memory) : base_(static_cast<char *>(memory)), used_(0) {}

    template <class T>
    T *take(int64_t count) {
        T *piece = base_ ? reinterpret_cast<T *>(base_ + used_) : nullptr;
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return piece;
    }

    size_t used() const { return used_; }

   private:
    char *base_;
    size_t used_;
};

// ---- moving tiles between (channel, position) memory and (position, lane) buffers ---------------------------------------

// Rows are `stride` apart; `lanes` of them exist, and `count` positions.
VSSM_INLINE void load_chunk(const float *rows, int64_t stride, int lanes, int count, Vec *out) {
    for (int64_t t = 0; t < count; t += kLanes) {
        const float *from = rows + t;
        int64_t step = stride;
        Vec copy[kLanes];
        if (lanes < kLanes || t + kLanes > count) {
            const int width = count - t < kLanes ? count - t : kLanes;
            for (int r = 0; r < kLanes; ++r) {
                copy[r] = Vec{};
                if (r < lanes) memcpy(&copy[r], rows + r * stride + t, width * sizeof(float));
            }
            from = reinterpret_cast<const float *>(copy);
            step = kLanes;
        }
        Vec tile[kLanes];
        for (int r = 0; r < kHalf; ++r) {
            const float *lower = from + r * step, *upper = lower + kHalf * step;
            tile[r] = load_halves(lower, upper);
            if (kHalf < kLanes) tile[r + kHalf] = load_halves(lower + kHalf, upper + kHalf);
        }
        transpose_parts(tile);
        for (int r = 0; r < kLanes; ++r) out[t + r] = tile[r];
    }
}

// Transposes in place, then writes row by row: there are fewer entries for stores in the first-level TLB than rows.
VSSM_INLINE void store_chunk(float *rows, int64_t stride, int lanes, int count, Vec *in) {
    for (int64_t t = 0; t < count; t += kLanes) {
        Vec tile[kLanes];
        for (int r = 0; r < kLanes; ++r) tile[r] = in[t + r];
        transpose_parts(tile);
        for (int r = 0; r < kLanes; ++r) in[t + r] = tile[r];
    }
    for (int r = 0; r < lanes; ++r) {
        // The halves of row r are in row r % kHalf and the one kHalf after it.
        const float *from = reinterpret_cast<const float *>(in + r % kHalf) + r / kHalf * kHalf;
        float *to = rows + r * stride;
        int64_t t = 0;
        for (; t + kLanes <= count; t += kLanes)
            for (int i = 0; i < kLanes; i += kHalf) copy_half(to + t + i, from + (t + i) * kLanes);
        for (; t < count; t += kHalf)
            memcpy(to + t, from + t * kLanes, (count - t < kHalf ? count - t : kHalf) * sizeof(float));
    }
}

// (channel, state) memory to (state, lane).
static void load_states(const float *rows, int64_t states, int lanes, Vec *out) {
    for (int64_t n = 0; n < states; ++n) {
        out[n] = Vec{};
        for (int r = 0; r < lanes; ++r) out[n][r] = rows[r * states + n];
    }
}

static void store_states(float *rows, int64_t states, int lanes, const Vec *in) {
    for (int64_t n = 0; n < states; ++n)
        for (int r = 0; r < lanes; ++r) rows[r * states + n] = in[n][r];
}

// The chunk's positions up to a multiple of kWide. Those past the end have step, u, B, C and grad_y zero, which leaves the
// state and its gradient as they are, bit for bit.
VSSM_INLINE int64_t padded(int count) { return (count + kWide - 1) / kWide * kWide; }

VSSM_INLINE Wide<kWide> load_wide(const Vec *p) {
    Wide<kWide> out;
    for (int i = 0; i < kWide; ++i) out.v[i] = p[i];
    return out;
}

VSSM_INLINE void store_wide(Vec *p, Wide<kWide> x) {
    for (int i = 0; i < kWide; ++i) p[i] = x.v[i];
}

// Turns delta into the step size in place, and u into the recurrence's input. `slope`, if wanted, takes the derivative of
// the step size.
template <class Ahead>
VSSM_INLINE void discretise(Vec *step, const Vec *u, Vec *input, Vec *slope, Vec bias, bool softplus_on, int count,
                            const Ahead &ahead) {
    for (int64_t t = 0; t < padded(count); t += kWide) {
        ahead.prefetch(t);
        Wide<kWide> x;
        for (int i = 0; i < kWide; ++i) x.v[i] = step[t + i] + bias;
        if (softplus_on) {
            const Wide<kWide> w = exp_minus_abs(x);
            if (slope) store_wide(slope + t, sigmoid(x, w));
            x = softplus(x, w);
        } else if (slope) {
            for (int i = 0; i < kWide; ++i) slope[t + i] = splat(1.0f);
        }
        store_wide(step + t, x);
        store_wide(input + t, x * load_wide(u + t));
    }
    for (int64_t t = count; t < padded(count); ++t) step[t] = input[t] = Vec{};
}

// The decays of `States` states at kWide / States positions from t on, position by position.
template <int States>
VSSM_INLINE Wide<kWide> decays(const Vec *step, const Vec (&A_log2e)[States]) {
    Wide<kWide> a, b;
    for (int i = 0; i < kWide; ++i) {
        a.v[i] = step[i / States];
        b.v[i] = A_log2e[i % States];
    }
    return exp2_product(a, b);
}

// Calls body.run<n>(first state) for blocks of states that cover all of them.
template <class Body>
VSSM_INLINE void over_states(int64_t states, const Body &body) {
    int64_t n = 0;
    for (; n + kStates <= states; n += kStates) body.template run<kStates>(n);
    for (; n + 2 <= states; n += 2) body.template run<2>(n);
    for (; n < states; ++n) body.template run<1>(n);
}

// The chunk of B or C in the buffers: value n of position t, either state by state or position by position.
template <bool ByPosition>
struct Table {
    const float *data;
    int64_t states;

    VSSM_MEMBER float operator()(int64_t n, int64_t t) const {
        return ByPosition ? data[t * states + n] : data[n * kChunk + t];
    }
};

// The parameters of up to kLanes consecutive channels. D and delta_bias may be null.
struct Channels {
    const float *A, *D, *delta_bias;
    int64_t states;
    int lanes;
    bool softplus;
};

static int64_t chunks(int64_t length) { return (length + kChunk - 1) / kChunk; }

// The buffers of a chunk that a View reads into.
struct Inputs {
    Vec *u, *step, *input, *A_log2e;
    float *B, *C;

    Inputs(int64_t states, Arena &arena) {
        u = arena.take<Vec>(kChunk);
        step = arena.take<Vec>(kChunk);
        input = arena.take<Vec>(kChunk);
        A_log2e = arena.take<Vec>(states);
        B = arena.take<float>(states * kChunk);
        C = arena.take<float>(states * kChunk);
    }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

struct ForwardScratch : Inputs {
    Vec *y, *state;

    ForwardScratch(int64_t states, Arena &arena) : Inputs(states, arena) {
        y = arena.take<Vec>(kChunk);
        state = arena.take<Vec>(states);
    }
};

// Advances a block of states through a chunk and adds its output to y, which the first block starts.
template <class View>
struct Advance {
    const ForwardScratch &x;
    int64_t states;
    int count;
    Vec D;
    bool has_D;

    template <int States>
    VSSM_MEMBER void run(int64_t n0) const {
        // Without D nothing of u may reach y: not even the NaN of zero times infinity.
        if (n0 > 0)
            advance<States>(n0, [&](int64_t t) { return x.y[t]; });
        else if (has_D)
            advance<States>(n0, [&](int64_t t) { return D * x.u[t]; });
        else
            advance<States>(n0, [&](int64_t) { return Vec{}; });
    }

    template <int States, class Start>
    VSSM_MEMBER void advance(int64_t n0, const Start &start) const {
        const typename View::Scalars B{x.B, states}, C{x.C, states};
        Vec h[States], a[States];
        for (int n = 0; n < States; ++n) {
            h[n] = x.state[n0 + n];
            a[n] = x.A_log2e[n0 + n];
        }
        for (int64_t t = 0; t < padded(count); t += kWide / States) {
            const Wide<kWide> decay = decays(x.step + t, a);
            for (int j = 0; j < kWide / States; ++j) {
                const Vec input = x.input[t + j];
                Vec y = start(t + j);
                for (int n = 0; n < States; ++n) {
                    h[n] = decay.v[j * States + n] * h[n] + input * B(n0 + n, t + j);
                    y += h[n] * C(n0 + n, t + j);
                }
                x.y[t + j] = y;
            }
        }
        for (int n = 0; n < States; ++n) x.state[n0 + n] = h[n];
    }
};

// Leaves the last state in x.state.
template <class View>
VSSM_INLINE void scan_forward(const View &view, const Channels &channels, int64_t length, const ForwardScratch &x) {
    const Vec bias = load_lanes(channels.delta_bias, channels.lanes), D = load_lanes(channels.D, channels.lanes);
    load_states(channels.A, channels.states, channels.lanes, x.A_log2e);
    for (int64_t n = 0; n < channels.states; ++n) {
        x.A_log2e[n] *= kLog2e;
        x.state[n] = Vec{};
    }
    for (int64_t start = 0; start < length; start += kChunk) {
        const int count = length - start < kChunk ? static_cast<int>(length - start) : kChunk;
        view.read_inputs(start, count, x);
        view.read_C(start, count, x);
        discretise(x.step, x.u, x.input, nullptr, bias, channels.softplus, count, view.ahead(start, count));
        over_states(channels.states, Advance<View>{x, channels.states, count, D, channels.D != nullptr});
        view.write_y(start, count, x.y);
    }
}

// ---- backward ---------------------------------------------------------------------------------------------------------
//
// First the states at the edges of the chunks, then the chunks from the last to the first, each recomputing its states from
// its edge. With g_t the gradient of the state h_t, and decay_t = exp(step_t A):
//     g_t = C_t grad_y_t + decay_{t+1} g_{t+1}
//     dC_t = sum over channels of grad_y_t h_t           dB_t = sum over channels of g_t step_t u_t
//     d(step_t u_t) = sum over states of g_t B_t         d(step_t A) = g_t decay_t h_{t-1}

// Sums over whole sequences, each kLanes side by side: those of A for every state, of D and delta_bias, and of the rows of
// dt_weight where the step size is of low rank. Doubles, which scan_backward adds to.
struct Sums {
    double *A, *D, *bias, *weight;

    static int64_t count(int64_t states, int64_t rank) { return (states + 2 + rank) * kLanes; }

    Sums(double *memory, int64_t states)
        : A(memory), D(A + states * kLanes), bias(D + kLanes), weight(bias + kLanes) {}
};

struct BackwardScratch : Inputs {
    Vec *slope, *grad_y, *grad_input, *grad_step;
    Vec *A, *carry, *edges, *decay, *state;

    BackwardScratch(int64_t states, int64_t length, Arena &arena) : Inputs(states, arena) {
        slope = arena.take<Vec>(kChunk);
        grad_y = arena.take<Vec>(kChunk);
        grad_input = arena.take<Vec>(kChunk);
        grad_step = arena.take<Vec>(kChunk);
        A = arena.take<Vec>(states);
        carry = arena.take<Vec>(states);
        edges = arena.take<Vec>((chunks(length) + 1) * states);
        decay = arena.take<Vec>(kChunk * kStates);
        state = arena.take<Vec>((kChunk + 1) * kStates);
    }
};

// A sum over a whole sequence: floats inside a chunk, doubles across chunks.
VSSM_INLINE void add_to(double *sum, Vec v) {
    typedef float Half __attribute__((vector_size(4 * kHalf)));
    typedef double Doubles __attribute__((vector_size(8 * kHalf)));
    for (int r = 0; r < kLanes; r += kHalf) {
        Half half;
        Doubles total;
        memcpy(&half, reinterpret_cast<const float *>(&v) + r, sizeof half);
        memcpy(&total, sum + r, sizeof total);
        total += __builtin_convertvector(half, Doubles);
        memcpy(sum + r, &total, sizeof total);
    }
}

// Advances a block of states from one edge of a chunk to the next.
template <class View>
struct AdvanceEdge {
    const BackwardScratch &x;
    int64_t states;
    const Vec *from;
    Vec *to;

    template <int States>
    VSSM_MEMBER void run(int64_t n0) const {
        const typename View::Scalars B{x.B, states};
        Vec h[States], a[States];
        for (int n = 0; n < States; ++n) {
            h[n] = from[n0 + n];
            a[n] = x.A_log2e[n0 + n];
        }
        for (int64_t t = 0; t < kChunk; t += kWide / States) {
            const Wide<kWide> decay = decays(x.step + t, a);
            for (int i = 0; i < kWide; ++i) {
                const int n = i % States, j = i / States;
                h[n] = decay.v[i] * h[n] + x.input[t + j] * B(n0 + n, t + j);
            }
        }
        for (int n = 0; n < States; ++n) to[n0 + n] = h[n];
    }
};

// Adds the sums over the lanes of `count` vectors, `stride` apart, to `out` (or sets it, for the first block of a strip).
VSSM_INLINE void reduce_rows(const Vec *rows, int stride, int count, bool first, float *out) {
    int64_t t = 0;
    for (; t + kLanes <= count; t += kLanes) {
        Vec tile[kLanes];
        for (int r = 0; r < kLanes; ++r) tile[r] = rows[(t + r) * stride];
        const Vec sum = sum_each(tile);
        store(out + t, first ? sum : sum + load(out + t));
    }
    if (t < count) {
        Vec tile[kLanes];
        for (int r = 0; r < kLanes; ++r) tile[r] = t + r < count ? rows[(t + r) * stride] : Vec{};
        Vec sum = sum_each(tile);
        if (!first) sum += load_lanes(out + t, count - t);
        memcpy(out + t, &sum, (count - t) * sizeof(float));
    }
}

// A block of states through one chunk and back: the states, then the gradients.
template <class View>
struct Reverse {
    const BackwardScratch &x;
    const Sums &sums;
    int64_t states;
    int64_t length;
    int count;
    const Vec *edge;
    bool first;
    float *out_B, *out_C;  // out_C may be null

    template <int States>
    VSSM_MEMBER void run(int64_t n0) const {
        const typename View::Scalars B{x.B, states}, C{x.C, states};
        Vec h[States], g[States], a[States], sum_A[States];
        for (int n = 0; n < States; ++n) {
            h[n] = edge[n0 + n];
            a[n] = x.A_log2e[n0 + n];
            x.state[n] = h[n];
        }
        for (int64_t t = 0; t < padded(count); t += kWide / States) {
            const Wide<kWide> decay = decays(x.step + t, a);
            for (int i = 0; i < kWide; ++i) {
                const int n = i % States, j = i / States;
                h[n] = decay.v[i] * h[n] + x.input[t + j] * B(n0 + n, t + j);
                x.decay[t * States + i] = decay.v[i];
                x.state[(t + 1) * States + i] = h[n];
            }
        }

        for (int n = 0; n < States; ++n) {
            g[n] = x.carry[n0 + n];
            a[n] = x.A[n0 + n];
            sum_A[n] = Vec{};
        }
        for (int64_t t = count - 1; t >= 0; --t) {
            const Vec grad_y = x.grad_y[t], step = x.step[t], input = x.input[t];
            Vec grad_input = x.grad_input[t], grad_step = x.grad_step[t];
            for (int n = 0; n < States; ++n) {
                g[n] += grad_y * C(n0 + n, t);
                grad_input += g[n] * B(n0 + n, t);
                const Vec kept = g[n] * x.decay[t * States + n];
                const Vec through_decay = kept * x.state[t * States + n];
                grad_step += through_decay * a[n];
                sum_A[n] += through_decay * step;
                // The decay and the state after this position are done with: their places take the terms of dB and dC.
                x.decay[t * States + n] = g[n] * input;
                x.state[(t + 1) * States + n] *= grad_y;
                g[n] = kept;
            }
            x.grad_input[t] = grad_input;
            x.grad_step[t] = grad_step;
        }
        for (int n = 0; n < States; ++n) {
            x.carry[n0 + n] = g[n];
            add_to(sums.A + (n0 + n) * kLanes, sum_A[n]);
            reduce_rows(x.decay + n, States, count, first, out_B + (n0 + n) * length);
            if (out_C) reduce_rows(x.state + States + n, States, count, first, out_C + (n0 + n) * length);
        }
    }
};

// Rows n of dB and dC, `length` apart, are at out_B and out_C (null: not wanted); `first` sets them, else they are added to.
// grad_last_state may be null.
template <class View>
VSSM_INLINE void scan_backward(const View &view, const Channels &channels, const float *grad_last_state, int64_t length,
                               bool first, float *out_B, float *out_C, const Sums &sums, const BackwardScratch &x) {
    const int64_t states = channels.states;
    const Vec bias = load_lanes(channels.delta_bias, channels.lanes), D = load_lanes(channels.D, channels.lanes);
    load_states(channels.A, states, channels.lanes, x.A);
    if (grad_last_state) load_states(grad_last_state, states, channels.lanes, x.carry);
    for (int64_t n = 0; n < states; ++n) {
        x.A_log2e[n] = x.A[n] * kLog2e;
        x.edges[n] = Vec{};
        if (!grad_last_state) x.carry[n] = Vec{};
    }

    const int64_t last = chunks(length) - 1;
    for (int64_t k = 0; k < last; ++k) {
        const int64_t start = k * kChunk;
        view.read_inputs(start, kChunk, x);
        discretise(x.step, x.u, x.input, nullptr, bias, channels.softplus, kChunk, view.ahead(start, kChunk));
        over_states(states, AdvanceEdge<View>{x, states, x.edges + k * states, x.edges + (k + 1) * states});
    }

    for (int64_t k = last; k >= 0; --k) {
        const int64_t start = k * kChunk;
        const int count = length - start < kChunk ? static_cast<int>(length - start) : kChunk;
        view.read_inputs(start, count, x);
        view.read_C(start, count, x);
        view.read_grad_y(start, count, x.grad_y);
        discretise(x.step, x.u, x.input, x.slope, bias, channels.softplus, count, view.behind(start, count));
        for (int64_t t = 0; t < count; ++t) x.grad_input[t] = x.grad_step[t] = Vec{};
        over_states(states, Reverse<View>{x, sums, states, length, count, x.edges + k * states, first, out_B + start,
                                          out_C ? out_C + start : nullptr});

        Vec sum_D = Vec{}, sum_bias = Vec{};
        for (int64_t t = 0; t < count; ++t) {
            const Vec grad_input = x.grad_input[t];
            const Vec grad_delta = (grad_input * x.u[t] + x.grad_step[t]) * x.slope[t];
            sum_D += x.grad_y[t] * x.u[t];
            sum_bias += grad_delta;
            x.grad_step[t] = grad_delta;
            x.grad_input[t] = grad_input * x.step[t];
            if (channels.D) x.grad_input[t] += x.grad_y[t] * D;
        }
        add_to(sums.D, sum_D);
        add_to(sums.bias, sum_bias);
        view.write_grads(start, count, x.grad_input, x.grad_step);
    }
}

}  // namespace

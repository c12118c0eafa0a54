// The selective scan, forward and backward, with channels on the lanes of a vector.
//
// A work unit owns kLanes channels of one group, which share B and C, and walks the positions in chunks. A chunk of u and
// delta is transposed to (position, lane) on the way in and y back on the way out; in between, the recurrence is the plain
// sequential one, kLanes channels at a time, with the states in registers. B and C are scalars there.
//
// Lanes past the last channel of a group are fed zeros, and positions past the end are never written.
#pragma once

#include "scan_args.h"
#include "simd.h"

namespace {

using vssm::BackwardArgs;
using vssm::ForwardArgs;
using vssm::kStrip;
using vssm::Shape;

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

VSSM_INLINE Vec load_lanes(const float *p, int lanes) {
    Vec v = Vec{};
    if (p) memcpy(&v, p, lanes * sizeof(float));
    return v;
}

// A chunk of B or C, side by side: rows a power of two apart would all fall into the same cache set.
static void copy_rows(const float *rows, int64_t length, int64_t states, int count, float *out) {
    for (int64_t n = 0; n < states; ++n) {
        if (count == kChunk)  // a length known at compile time: no call
            memcpy(out + n * kChunk, rows + n * length, kChunk * sizeof(float));
        else
            memcpy(out + n * kChunk, rows + n * length, count * sizeof(float));
        for (int64_t t = count; t % kWide; ++t) out[n * kChunk + t] = 0;
    }
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

// Chunks of memory that are wanted soon. The rows of a block are more streams than a hardware prefetcher follows, so they
// are asked for by hand, a few at a time among the arithmetic: in one burst they would fill the core's queue of misses.
struct Ahead {
    const float *chunks[2];
    const float *other;
    bool other_is_written;
    int64_t stride;
    int lanes;

    VSSM_MEMBER void prefetch(int64_t t) const {
        constexpr int kLine = 16, kSteps = kChunk / kWide, kRows = (kLanes + kSteps - 1) / kSteps;
        for (int64_t r = t / kWide * kRows; r < (t / kWide + 1) * kRows && r < lanes; ++r)
            for (int i = 0; i < kChunk; i += kLine) {
                for (const float *chunk : chunks) __builtin_prefetch(chunk + r * stride + i);
                // A line to be written is wanted as the core's own: the output's may still be another core's.
                if (other_is_written)
                    __builtin_prefetch(other + r * stride + i, 1);
                else
                    __builtin_prefetch(other + r * stride + i);
            }
    }
};

// Turns delta into the step size in place, and u into the recurrence's input. `slope`, if wanted, takes the derivative of
// the step size.
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

// kLanes consecutive channels of one group: where they are.
struct Block {
    int64_t batch, group, channel;
    int lanes;

    Block(const Shape &s, int64_t batch, int64_t group, int64_t first, int64_t end)
        : batch(batch),
          group(group),
          channel(group * s.group_size() + first),
          lanes(end - first < kLanes ? static_cast<int>(end - first) : kLanes) {}

    int64_t row(const Shape &s) const { return batch * s.channels + channel; }
    int64_t shared(const Shape &s) const { return (batch * s.groups + group) * s.states * s.length; }
};

// ---- forward ----------------------------------------------------------------------------------------------------------

struct ForwardScratch {
    Vec *u, *step, *input, *y, *A_log2e, *state;
    float *B, *C;
    size_t bytes;

    ForwardScratch(const Shape &s, void *memory) {
        Arena arena(memory);
        u = arena.take<Vec>(kChunk);
        step = arena.take<Vec>(kChunk);
        input = arena.take<Vec>(kChunk);
        y = arena.take<Vec>(kChunk);
        A_log2e = arena.take<Vec>(s.states);
        state = arena.take<Vec>(s.states);
        B = arena.take<float>(s.states * kChunk);
        C = arena.take<float>(s.states * kChunk);
        bytes = arena.used();
    }
};

// Advances a block of states through a chunk and adds its output to y, which the first block starts.
struct Advance {
    const ForwardScratch &x;
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
        const float *B = x.B + n0 * kChunk, *C = x.C + n0 * kChunk;
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
                    h[n] = decay.v[j * States + n] * h[n] + input * B[n * kChunk + t + j];
                    y += h[n] * C[n * kChunk + t + j];
                }
                x.y[t + j] = y;
            }
        }
        for (int n = 0; n < States; ++n) x.state[n0 + n] = h[n];
    }
};

static void forward(const ForwardArgs &args, int64_t unit, void *memory) {
    const Shape &s = args.shape;
    const int64_t blocks = (s.group_size() + kLanes - 1) / kLanes;
    const Block block(s, unit / blocks / s.groups, unit / blocks % s.groups, unit % blocks * kLanes, s.group_size());
    const ForwardScratch x(s, memory);
    const int64_t row = block.row(s), shared = block.shared(s);
    const Vec bias = load_lanes(args.delta_bias ? args.delta_bias + block.channel : nullptr, block.lanes);
    const Vec D = load_lanes(args.D ? args.D + block.channel : nullptr, block.lanes);

    load_states(args.A + block.channel * s.states, s.states, block.lanes, x.A_log2e);
    for (int64_t n = 0; n < s.states; ++n) {
        x.A_log2e[n] *= kLog2e;
        x.state[n] = Vec{};
    }
    for (int64_t start = 0; start < s.length; start += kChunk) {
        const int count = s.length - start < kChunk ? static_cast<int>(s.length - start) : kChunk;
        load_chunk(args.delta + row * s.length + start, s.length, block.lanes, count, x.step);
        load_chunk(args.u + row * s.length + start, s.length, block.lanes, count, x.u);
        copy_rows(args.B + shared + start, s.length, s.states, count, x.B);
        copy_rows(args.C + shared + start, s.length, s.states, count, x.C);
        const int64_t here = row * s.length + start, next = here + kChunk;
        const Ahead ahead{{args.delta + next, args.u + next}, args.y + here, true, s.length, block.lanes};
        discretise(x.step, x.u, x.input, nullptr, bias, s.softplus, count, ahead);
        over_states(s.states, Advance{x, count, D, args.D != nullptr});
        store_chunk(args.y + row * s.length + start, s.length, block.lanes, count, x.y);
    }
    store_states(args.last_state + row * s.states, s.states, block.lanes, x.state);
}

static int64_t forward_units(const Shape &s) {
    return s.batch * s.groups * ((s.group_size() + kLanes - 1) / kLanes);
}

static size_t forward_scratch_bytes(const Shape &s) { return ForwardScratch(s, nullptr).bytes; }

// ---- backward ---------------------------------------------------------------------------------------------------------
//
// First the states at the edges of the chunks, then the chunks from the last to the first, each recomputing its states from
// its edge. With g_t the gradient of the state h_t, and decay_t = exp(step_t A):
//     g_t = C_t grad_y_t + decay_{t+1} g_{t+1}
//     dC_t = sum over channels of grad_y_t h_t           dB_t = sum over channels of g_t step_t u_t
//     d(step_t u_t) = sum over states of g_t B_t         d(step_t A) = g_t decay_t h_{t-1}

static int64_t chunks(const Shape &s) { return (s.length + kChunk - 1) / kChunk; }

struct BackwardScratch {
    Vec *u, *step, *input, *slope, *grad_y, *grad_input, *grad_step;
    Vec *A, *A_log2e, *carry, *edges, *decay, *state;
    double *sum_A, *sum_D, *sum_bias;
    float *B, *C;
    size_t bytes;

    BackwardScratch(const Shape &s, void *memory) {
        Arena arena(memory);
        u = arena.take<Vec>(kChunk);
        step = arena.take<Vec>(kChunk);
        input = arena.take<Vec>(kChunk);
        slope = arena.take<Vec>(kChunk);
        grad_y = arena.take<Vec>(kChunk);
        grad_input = arena.take<Vec>(kChunk);
        grad_step = arena.take<Vec>(kChunk);
        A = arena.take<Vec>(s.states);
        A_log2e = arena.take<Vec>(s.states);
        carry = arena.take<Vec>(s.states);
        edges = arena.take<Vec>(chunks(s) * s.states);
        decay = arena.take<Vec>(kChunk * kStates);
        state = arena.take<Vec>((kChunk + 1) * kStates);
        sum_A = arena.take<double>(s.states * kLanes);
        sum_D = arena.take<double>(kLanes);
        sum_bias = arena.take<double>(kLanes);
        B = arena.take<float>(s.states * kChunk);
        C = arena.take<float>(s.states * kChunk);
        bytes = arena.used();
    }
};

// A sum over a whole sequence: floats inside a chunk, doubles across chunks.
VSSM_INLINE void add_to(double *sum, Vec v) {
    for (int r = 0; r < kLanes; ++r) sum[r] += v[r];
}

// Advances a block of states from one edge of a chunk to the next.
struct AdvanceEdge {
    const BackwardScratch &x;
    const Vec *from;
    Vec *to;

    template <int States>
    VSSM_MEMBER void run(int64_t n0) const {
        const float *B = x.B + n0 * kChunk;
        Vec h[States], a[States];
        for (int n = 0; n < States; ++n) {
            h[n] = from[n0 + n];
            a[n] = x.A_log2e[n0 + n];
        }
        for (int64_t t = 0; t < kChunk; t += kWide / States) {
            const Wide<kWide> decay = decays(x.step + t, a);
            for (int i = 0; i < kWide; ++i) {
                const int n = i % States, j = i / States;
                h[n] = decay.v[i] * h[n] + x.input[t + j] * B[n * kChunk + t + j];
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
struct Reverse {
    const BackwardScratch &x;
    int64_t length;
    int count;
    const Vec *edge;
    bool first;
    float *out_B, *out_C;

    template <int States>
    VSSM_MEMBER void run(int64_t n0) const {
        const float *B = x.B + n0 * kChunk, *C = x.C + n0 * kChunk;
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
                h[n] = decay.v[i] * h[n] + x.input[t + j] * B[n * kChunk + t + j];
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
                g[n] += grad_y * C[n * kChunk + t];
                grad_input += g[n] * B[n * kChunk + t];
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
            add_to(x.sum_A + (n0 + n) * kLanes, sum_A[n]);
            reduce_rows(x.decay + n, States, count, first, out_B + (n0 + n) * length);
            reduce_rows(x.state + States + n, States, count, first, out_C + (n0 + n) * length);
        }
    }
};

static void backward_block(const BackwardArgs &args, const Block &block, bool first, float *out_B, float *out_C,
                           void *memory) {
    const Shape &s = args.shape;
    const BackwardScratch x(s, memory);
    const int64_t row = block.row(s), shared = block.shared(s);
    const Vec bias = load_lanes(args.delta_bias ? args.delta_bias + block.channel : nullptr, block.lanes);
    const Vec D = load_lanes(args.D ? args.D + block.channel : nullptr, block.lanes);

    load_states(args.A + block.channel * s.states, s.states, block.lanes, x.A);
    if (args.grad_last_state) load_states(args.grad_last_state + row * s.states, s.states, block.lanes, x.carry);
    for (int64_t n = 0; n < s.states; ++n) {
        x.A_log2e[n] = x.A[n] * kLog2e;
        x.edges[n] = Vec{};
        if (!args.grad_last_state) x.carry[n] = Vec{};
    }
    for (int64_t i = 0; i < s.states * kLanes; ++i) x.sum_A[i] = 0;
    for (int r = 0; r < kLanes; ++r) x.sum_D[r] = x.sum_bias[r] = 0;

    const int64_t last = chunks(s) - 1;
    for (int64_t k = 0; k < last; ++k) {
        const int64_t start = k * kChunk;
        load_chunk(args.delta + row * s.length + start, s.length, block.lanes, kChunk, x.step);
        load_chunk(args.u + row * s.length + start, s.length, block.lanes, kChunk, x.u);
        copy_rows(args.B + shared + start, s.length, s.states, kChunk, x.B);
        const int64_t next = row * s.length + start + kChunk;
        const Ahead ahead{{args.delta + next, args.u + next}, args.u + next, false, s.length, block.lanes};
        discretise(x.step, x.u, x.input, nullptr, bias, s.softplus, kChunk, ahead);
        over_states(s.states, AdvanceEdge{x, x.edges + k * s.states, x.edges + (k + 1) * s.states});
    }

    for (int64_t k = last; k >= 0; --k) {
        const int64_t start = k * kChunk;
        const int count = s.length - start < kChunk ? static_cast<int>(s.length - start) : kChunk;
        load_chunk(args.delta + row * s.length + start, s.length, block.lanes, count, x.step);
        load_chunk(args.u + row * s.length + start, s.length, block.lanes, count, x.u);
        load_chunk(args.grad_y + row * s.length + start, s.length, block.lanes, count, x.grad_y);
        copy_rows(args.B + shared + start, s.length, s.states, count, x.B);
        copy_rows(args.C + shared + start, s.length, s.states, count, x.C);
        const int64_t next = row * s.length + start - kChunk;
        const Ahead ahead{{args.delta + next, args.u + next}, args.grad_y + next, false, s.length, block.lanes};
        discretise(x.step, x.u, x.input, x.slope, bias, s.softplus, count, ahead);
        for (int64_t t = 0; t < count; ++t) x.grad_input[t] = x.grad_step[t] = Vec{};
        over_states(s.states, Reverse{x, s.length, count, x.edges + k * s.states, first, out_B + start, out_C + start});

        Vec sum_D = Vec{}, sum_bias = Vec{};
        for (int64_t t = 0; t < count; ++t) {
            const Vec grad_input = x.grad_input[t];
            const Vec grad_delta = (grad_input * x.u[t] + x.grad_step[t]) * x.slope[t];
            sum_D += x.grad_y[t] * x.u[t];
            sum_bias += grad_delta;
            x.grad_step[t] = grad_delta;
            x.grad_input[t] = grad_input * x.step[t];
            if (args.D) x.grad_input[t] += x.grad_y[t] * D;
        }
        add_to(x.sum_D, sum_D);
        add_to(x.sum_bias, sum_bias);
        store_chunk(args.grad_u + row * s.length + start, s.length, block.lanes, count, x.grad_input);
        store_chunk(args.grad_delta + row * s.length + start, s.length, block.lanes, count, x.grad_step);
    }
    for (int r = 0; r < block.lanes; ++r) {
        for (int64_t n = 0; n < s.states; ++n) args.image_A[(row + r) * s.states + n] = x.sum_A[n * kLanes + r];
        args.image_D[row + r] = x.sum_D[r];
        args.image_bias[row + r] = x.sum_bias[r];
    }
}

static void backward(const BackwardArgs &args, int64_t unit, void *memory) {
    const Shape &s = args.shape;
    const int64_t strips = args.strips(), strip = unit % strips;
    const int64_t first = strip * kStrip;
    const int64_t end = first + kStrip < s.group_size() ? first + kStrip : s.group_size();
    const int64_t share = unit * s.states * s.length;
    for (int64_t channel = first; channel < end; channel += kLanes) {
        const Block block(s, unit / strips / s.groups, unit / strips % s.groups, channel, end);
        backward_block(args, block, channel == first, args.strip_B + share, args.strip_C + share, memory);
    }
}

static int64_t backward_units(const Shape &s) {
    return s.batch * s.groups * ((s.group_size() + kStrip - 1) / kStrip);
}

static size_t backward_scratch_bytes(const Shape &s) { return BackwardScratch(s, nullptr).bytes; }

}  // namespace

#define VSSM_KERNELS(name)                                                                                              \
    {                                                                                                                   \
        name, forward_units, forward_scratch_bytes, forward, backward_units, backward_scratch_bytes, backward           \
    }

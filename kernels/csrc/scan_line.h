// The 1-D scan of arrays (batch, channels, length): a chunk of u and delta is transposed to (position, lane) on the way in,
// and y back on the way out. A work unit owns channels of one group, which share B and C.
#pragma once

#include "scan_core.h"

namespace {

using vssm::BackwardArgs;
using vssm::ForwardArgs;
using vssm::Shape;

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

// Both directions read the same inputs: Args is ForwardArgs or BackwardArgs.
template <class Args>
struct LineView {
    typedef Table<false> Scalars;

    const Args &args;
    const Block &block;
    int64_t row, shared;

    LineView(const Args &args, const Block &block)
        : args(args), block(block), row(block.row(args.shape) * args.shape.length), shared(block.shared(args.shape)) {}

    int64_t length() const { return args.shape.length; }

    Channels channels() const {
        const int64_t c = block.channel, states = args.shape.states;
        return {args.A + c * states, args.D ? args.D + c : nullptr, args.delta_bias ? args.delta_bias + c : nullptr,
                states, block.lanes, args.shape.softplus};
    }

    VSSM_MEMBER void read(const float *rows, int64_t start, int count, Vec *out) const {
        load_chunk(rows + row + start, length(), block.lanes, count, out);
    }

    VSSM_MEMBER void read_inputs(int64_t start, int count, const Inputs &x) const {
        read(args.delta, start, count, x.step);
        read(args.u, start, count, x.u);
        copy_rows(args.B + shared + start, length(), args.shape.states, count, x.B);
    }

    VSSM_MEMBER void read_C(int64_t start, int count, const Inputs &x) const {
        copy_rows(args.C + shared + start, length(), args.shape.states, count, x.C);
    }

    VSSM_MEMBER void write(float *rows, int64_t start, int count, Vec *in) const {
        store_chunk(rows + row + start, length(), block.lanes, count, in);
    }
};

struct LineForward : LineView<ForwardArgs> {
    using LineView::LineView;

    VSSM_MEMBER Ahead ahead(int64_t start, int) const {
        const int64_t here = row + start, next = here + kChunk;
        return {{args.delta + next, args.u + next}, args.y + here, true, length(), block.lanes};
    }

    VSSM_MEMBER void write_y(int64_t start, int count, Vec *y) const { write(args.y, start, count, y); }
};

struct LineBackward : LineView<BackwardArgs> {
    using LineView::LineView;

    VSSM_MEMBER Ahead ahead(int64_t start, int) const {
        const int64_t next = row + start + kChunk;
        return {{args.delta + next, args.u + next}, args.u + next, false, length(), block.lanes};
    }

    VSSM_MEMBER Ahead behind(int64_t start, int) const {
        const int64_t next = row + start - kChunk;
        return {{args.delta + next, args.u + next}, args.grad_y + next, false, length(), block.lanes};
    }

    VSSM_MEMBER void read_grad_y(int64_t start, int count, Vec *out) const { read(args.grad_y, start, count, out); }

    VSSM_MEMBER void write_grads(int64_t start, int count, Vec *grad_u, Vec *grad_delta) const {
        write(args.grad_u, start, count, grad_u);
        write(args.grad_delta, start, count, grad_delta);
    }
};

static void forward(const ForwardArgs &args, int64_t unit, void *memory) {
    const Shape &s = args.shape;
    const int64_t blocks = (s.group_size() + kLanes - 1) / kLanes;
    const Block block(s, unit / blocks / s.groups, unit / blocks % s.groups, unit % blocks * kLanes, s.group_size());
    Arena arena(memory);
    const ForwardScratch x(s.states, arena);
    const LineForward view(args, block);
    scan_forward(view, view.channels(), s.length, x);
    store_states(args.last_state + block.row(s) * s.states, s.states, block.lanes, x.state);
}

static int64_t forward_units(const Shape &s) {
    return s.batch * s.groups * ((s.group_size() + kLanes - 1) / kLanes);
}

static size_t forward_scratch_bytes(const Shape &s) {
    Arena arena(nullptr);
    ForwardScratch(s.states, arena);
    return arena.used();
}

static void backward(const BackwardArgs &args, int64_t unit, void *memory) {
    const Shape &s = args.shape;
    const int64_t strips = args.strips(), strip = unit % strips;
    const int64_t begin = strip * kStrip;
    const int64_t end = begin + kStrip < s.group_size() ? begin + kStrip : s.group_size();
    const int64_t share = unit * s.states * s.length;
    Arena arena(memory);
    const BackwardScratch x(s.states, s.length, arena);
    double *memory_of_sums = arena.take<double>(Sums::count(s.states, 0));
    const Sums sums(memory_of_sums, s.states);
    for (int64_t channel = begin; channel < end; channel += kLanes) {
        const Block block(s, unit / strips / s.groups, unit / strips % s.groups, channel, end);
        const LineBackward view(args, block);
        const int64_t row = block.row(s);
        const float *last = args.grad_last_state ? args.grad_last_state + row * s.states : nullptr;
        for (int64_t i = 0; i < Sums::count(s.states, 0); ++i) memory_of_sums[i] = 0;
        scan_backward(view, view.channels(), last, s.length, channel == begin, args.strip_B + share,
                      args.strip_C + share, sums, x);
        for (int r = 0; r < block.lanes; ++r) {
            for (int64_t n = 0; n < s.states; ++n) args.image_A[(row + r) * s.states + n] = sums.A[n * kLanes + r];
            args.image_D[row + r] = sums.D[r];
            args.image_bias[row + r] = sums.bias[r];
        }
    }
}

static int64_t backward_units(const Shape &s) {
    return s.batch * s.groups * ((s.group_size() + kStrip - 1) / kStrip);
}

static size_t backward_scratch_bytes(const Shape &s) {
    Arena arena(nullptr);
    BackwardScratch(s.states, s.length, arena);
    arena.take<double>(Sums::count(s.states, 0));
    return arena.used();
}

}  // namespace

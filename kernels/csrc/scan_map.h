// The 2-D scan of channels-last maps. The channels of a position are side by side, so rows, columns and any other walk are
// addresses: nothing is transposed, and no sequence is ever laid out in memory.
#pragma once

#include "scan_core.h"

namespace {

using vssm::Backward2d;
using vssm::Forward2d;
using vssm::Scan2d;

// ---- rows of kLanes channels at table-given places -----------------------------------------------------------------------

template <class T>
struct Rows {
    T *base;
    int64_t stride;
    const int32_t *index;

    VSSM_MEMBER T *at(int64_t t) const { return base + index[t] * stride; }
    VSSM_MEMBER Rows<const char> bytes() const {
        return {reinterpret_cast<const char *>(base), stride * static_cast<int64_t>(sizeof(T)), index};
    }
};

template <class T>
VSSM_INLINE void read_rows(Rows<const T> rows, int64_t start, int lanes, int count, Vec *out) {
    if (lanes == kLanes)
        for (int64_t t = 0; t < count; ++t) out[t] = load(rows.at(start + t));
    else
        for (int64_t t = 0; t < count; ++t) out[t] = load_lanes(rows.at(start + t), lanes);
    for (int64_t t = count; t < padded(count); ++t) out[t] = Vec{};
}

// Adds (or sets) a chunk, step by step in the order of the walk: the order in which joined routes meet at a position is part
// of the result's last bits.
template <bool Backwards>
VSSM_INLINE void write_rows(Rows<float> rows, bool add, int64_t start, int lanes, int count, const Vec *in) {
    for (int64_t i = 0; i < count; ++i) {
        const int64_t t = Backwards ? count - 1 - i : i;
        float *to = rows.at(start + t);
        const Vec v = !add ? in[t] : in[t] + (lanes == kLanes ? load(to) : load_lanes(to, lanes));
        store_lanes(to, lanes, v);
    }
}

static void zero_rows(float *base, int64_t stride, int64_t count, int lanes) {
    for (int64_t i = 0; i < count; ++i) store_lanes(base + i * stride, lanes, Vec{});
}

// A chunk of B or C, position by position.
VSSM_INLINE float to_float(float x) { return x; }
VSSM_INLINE float to_float(Float16 x) { return load_lanes(&x, 1)[0]; }
VSSM_INLINE float to_float(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T>
VSSM_INLINE void read_scalars(Rows<const T> rows, int64_t start, int64_t states, int count, float *out) {
    if (states == 1) {
        for (int64_t t = 0; t < count; ++t) out[t] = to_float(*rows.at(start + t));
    } else if (states == 16) {  // a length known at compile time: no call
        for (int64_t t = 0; t < count; ++t) copy_floats(rows.at(start + t), 16, out + t * 16);
    } else {
        for (int64_t t = 0; t < count; ++t) copy_floats(rows.at(start + t), states, out + t * states);
    }
    for (int64_t i = count * states; i < padded(count) * states; ++i) out[i] = 0;
}

// Rows that are wanted soon, asked for by hand as in the 1-D scan: no hardware follows a column. Those to be read are of the
// chunk from step `next` on, if it is whole; those to be written are of this chunk, where `here` is not negative.
template <int Reads>
struct RowsAhead {
    Rows<const char> reads[Reads];
    Rows<float> written;
    int64_t next, here, length;
    int count;

    VSSM_MEMBER void prefetch(int64_t t) const {
        if (next + kChunk <= length)
            for (int64_t i = t; i < t + kWide; ++i)
                for (const Rows<const char> &rows : reads) __builtin_prefetch(rows.at(next + i));
        if (here >= 0 && t + kWide <= count)
            for (int64_t i = t; i < t + kWide; ++i) __builtin_prefetch(written.at(here + i), 1);
    }
};

// ---- the low-rank step size ----------------------------------------------------------------------------------------------

// Positions taken together, so that a row of weights is loaded once for all of them.
constexpr int kExpand = 8;

// Rows of dt as floats: where they lie, or converted to `buffer`, which holds `Count` of them.
template <int Count>
VSSM_INLINE void float_rows(Rows<const float> dt, int64_t start, int64_t, int count, float *, const float **rows) {
    for (int i = 0; i < Count; ++i) rows[i] = dt.at(start + (i < count ? i : count - 1));
}

template <int Count, class T>
VSSM_INLINE void float_rows(Rows<const T> dt, int64_t start, int64_t rank, int count, float *buffer, const float **rows) {
    for (int i = 0; i < Count; ++i) {
        if (i < count) copy_floats(dt.at(start + i), rank, buffer + i * rank);
        rows[i] = buffer + (i < count ? i : count - 1) * rank;
    }
}

// step_t = sum over r of dt_t[r] weight[r]; the chunk's positions past `count` are zero.
template <class T>
VSSM_INLINE void expand(Rows<const T> dt, int64_t start, const Vec *weight, int64_t rank, int count, float *buffer,
                        Vec *step) {
    for (int64_t t = 0; t < count; t += kExpand) {
        const float *rows[kExpand];
        float_rows<kExpand>(dt, start + t, rank, count - static_cast<int>(t), buffer, rows);
        Vec sum[kExpand] = {};
        for (int64_t r = 0; r < rank; ++r)
            for (int i = 0; i < kExpand; ++i) sum[i] += weight[r] * rows[i][r];
        for (int i = 0; i < kExpand; ++i) step[t + i] = sum[i];
    }
    for (int64_t t = count; t < padded(count); ++t) step[t] = Vec{};
}

// The adjoint of `expand` for the weights: sum[r] += sum over t of grad_t dt_t[r].
template <int Ranks>
VSSM_INLINE void expand_weight(const float *const *dt, int64_t r, int count, const Vec *grad, double *sum) {
    Vec total[Ranks] = {};
    for (int64_t t = 0; t < count; ++t)
        for (int i = 0; i < Ranks; ++i) total[i] += grad[t] * dt[t][r + i];
    for (int i = 0; i < Ranks; ++i) add_to(sum + (r + i) * kLanes, total[i]);
}

// Vectors of positions to a channel of a turned chunk, and how many of them are taken together.
constexpr int kTurned = kChunk / kLanes, kParts = 2;
// Ranks taken together in the adjoints, whose sums are to stay in registers: AVX-512 has twice as many.
constexpr int kRanks = kLanes == 16 ? 8 : 4;

// The adjoint of `expand` for dt, with positions on the lanes: row r, `stride` apart, of kParts vectors of positions is
// the sum over the channels c of grad[c] weight[c, r].
template <int Ranks>
VSSM_INLINE void expand_input(const Vec *grad, const float *weight, int64_t rank, int lanes, int count, bool first,
                              int64_t stride, float *out) {
    Vec sum[Ranks][kParts] = {};
    for (int c = 0; c < lanes; ++c)
        for (int i = 0; i < Ranks; ++i)
            for (int p = 0; p < kParts; ++p) sum[i][p] += grad[c * kTurned + p] * weight[c * rank + i];
    for (int i = 0; i < Ranks; ++i)
        for (int p = 0; p < kParts; ++p) {
            const int left = count - p * kLanes, width = left < kLanes ? left : kLanes;
            if (width <= 0) break;
            float *to = out + i * stride + p * kLanes;
            if (!first) sum[i][p] += width == kLanes ? load(to) : load_lanes(to, width);
            store_lanes(to, width, sum[i][p]);
        }
}

// kChunk vectors (position, lane) to kLanes rows (lane, position).
VSSM_INLINE void transpose_chunk(const Vec *in, Vec *out) {
    for (int part = 0; part < kTurned; ++part) {
        Vec tile[kLanes];
        for (int r = 0; r < kLanes; ++r) tile[r] = in[part * kLanes + r];
        transpose(tile);
        for (int r = 0; r < kLanes; ++r) out[r * kTurned + part] = tile[r];
    }
}

// ---- views ---------------------------------------------------------------------------------------------------------------

// kLanes channels, from `channel` on, of sequence k of image b, whose maps hold T. `buffer` has room for kChunk rows of dt.
template <class T>
struct MapView {
    typedef Table<true> Scalars;

    const Scan2d &s;
    int64_t b, k, channel;
    int lanes;
    const int32_t *visited;
    Rows<const T> u, dt, B, C;
    const Vec *weight;
    float *buffer;

    MapView(const Scan2d &s, int64_t b, int64_t k, int64_t channel, int64_t end, Vec *weight, float *buffer, const Inputs &x)
        : s(s),
          b(b),
          k(k),
          channel(channel),
          lanes(end - channel < kLanes ? static_cast<int>(end - channel) : kLanes),
          visited(s.visited + s.starts[k]),
          u{s.u.at<T>(b, s.own_input ? k : 0) + channel, s.u.position, visited},
          dt{s.dt.at<T>(b, k) + (s.rank ? 0 : channel), s.dt.position, visited},
          B{s.B.at<T>(b, k), s.B.position, visited},
          C{s.C.data ? s.C.at<T>(b, k) : nullptr, s.C.position, visited},
          weight(weight),
          buffer(buffer) {
        // kChunk ranks at a time, each then a vector over the channels.
        for (int64_t r = 0; r < s.rank; r += kChunk) {
            const int count = s.rank - r < kChunk ? static_cast<int>(s.rank - r) : kChunk;
            load_chunk(s.dt_weight + parameter() * s.rank + r, s.rank, lanes, count, weight + r);
        }
        if (!s.C.data)
            for (int64_t i = 0; i < s.states * kChunk; ++i) x.C[i] = 1;
    }

    int64_t parameter() const { return k * s.channels + channel; }
    int64_t length() const { return s.length(k); }

    Channels channels() const {
        const int64_t p = parameter();
        return {s.A + p * s.states, s.D ? s.D + p : nullptr, s.delta_bias ? s.delta_bias + p : nullptr,
                s.states, lanes, s.softplus != 0};
    }

    VSSM_MEMBER void read_inputs(int64_t start, int count, const Inputs &x) const {
        if (s.rank)
            expand(dt, start, weight, s.rank, count, buffer, x.step);
        else
            read_rows(dt, start, lanes, count, x.step);
        read_rows(u, start, lanes, count, x.u);
        read_scalars(B, start, s.states, count, x.B);
    }

    VSSM_MEMBER void read_C(int64_t start, int count, const Inputs &x) const {
        if (C.base) read_scalars(C, start, s.states, count, x.C);
    }
};

// Where the results of one sequence go: rows of a map (positions, routes, channels), or of (positions, channels), which the
// `first` sequence has to start and the others add to.
static Rows<float> result_rows(const Scan2d &s, int64_t k, bool by_route, bool first, int lanes, float *map, bool &add) {
    if (by_route) {
        for (int64_t r = s.first_route[k]; r < s.first_route[k + 1]; ++r)
            if (!s.covers[r]) zero_rows(map + r * s.channels, s.routes * s.channels, s.positions, lanes);
        add = false;
        return {map, s.channels, s.route_rows + s.starts[k]};
    }
    add = !first || !s.simple(k);
    if (first && add) zero_rows(map, s.channels, s.positions, lanes);
    return {map, s.channels, s.visited + s.starts[k]};
}

template <class T>
struct MapForward : MapView<T> {
    using View = MapView<T>;
    using View::dt, View::lanes, View::length, View::u;

    Rows<float> y;
    bool add;

    MapForward(const Forward2d &args, int64_t b, int64_t k, int64_t channel, Vec *weight, float *buffer, const Inputs &x)
        : View(*args.scan, b, k, channel, args.scan->channels, weight, buffer, x) {
        const Scan2d &s = *args.scan;
        float *map = args.y + b * s.positions * (args.by_route ? s.routes : 1) * s.channels + channel;
        y = result_rows(s, k, args.by_route, k == 0, lanes, map, add);
    }

    VSSM_MEMBER RowsAhead<2> ahead(int64_t start, int count) const {
        return {{u.bytes(), dt.bytes()}, y, start + kChunk, start, length(), count};
    }

    VSSM_MEMBER void write_y(int64_t start, int count, const Vec *in) const {
        write_rows<false>(y, add, start, lanes, count, in);
    }
};

// A block of channels of one image: all sequences, or one.
template <class T>
static void forward_2d_of(const Forward2d &args, int64_t unit, void *memory) {
    const Scan2d &s = *args.scan;
    const int64_t blocks = (s.channels + kLanes - 1) / kLanes, parts = args.by_route ? s.sequences : 1;
    const int64_t b = unit / parts / blocks, channel = unit / parts % blocks * kLanes, part = unit % parts;
    Arena arena(memory);
    const ForwardScratch x(s.states, arena);
    Vec *weight = arena.take<Vec>(s.rank + kChunk);
    float *buffer = arena.take<float>(s.rank * kChunk);
    for (int64_t k = args.by_route ? part : 0; k < (args.by_route ? part + 1 : s.sequences); ++k) {
        const MapForward<T> view(args, b, k, channel, weight, buffer, x);
        scan_forward(view, view.channels(), view.length(), x);
    }
}

static void forward_2d(const Forward2d &args, int64_t unit, void *memory) {
    with_type(args.scan->dtype, [&](auto type) { forward_2d_of<decltype(type)>(args, unit, memory); });
}

static int64_t forward_2d_units(const Forward2d &args) {
    const Scan2d &s = *args.scan;
    return s.batch * ((s.channels + kLanes - 1) / kLanes) * (args.by_route ? s.sequences : 1);
}

static size_t forward_2d_scratch_bytes(const Scan2d &s) {
    Arena arena(nullptr);
    ForwardScratch(s.states, arena);
    arena.take<Vec>(s.rank + kChunk);
    arena.take<float>(s.rank * kChunk);
    return arena.used();
}

template <class T>
struct MapBackward : MapView<T> {
    using View = MapView<T>;
    using View::b, View::buffer, View::dt, View::k, View::lanes, View::length, View::parameter, View::s, View::u, View::visited;

    Rows<const float> grad_y;
    Rows<float> grad_u, grad_dt;
    bool add_u, add_dt;
    bool first;  // of its strip: starts the shares
    float *share_dt;
    double *sum_weight;
    Vec *turned;  // a chunk with positions on the lanes

    MapBackward(const Backward2d &args, int64_t image, int64_t k, int64_t strip, int64_t channel, int64_t end, Vec *weight,
                float *buffer, double *sum_weight, Vec *turned, const Inputs &x)
        : View(*args.scan, args.image + image, k, channel, end, weight, buffer, x),
          first(channel == strip * args.strip),
          share_dt(args.share(image, k, strip) + (args.rows() - args.scan->rank) * length()),
          sum_weight(sum_weight),
          turned(turned) {
        const int64_t map = s.positions * s.channels;
        if (s.merge)
            grad_y = {args.grad_y + b * map + channel, s.channels, visited};
        else
            grad_y = {args.grad_y + b * map * s.routes + channel, s.channels, s.route_rows + s.starts[k]};
        if (s.own_input)
            grad_u = own_rows(args.grad_u, add_u);
        else
            grad_u = result_rows(s, k, args.by_route, k == 0, lanes,
                                 args.grad_u + (args.by_route ? image * s.routes : b) * map + channel, add_u);
        if (!s.rank) grad_dt = own_rows(args.grad_dt, add_dt);
    }

    // Of a map (batch, positions, sequences, channels).
    Rows<float> own_rows(float *map, bool &add) const {
        const int64_t stride = s.sequences * s.channels;
        map += b * s.positions * stride + parameter();
        add = !s.simple(k);
        if (add) zero_rows(map, stride, s.positions, lanes);
        return {map, stride, visited};
    }

    VSSM_MEMBER RowsAhead<2> ahead(int64_t start, int count) const {
        return {{u.bytes(), dt.bytes()}, grad_u, start + kChunk, -1, length(), count};
    }

    VSSM_MEMBER RowsAhead<3> behind(int64_t start, int count) const {
        return {{u.bytes(), dt.bytes(), grad_y.bytes()}, grad_u, start > 0 ? start - kChunk : length(), start, length(), count};
    }

    VSSM_MEMBER void read_grad_y(int64_t start, int count, Vec *out) const {
        read_rows(grad_y, start, lanes, count, out);
    }

    VSSM_MEMBER void write_grads(int64_t start, int count, const Vec *of_u, Vec *of_delta) const {
        write_rows<true>(grad_u, add_u, start, lanes, count, of_u);
        if (s.rank)
            expand_backward(start, count, of_delta);
        else
            write_rows<true>(grad_dt, add_dt, start, lanes, count, of_delta);
    }

    // The chunk's gradient of the full step size, to the weights and the low-rank step size.
    VSSM_MEMBER void expand_backward(int64_t start, int count, Vec *grad) const {
        for (int64_t t = count; t < kChunk; ++t) grad[t] = Vec{};
        transpose_chunk(grad, turned);
        const float *rows[kChunk];
        float_rows<kChunk>(dt, start, s.rank, count, buffer, rows);
        int64_t r = 0;
        this->template ranks<kRanks>(r, start, count, rows, grad);
        if (kRanks > 4) this->template ranks<4>(r, start, count, rows, grad);
        this->template ranks<2>(r, start, count, rows, grad);
        this->template ranks<1>(r, start, count, rows, grad);
    }

    // The ranks from r on, as many as go in blocks of this many.
    template <int Ranks>
    VSSM_MEMBER void ranks(int64_t &r, int64_t start, int count, const float *const *rows, const Vec *grad) const {
        const float *from = s.dt_weight + parameter() * s.rank;
        for (; r + Ranks <= s.rank; r += Ranks) {
            expand_weight<Ranks>(rows, r, count, grad, sum_weight);
            for (int p = 0; p * kLanes < count; p += kParts)
                expand_input<Ranks>(turned + p, from + r, s.rank, lanes, count - p * kLanes, first, length(),
                                    share_dt + r * length() + start + p * kLanes);
        }
    }
};

// One strip of channels of one image: all sequences, or one.
template <class T>
static void backward_2d_of(const Backward2d &args, int64_t unit, void *memory) {
    const Scan2d &s = *args.scan;
    const int64_t parts = args.by_route ? s.sequences : 1, part = unit % parts;
    const int64_t strip = unit / parts % args.strips, image = unit / parts / args.strips;
    const int64_t begin = strip * args.strip;
    const int64_t end = begin + args.strip < s.channels ? begin + args.strip : s.channels;
    Arena arena(memory);
    const BackwardScratch x(s.states, s.longest(), arena);
    Vec *weight = arena.take<Vec>(s.rank + kChunk);
    Vec *turned = arena.take<Vec>(kChunk);
    float *buffer = arena.take<float>(s.rank * kChunk);
    const int64_t blocks = (s.channels + kLanes - 1) / kLanes, count = Sums::count(s.states, s.rank);

    // All routes of a few channels, then the next channels: what the routes share is still in the cache.
    for (int64_t channel = begin; channel < end; channel += kLanes)
        for (int64_t k = args.by_route ? part : 0; k < (args.by_route ? part + 1 : s.sequences); ++k) {
            float *share_B = args.share(image, k, strip);
            float *share_C = s.C.data ? share_B + s.states * s.length(k) : nullptr;
            const Sums sums(args.sums + ((image * s.sequences + k) * blocks + channel / kLanes) * count, s.states);
            const MapBackward<T> view(args, image, k, strip, channel, end, weight, buffer, sums.weight, turned, x);
            scan_backward(view, view.channels(), nullptr, s.length(k), channel == begin, share_B, share_C, sums, x);
        }
}

static void backward_2d(const Backward2d &args, int64_t unit, void *memory) {
    with_type(args.scan->dtype, [&](auto type) { backward_2d_of<decltype(type)>(args, unit, memory); });
}

static int64_t backward_2d_units(const Backward2d &args) {
    return args.images * args.strips * (args.by_route ? args.scan->sequences : 1);
}

static size_t backward_2d_scratch_bytes(const Scan2d &s) {
    Arena arena(nullptr);
    BackwardScratch(s.states, s.longest(), arena);
    arena.take<Vec>(s.rank + kChunk);
    arena.take<Vec>(kChunk);
    arena.take<float>(s.rank * kChunk);
    return arena.used();
}

}  // namespace

// Neighbourhood attention: each pixel attends to a window of pixels around it. The rule is that of neighborhood/rule.py.
//
// A unit packs the keys and values that some rows of one head see as floats, columns of one remainder of the dilation side by
// side: "lying", channels of a pixel side by side, or "turned", pixels side by side. Then a few neighbouring pixels at a time
// go through all that any of them sees. A vector of scores belongs to keys of one row; what a pixel does not attend to has
// weight zero.
#pragma once

#include "scan_core.h"

namespace {

using vssm::Neighborhood;

// Pixels of an axis with one remainder.
VSSM_INLINE int64_t group_size(int64_t size, int64_t first, int64_t dilation) {
    return (size - first + dilation - 1) / dilation;
}

// The place of the first pixel that the one in this place attends to, in a group of so many.
VSSM_INLINE int64_t window_start(int64_t place, int64_t group, int64_t window) {
    const int64_t last = group > window ? group - window : 0, start = place - window / 2;
    return start < 0 ? 0 : start < last ? start : last;
}

VSSM_INLINE int64_t whole_vectors(int64_t count) { return (count + kLanes - 1) / kLanes; }

// How many pixels go together: more share what is loaded, and see more pixels that only some of them attend to.
VSSM_INLINE int queries_at_once(const Neighborhood &a) {
    int best = 6;
    double least = 0;
    for (int count = 6; count >= 2; count -= 2) {
        const int64_t seen = a.window_width + count - 1;
        const double products = whole_vectors(seen) * a.channels + seen * whole_vectors(a.value_channels);
        const double cost = products * (count + 1) / count;
        if (count == 6 || cost < least) {
            best = count;
            least = cost;
        }
    }
    return best;
}

// The scratch memory of one unit. Rows of lying channels are whole vectors.
struct Patch {
    int queries;      // pixels that go together
    int64_t vectors;  // of what they see in a row, at most
    int64_t rows;     // of keys that are packed, at most
    int64_t width;    // pixels of a packed row, and room for whole vectors
    int64_t key_row, value_row, bias_row, bias_left;
    float *keys, *values;              // turned, lying: (rows, channels, width), (rows, width, value_row)
    float *lying_keys, *turned_values;  // of a backward pass
    float *grad_keys, *grad_values;     // lying
    float *bias, *grad_bias;            // (rows of the table, bias_row): the table stands from bias_left on
    float *q, *grad_y;                  // (queries, key_row), (queries, value_row)
    float *sums;                        // (queries, key_row or value_row)
    float *pixels;                      // kLanes pixels as floats
    Vec *scores, *grad_scores;          // (queries, window_height, vectors)
    IntVec *seen;                       // (queries, vectors): which lanes a pixel attends to
    size_t bytes;

    Patch(const Neighborhood &a, void *memory) {
        Arena arena(memory);
        queries = queries_at_once(a);
        vectors = whole_vectors(a.window_width + queries - 1);
        width = (whole_vectors(a.width) + vectors) * kLanes;
        key_row = whole_vectors(a.channels) * kLanes;
        value_row = whole_vectors(a.value_channels) * kLanes;
        bias_left = whole_vectors(queries) * kLanes;  // the last pixel reads so much further to the left
        bias_row = bias_left + 2 * a.window_width + vectors * kLanes;
        const int64_t group = group_size(a.height, 0, a.dilation_height), wanted = a.rows + a.window_height - 1;
        const int64_t longest = key_row > value_row ? key_row : value_row, table = (2 * a.window_height - 1) * bias_row;
        rows = wanted < group ? wanted : group;
        keys = arena.take<float>(rows * a.channels * width);
        lying_keys = turned_values = values = grad_keys = grad_values = grad_bias = grad_y = nullptr;
        grad_scores = nullptr;
        if (a.grad_y) {
            lying_keys = arena.take<float>(rows * width * key_row);
            turned_values = arena.take<float>(rows * a.value_channels * width);
            grad_keys = arena.take<float>(rows * width * key_row);
            grad_values = arena.take<float>(rows * width * value_row);
            grad_bias = arena.take<float>(table);
            grad_y = arena.take<float>(queries * value_row);
            grad_scores = arena.take<Vec>(queries * a.window_height * vectors);
        } else {
            values = arena.take<float>(rows * width * value_row);
        }
        bias = arena.take<float>(table);
        q = arena.take<float>(queries * key_row);
        sums = arena.take<float>(queries * longest);
        pixels = arena.take<float>(kLanes * longest);
        scores = arena.take<Vec>(queries * a.window_height * vectors);
        seen = arena.take<IntVec>(queries * vectors);
        bytes = arena.used();
    }
};

static size_t neighborhood_scratch_bytes(const Neighborhood &a) { return Patch(a, nullptr).bytes; }

// The channels of a pixel of a map, as floats.
VSSM_INLINE void read_pixel(const Neighborhood &a, const void *map, const int64_t (&strides)[4], int64_t image, int64_t row,
                            int64_t column, int64_t head, int64_t channels, float *out) {
    const int64_t at = image * strides[0] + row * strides[1] + column * strides[2] + head * strides[3];
    with_type(a.dtype, [&](auto type) { copy_floats(static_cast<const decltype(type) *>(map) + at, channels, out); });
}

// Packs a row of a map; columns of one remainder stand side by side. Either of the results may be null.
VSSM_INLINE void pack_row(const Neighborhood &a, const Patch &m, const void *map, const int64_t (&strides)[4], int64_t channels,
                          int64_t image, int64_t row, int64_t head, float *turned, float *lying) {
    const int64_t lying_row = whole_vectors(channels) * kLanes;
    int64_t at = 0;
    for (int64_t first = 0; first < a.dilation_width && first < a.width; ++first)
        for (int64_t column = first; column < a.width;) {
            int count = 0;
            for (; count < kLanes && column < a.width; ++count, column += a.dilation_width) {
                float *pixel = lying ? lying + (at + count) * lying_row : m.pixels + count * lying_row;
                read_pixel(a, map, strides, image, row, column, head, channels, pixel);
            }
            const float *pixels = lying ? lying + at * lying_row : m.pixels;
            for (int64_t e = 0; turned && e < channels; e += kLanes) {
                const int some = channels - e < kLanes ? static_cast<int>(channels - e) : kLanes;
                Vec lanes[kLanes];
                load_chunk(pixels + e, lying_row, count, some, lanes);
                for (int j = 0; j < some; ++j) store_lanes(turned + (e + j) * m.width + at, count, lanes[j]);
            }
            at += count;
        }
    for (int64_t e = 0; turned && e < channels; ++e)  // loads of whole vectors reach further
        for (int64_t i = at; i < m.width; ++i) turned[e * m.width + i] = 0;
}

// Products of some pixels (Count, step) with kLanes turned ones.
template <int Count>
VSSM_INLINE void multiply(const Patch &m, const float *pixels, int64_t step, const float *turned, int64_t channels, Vec *sum) {
    for (int i = 0; i < Count; ++i) sum[i] = Vec{};
    for (int64_t e = 0; e < channels; ++e) {
        const Vec one = load(turned + e * m.width);
        for (int i = 0; i < Count; ++i) sum[i] += pixels[i * step + e] * one;
    }
}

template <class T>
VSSM_INLINE void store_row(T *to, const float *from, int64_t count, float factor) {
    for (int64_t i = 0; i < count; i += kLanes)
        store_lanes(to + i, count - i < kLanes ? static_cast<int>(count - i) : kLanes, load(from + i) * factor);
}

template <int Value>
struct Constant {
    static constexpr int value = Value;
};

// Calls body with the number of pixels that go together, known to the compiler.
template <class Body>
VSSM_INLINE void with_count(int count, const Body &body) {
    if (count == 6)
        body(Constant<6>());
    else if (count == 4)
        body(Constant<4>());
    else
        body(Constant<2>());
}

VSSM_INLINE float max_lanes(Vec v) {
    float most = v[0];
    for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
    return most;
}

// What some pixels of a row attend to.
struct View {
    int64_t rows, seen, vectors;  // of keys; pixels of a row that any of them sees, and their vectors
    int64_t key;                  // where the first of them stands in the packed rows
    int64_t bias;                 // where the table has its bias, for the first of the pixels
};

// Where the first of them stands, r rows further, among turned channels.
VSSM_INLINE int64_t turned_at(const Patch &m, const View &view, int64_t r, int64_t channels) {
    return (view.key / m.width + r) * channels * m.width + view.key % m.width;
}

// The weights of some pixels, which still have to be divided by their sums.
template <int Count>
VSSM_INLINE void weigh(const Neighborhood &a, const Patch &m, const View &view, float *sums) {
    const float none = -__builtin_inff();
    Vec top[Count];
    for (int i = 0; i < Count; ++i) top[i] = splat(none);
    for (int64_t r = 0; r < view.rows; ++r)
        for (int64_t v = 0; v < view.vectors; ++v) {
            Vec sum[Count];
            const float *turned = m.keys + turned_at(m, view, r, a.channels) + v * kLanes;
            multiply<Count>(m, m.q, m.key_row, turned, a.channels, sum);
            for (int i = 0; i < Count; ++i) {
                if (a.bias) sum[i] += load(m.bias + view.bias + r * m.bias_row + v * kLanes - i);
                sum[i] = m.seen[i * m.vectors + v] ? sum[i] : splat(none);
                top[i] = at_least(sum[i], top[i]);
                m.scores[(i * view.rows + r) * view.vectors + v] = sum[i];
            }
        }
    const Wide<1> one{{splat(1)}};
    const int64_t count = view.rows * view.vectors;
    for (int i = 0; i < Count; ++i) {
        const float most = max_lanes(top[i]);
        Vec total{};
        for (Vec *score = m.scores + i * count, *end = score + count; score < end; ++score) {
            *score = exp2_product(Wide<1>{{*score - most}}, one).v[0];
            total += *score;
        }
        sums[i] = sum_lanes(total);
    }
}

// Sums what some pixels see by weights, into m.sums: Vectors vectors of lying channels.
template <int Count, int Vectors>
VSSM_INLINE void sum_vectors(const Patch &m, const View &view, const Vec *weights, const float *lying, int64_t row,
                             int64_t channel) {
    const float *weight = reinterpret_cast<const float *>(weights);
    const int64_t line = view.vectors * kLanes, next = view.rows * line;
    Vec sum[Count][Vectors] = {};
    for (int64_t r = 0; r < view.rows; ++r)
        for (int64_t s = 0; s < view.seen; ++s) {
            const float *from = lying + (r * m.width + view.key + s) * row + channel;
            Vec v[Vectors];
            for (int j = 0; j < Vectors; ++j) v[j] = load(from + j * kLanes);
            for (int i = 0; i < Count; ++i)
                for (int j = 0; j < Vectors; ++j) sum[i][j] += weight[i * next + r * line + s] * v[j];
        }
    for (int i = 0; i < Count; ++i)
        for (int j = 0; j < Vectors; ++j) store(m.sums + i * row + channel + j * kLanes, sum[i][j]);
}

template <int Count>
VSSM_INLINE void sum_seen(const Patch &m, const View &view, const Vec *weights, const float *lying, int64_t row) {
    int64_t channel = 0;
    for (; channel + 2 * kLanes <= row; channel += 2 * kLanes)
        sum_vectors<Count, 2>(m, view, weights, lying, row, channel);
    if (channel < row) sum_vectors<Count, 1>(m, view, weights, lying, row, channel);
}

// The adjoint: adds to what some pixels see their own values (Count, row) by weights.
template <int Count, int Vectors>
VSSM_INLINE void add_vectors(const Patch &m, const View &view, const Vec *weights, const float *values, float *lying,
                             int64_t row, int64_t channel) {
    const float *weight = reinterpret_cast<const float *>(weights);
    const int64_t line = view.vectors * kLanes, next = view.rows * line;
    Vec value[Count][Vectors];
    for (int i = 0; i < Count; ++i)
        for (int j = 0; j < Vectors; ++j) value[i][j] = load(values + i * row + channel + j * kLanes);
    for (int64_t r = 0; r < view.rows; ++r)
        for (int64_t s = 0; s < view.seen; ++s) {
            float *to = lying + (r * m.width + view.key + s) * row + channel;
            for (int j = 0; j < Vectors; ++j) {
                Vec sum = load(to + j * kLanes);
                for (int i = 0; i < Count; ++i) sum += weight[i * next + r * line + s] * value[i][j];
                store(to + j * kLanes, sum);
            }
        }
}

template <int Count>
VSSM_INLINE void add_seen(const Patch &m, const View &view, const Vec *weights, const float *values, float *lying,
                          int64_t row) {
    int64_t channel = 0;
    for (; channel + 2 * kLanes <= row; channel += 2 * kLanes)
        add_vectors<Count, 2>(m, view, weights, values, lying, row, channel);
    if (channel < row) add_vectors<Count, 1>(m, view, weights, values, lying, row, channel);
}

// What a unit works on: some rows of one remainder, of a head of an image.
struct Strip {
    int64_t image, head, first, group, begin, end;  // `first` is the first row of the remainder
    int64_t low, high;                              // places of the rows of keys

    Strip(const Neighborhood &a, int64_t unit) {
        const int64_t blocks = a.blocks(), remainders = a.remainders();
        begin = unit % blocks * a.rows;
        first = unit / blocks % remainders;
        head = unit / blocks / remainders % a.heads;
        image = unit / blocks / remainders / a.heads;
        group = group_size(a.height, first, a.dilation_height);
        end = begin + a.rows < group ? begin + a.rows : group;
        if (begin >= end) return;
        low = window_start(begin, group, a.window_height);
        high = window_start(end - 1, group, a.window_height) + attended(a);
    }

    int64_t attended(const Neighborhood &a) const { return a.window_height < group ? a.window_height : group; }
    int64_t row(const Neighborhood &a, int64_t place) const { return first + place * a.dilation_height; }
};

// Calls tile(view, count, pixel) for some pixels of the rows at a time, `count` of which exist: the first is number `pixel` of
// all images, the next is dilation_width further. Their queries are in m.q, times the scale and log2(e).
template <int Count, class Tile>
VSSM_INLINE void each_tile(const Neighborhood &a, const Patch &m, const Strip &strip, const Tile &tile) {
    IntVec lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    const int64_t table = 2 * a.window_width - 1;
    for (int64_t r = 0; a.bias && r < 2 * a.window_height - 1; ++r)
        for (int64_t i = 0; i < table; ++i)
            m.bias[r * m.bias_row + m.bias_left + i] = a.bias[(strip.head * (2 * a.window_height - 1) + r) * table + i] * kLog2e;
    for (int64_t i = 0; i < Count * m.key_row; ++i) m.q[i] = 0;

    for (int64_t place = strip.begin; place < strip.end; ++place) {
        const int64_t start = window_start(place, strip.group, a.window_height), row = strip.row(a, place);
        int64_t packed = (start - strip.low) * m.width;  // where the columns of a remainder begin
        for (int64_t first = 0; first < a.dilation_width && first < a.width; ++first) {
            const int64_t group = group_size(a.width, first, a.dilation_width);
            const int64_t attended = a.window_width < group ? a.window_width : group;
            for (int64_t column = 0; column < group; column += Count) {
                const int count = group - column < Count ? static_cast<int>(group - column) : Count;
                const int64_t low = window_start(column, group, a.window_width);
                View view;
                view.rows = strip.attended(a);
                view.seen = window_start(column + count - 1, group, a.window_width) + attended - low;
                view.vectors = whole_vectors(view.seen);
                view.key = packed + low;
                view.bias = (start - place + a.window_height - 1) * m.bias_row + m.bias_left + low - column + a.window_width - 1;
                for (int i = 0; i < Count; ++i) {
                    const int64_t here = column + (i < count ? i : count - 1);
                    float *q = m.q + i * m.key_row;
                    read_pixel(a, a.q, a.q_strides, strip.image, row, first + here * a.dilation_width, strip.head, a.channels, q);
                    for (int64_t e = 0; e < a.channels; ++e) q[e] *= a.scale * kLog2e;
                    const int from = static_cast<int>(window_start(here, group, a.window_width) - low);
                    const int end = from + static_cast<int>(attended);
                    for (int64_t v = 0; v < view.vectors; ++v) {
                        const IntVec at = lane + static_cast<int>(v * kLanes);
                        m.seen[i * m.vectors + v] = (at >= from) & (at < end);
                    }
                }
                tile(view, count, (strip.image * a.height + row) * a.width + first + column * a.dilation_width);
            }
            packed += group;
        }
    }
}

template <int Count>
VSSM_INLINE void attend(const Neighborhood &a, const Patch &m, const Strip &strip) {
    for (int64_t place = strip.low; place < strip.high; ++place) {
        const int64_t row = strip.row(a, place), r = place - strip.low;
        pack_row(a, m, a.k, a.k_strides, a.channels, strip.image, row, strip.head, m.keys + r * a.channels * m.width, nullptr);
        pack_row(a, m, a.v, a.v_strides, a.value_channels, strip.image, row, strip.head, nullptr,
                    m.values + r * m.width * m.value_row);
    }
    each_tile<Count>(a, m, strip, [&](const View &view, int count, int64_t pixel) {
        float totals[Count];
        weigh<Count>(a, m, view, totals);
        sum_seen<Count>(m, view, m.scores, m.values, m.value_row);
        for (int i = 0; i < count; ++i) {
            const int64_t at = ((pixel + i * a.dilation_width) * a.heads + strip.head) * a.value_channels;
            with_type(a.dtype, [&](auto type) {
                store_row(static_cast<decltype(type) *>(a.y) + at, m.sums + i * m.value_row, a.value_channels, 1 / totals[i]);
            });
        }
    });
}

// A unit is some rows of one remainder, of a head of an image.
static void neighborhood(const Neighborhood &a, int64_t unit, void *memory) {
    const Strip strip(a, unit);
    if (strip.begin >= strip.end) return;
    const Patch m(a, memory);
    with_count(m.queries, [&](auto count) { attend<count.value>(a, m, strip); });
}

// ---- backward ------------------------------------------------------------------------------------------------------------

// The weights of some pixels again, and the gradients of their scores.
template <int Count>
VSSM_INLINE void weigh_again(const Neighborhood &a, const Patch &m, const View &view, int count) {
    float totals[Count];
    weigh<Count>(a, m, view, totals);
    Vec common[Count] = {};
    for (int64_t r = 0; r < view.rows; ++r)
        for (int64_t v = 0; v < view.vectors; ++v) {
            Vec grad[Count];
            const float *turned = m.turned_values + turned_at(m, view, r, a.value_channels) + v * kLanes;
            multiply<Count>(m, m.grad_y, m.value_row, turned, a.value_channels, grad);
            for (int i = 0; i < Count; ++i) {
                const int64_t at = (i * view.rows + r) * view.vectors + v;
                m.scores[at] = i < count ? m.scores[at] / totals[i] : Vec{};
                m.grad_scores[at] = m.seen[i * m.vectors + v] ? grad[i] : Vec{};
                common[i] += m.scores[at] * m.grad_scores[at];
            }
        }
    for (int i = 0; i < Count; ++i) {
        const float sum = sum_lanes(common[i]);
        for (int64_t r = 0; r < view.rows; ++r)
            for (int64_t v = 0; v < view.vectors; ++v) {
                const int64_t at = (i * view.rows + r) * view.vectors + v;
                const Vec grad = m.scores[at] * (m.grad_scores[at] - sum);
                m.grad_scores[at] = grad;
                if (a.bias) {
                    float *to = m.grad_bias + view.bias + r * m.bias_row + v * kLanes - i;
                    store(to, load(to) + grad);
                }
            }
    }
}

template <int Count>
VSSM_INLINE void attend_grad(const Neighborhood &a, const Patch &m, const Strip &strip, int64_t unit) {
    for (int64_t place = 0; place < strip.group; ++place) {
        const int64_t row = strip.row(a, place);
        pack_row(a, m, a.k, a.k_strides, a.channels, strip.image, row, strip.head, m.keys + place * a.channels * m.width,
                    m.lying_keys + place * m.width * m.key_row);
        pack_row(a, m, a.v, a.v_strides, a.value_channels, strip.image, row, strip.head,
                    m.turned_values + place * a.value_channels * m.width, nullptr);
    }
    const int64_t table = 2 * a.window_width - 1, tables = 2 * a.window_height - 1;
    for (int64_t i = 0; i < strip.group * m.width * m.key_row; ++i) m.grad_keys[i] = 0;
    for (int64_t i = 0; i < strip.group * m.width * m.value_row; ++i) m.grad_values[i] = 0;
    for (int64_t i = 0; i < tables * m.bias_row; ++i) m.grad_bias[i] = 0;
    for (int64_t i = 0; i < Count * m.value_row; ++i) m.grad_y[i] = 0;

    each_tile<Count>(a, m, strip, [&](const View &view, int count, int64_t pixel) {
        for (int i = 0; i < count; ++i) {
            const int64_t at = (pixel + i * a.dilation_width) * a.heads + strip.head;
            copy_floats(a.grad_y + at * a.value_channels, a.value_channels, m.grad_y + i * m.value_row);
        }
        weigh_again<Count>(a, m, view, count);
        add_seen<Count>(m, view, m.scores, m.grad_y, m.grad_values, m.value_row);
        add_seen<Count>(m, view, m.grad_scores, m.q, m.grad_keys, m.key_row);
        sum_seen<Count>(m, view, m.grad_scores, m.lying_keys, m.key_row);
        for (int i = 0; i < count; ++i) {
            const int64_t at = (pixel + i * a.dilation_width) * a.heads + strip.head;
            store_row(a.grad_q + at * a.channels, m.sums + i * m.key_row, a.channels, static_cast<float>(a.scale));
        }
    });

    for (int64_t place = 0; place < strip.group; ++place) {
        int64_t packed = place * m.width;
        for (int64_t first = 0; first < a.dilation_width && first < a.width; ++first)
            for (int64_t column = first; column < a.width; column += a.dilation_width, ++packed) {
                const int64_t pixel = (strip.image * a.height + strip.row(a, place)) * a.width + column;
                const int64_t at = pixel * a.heads + strip.head;
                // The queries were multiplied by log2(e), too.
                store_row(a.grad_k + at * a.channels, m.grad_keys + packed * m.key_row, a.channels, 1 / kLog2e);
                store_row(a.grad_v + at * a.value_channels, m.grad_values + packed * m.value_row, a.value_channels, 1);
            }
    }
    for (int64_t r = 0; a.bias && r < tables; ++r)
        for (int64_t i = 0; i < table; ++i)
            a.grad_bias[(unit * tables + r) * table + i] = m.grad_bias[r * m.bias_row + m.bias_left + i];
}

// A unit is all rows of one remainder, of a head of an image, so that no two units add to the same place.
static void neighborhood_grad(const Neighborhood &a, int64_t unit, void *memory) {
    const Strip strip(a, unit);
    const Patch m(a, memory);
    with_count(m.queries, [&](auto count) { attend_grad<count.value>(a, m, strip, unit); });
}

}  // namespace

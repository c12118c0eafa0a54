// The C ABI: picks the variant of the kernels for this processor, shares the work among threads, adds up the shares.
//
// No OpenMP pragma and no OpenMP library here. The host process already has a thread pool (that of PyTorch's OpenMP runtime)
// and a second one, spinning on the same cores, would slow the whole model down. So the caller passes the address of that
// runtime's GOMP_parallel, the entry point that GCC compiles `#pragma omp parallel` to; without it, plain threads do.

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "scan_args.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define VSSM_EXPORT extern "C" __attribute__((visibility("default")))

namespace vssm {
namespace {

// Raised whenever a signature or a meaning below changes; cpu_library.py refuses any other.
constexpr int kAbiVersion = 8;

typedef void (*GompParallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
std::atomic<GompParallel> gomp_parallel{nullptr};

#if defined(__x86_64__) && defined(VSSM_HAVE_AVX2)
// Clang 14 does not know it in __builtin_cpu_supports.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const Kernels *supported(const char *name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#if defined(VSSM_HAVE_AVX512)
    if (!std::strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                   ? &avx512_kernels
                   : nullptr;
#endif
#if defined(VSSM_HAVE_AVX2)
    if (!std::strcmp(name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() ? &avx2_kernels : nullptr;
#endif
#endif
    return std::strcmp(name, "baseline") ? nullptr : &baseline_kernels;
}

const Kernels *best() {
    for (const char *name : {"avx512", "avx2"})
        if (const Kernels *kernels = supported(name)) return kernels;
    return &baseline_kernels;
}

std::atomic<const Kernels *> current{nullptr};

const Kernels &kernels() {
    const Kernels *chosen = current.load();
    if (!chosen) current.store(chosen = best());
    return *chosen;
}

// A state that decays towards zero passes through the subnormal numbers, where an x86 core takes a hundred times longer for
// every multiplication. They are below anything float32 results are compared at, so they become zero while a kernel runs.
class FlushSubnormals {
   public:
#if defined(__x86_64__)
    FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushSubnormals() { _mm_setcsr(saved_); }

   private:
    unsigned saved_;
#else
    FlushSubnormals() {}
#endif
};

// Units go to whichever thread is free: no result depends on which thread computed it.
template <class Work>
struct Job {
    Work work;
    int64_t units;
    char *scratch;
    size_t scratch_bytes;
    std::atomic<int64_t> next_unit{0};
    std::atomic<int> next_thread{0};

    Job(Work work, int64_t units, char *scratch, size_t scratch_bytes)
        : work(work), units(units), scratch(scratch), scratch_bytes(scratch_bytes) {}

    static void run(void *data) {
        Job &job = *static_cast<Job *>(data);
        const FlushSubnormals flush;
        char *mine = job.scratch + job.next_thread++ * job.scratch_bytes;
        for (int64_t unit; (unit = job.next_unit++) < job.units;) job.work(unit, mine);
    }
};

// Whether the scratch memory could be had.
template <class Work>
bool parallel(int64_t units, int threads, size_t scratch_bytes, Work work) {
    threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, units)));
    // A line more than whole pages apart: threads share no line, and their buffers do not all start in the same cache set.
    scratch_bytes = (scratch_bytes + 4095) / 4096 * 4096 + 64;
    std::unique_ptr<char, void (*)(void *)> memory(static_cast<char *>(std::malloc(threads * scratch_bytes + 64)),
                                                   std::free);
    if (!memory) return false;
    char *aligned = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
    Job<Work> job(work, units, aligned, scratch_bytes);
    const GompParallel gomp = gomp_parallel.load();
    if (threads == 1) {
        Job<Work>::run(&job);
    } else if (gomp) {
        gomp(Job<Work>::run, &job, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> others;
        try {
            while (static_cast<int>(others.size()) < threads - 1) others.emplace_back(Job<Work>::run, &job);
        } catch (const std::system_error &) {
            // As many threads as the system grants will do: the loop below takes every unit that is left.
        }
        Job<Work>::run(&job);
        for (std::thread &other : others) other.join();
    }
    return true;
}

// Sums `parts` rows of `count` in order, row p at parts_data + p * stride, into out.
template <class T>
void sum_in_order(const T *parts_data, int64_t parts, int64_t stride, int64_t count, float *out) {
    for (int64_t i = 0; i < count; ++i) {
        T sum = 0;
        for (int64_t p = 0; p < parts; ++p) sum += parts_data[p * stride + i];
        out[i] = static_cast<float>(sum);
    }
}

// ---- the 2-D scan --------------------------------------------------------------------------------------------------------

// Whether to give every sequence to a thread of its own, with a result of its own that is added up afterwards: where there
// is too little else to share out. The sum is made in the order of the sequential walk, so that the bits are the same.
bool split_routes(int64_t sequences, int64_t units, int threads) {
    return threads > 1 && sequences > 1 && units < 2 * threads;
}

// Adds up the results kept apart, (images, positions, routes, channels), into (images, positions, channels).
bool sum_routes(const Scan2d &s, const float *apart, int64_t images, bool backwards, int threads, float *out) {
    constexpr int64_t kPositions = 64;
    std::vector<int64_t> order;
    for (int64_t k = 0; k < s.sequences; ++k)
        for (int64_t i = 0, count = s.first_route[k + 1] - s.first_route[k]; i < count; ++i)
            order.push_back(s.first_route[k] + (backwards ? count - 1 - i : i));
    const int64_t rows = images * s.positions;
    const auto work = [&](int64_t unit, void *) {
        for (int64_t row = unit * kPositions; row < std::min(rows, (unit + 1) * kPositions); ++row) {
            float *to = out + row * s.channels;
            const float *from = apart + row * s.routes * s.channels;
            std::memcpy(to, from + order[0] * s.channels, s.channels * sizeof(float));
            for (size_t i = 1; i < order.size(); ++i)
                for (int64_t c = 0; c < s.channels; ++c) to[c] += from[order[i] * s.channels + c];
        }
    };
    return parallel((rows + kPositions - 1) / kPositions, threads, 0, work);
}

// Adds up the strips' shares of one sequence of an image and puts the rows back on the maps.
void place_shares(const Backward2d &args, int64_t unit, float *grad_dt, float *grad_B, float *grad_C) {
    const Scan2d &s = *args.scan;
    const int64_t i = unit / s.sequences, k = unit % s.sequences, length = s.length(k), stride = length * args.rows();
    const int32_t *visited = s.visited + s.starts[k];
    const float *share = args.share(i, k, 0);
    const auto place = [&](float *map, int64_t width) {
        map += ((args.image + i) * s.positions * s.sequences + k) * width;
        const int64_t step = s.sequences * width;
        const bool add = !s.simple(k);
        if (add)
            for (int64_t p = 0; p < s.positions; ++p) std::fill_n(map + p * step, width, 0.0f);
        // A stretch of the rows at a time, so that the lines of the map are still in the cache for the next row.
        constexpr int64_t kSteps = 64;
        for (int64_t start = 0; start < length; start += kSteps) {
            const int64_t count = std::min(kSteps, length - start);
            for (int64_t n = 0; n < width; ++n) {
                float sum[kSteps];
                std::memcpy(sum, share + n * length + start, count * sizeof(float));
                for (int64_t strip = 1; strip < args.strips; ++strip)
                    for (int64_t t = 0; t < count; ++t) sum[t] += share[strip * stride + n * length + start + t];
                for (int64_t t = 0; t < count; ++t) {
                    float &to = map[visited[start + t] * step + n];
                    to = add ? to + sum[t] : sum[t];
                }
            }
        }
        share += width * length;
    };
    place(grad_B, s.states);
    if (s.C.data) place(grad_C, s.states);
    if (s.rank) place(grad_dt, s.rank);
}

// Adds up the sums of a block of channels over the places of a slab. Any gradient but that of A may be null.
void add_sums(const Scan2d &s, const double *sums, int64_t places, int lanes, int64_t unit, float *grad_A, float *grad_D,
              float *grad_bias, float *grad_weight) {
    const int64_t blocks = (s.channels + lanes - 1) / lanes, values = s.states + 2 + s.rank;
    const int64_t k = unit / blocks, first = unit % blocks * lanes, count = std::min<int64_t>(lanes, s.channels - first);
    const auto add = [&](float *out, int64_t value, int64_t width) {
        if (!out) return;
        out += (k * s.channels + first) * width;
        for (int64_t i = 0; i < width; ++i)
            for (int64_t r = 0; r < count; ++r) {
                double sum = 0;
                for (int64_t p = 0; p < places; ++p)
                    sum += sums[((p * s.sequences * blocks + unit) * values + value + i) * lanes + r];
                out[r * width + i] = static_cast<float>(sum);
            }
    };
    add(grad_A, 0, s.states);
    add(grad_D, s.states, 1);
    add(grad_bias, s.states + 1, 1);
    add(grad_weight, s.states + 2, s.rank);
}

typedef std::unique_ptr<void, void (*)(void *)> Memory;

Memory allocate(int64_t bytes) { return Memory(std::malloc(bytes + 1), std::free); }

}  // namespace
}  // namespace vssm

using namespace vssm;

VSSM_EXPORT int vssm_abi_version() { return kAbiVersion; }

// The address of the process's GOMP_parallel, or null for plain threads.
VSSM_EXPORT void vssm_set_gomp_parallel(void *function) {
    gomp_parallel.store(reinterpret_cast<GompParallel>(function));
}

VSSM_EXPORT const char *vssm_variant() { return kernels().name; }

// For tests and benchmarks: "avx512", "avx2", "baseline", or "" for the best. Returns 0, or 1 where it cannot run.
VSSM_EXPORT int vssm_set_variant(const char *name) {
    const Kernels *chosen = *name ? supported(name) : best();
    if (!chosen) return 1;
    current.store(chosen);
    return 0;
}

// D and delta_bias may be null. Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_selective_scan_fwd(const float *u, const float *delta, const float *A, const float *B, const float *C,
                                        const float *D, const float *delta_bias, float *y, float *last_state,
                                        int64_t batch, int64_t channels, int64_t groups, int64_t states, int64_t length,
                                        int softplus, int threads) {
    const Kernels &k = kernels();
    const ForwardArgs args{
        {batch, channels, groups, states, length, softplus != 0}, u, delta, A, B, C, D, delta_bias, y, last_state};
    const auto work = [&](int64_t unit, void *scratch) { k.forward(args, unit, scratch); };
    return !parallel(k.forward_units(args.shape), threads, k.forward_scratch_bytes(args.shape), work);
}

// grad_last_state may be null, and D with grad_D, delta_bias with grad_bias. Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_selective_scan_bwd(const float *grad_y, const float *grad_last_state, const float *u,
                                        const float *delta, const float *A, const float *B, const float *C, const float *D,
                                        const float *delta_bias, float *grad_u, float *grad_delta, float *grad_A,
                                        float *grad_B, float *grad_C, float *grad_D, float *grad_bias, int64_t batch,
                                        int64_t channels, int64_t groups, int64_t states, int64_t length, int softplus,
                                        int threads) {
    const Kernels &k = kernels();
    BackwardArgs args{{batch, channels, groups, states, length, softplus != 0},
                      grad_y, grad_last_state, u, delta, A, B, C, D, delta_bias, grad_u, grad_delta,
                      grad_B, grad_C, nullptr, nullptr, nullptr};
    const int64_t rows = batch * channels, strips = args.strips(), shared = states * length;

    const Memory images = allocate(rows * (states + 2) * sizeof(double));
    // With one strip to a group its share is the gradient.
    const size_t share_bytes = strips > 1 ? batch * groups * strips * shared * sizeof(float) : 0;
    const Memory shares = allocate(2 * share_bytes);
    if (!images || !shares) return 1;
    args.image_A = static_cast<double *>(images.get());
    args.image_D = args.image_A + rows * states;
    args.image_bias = args.image_D + rows;
    if (strips > 1) {
        args.strip_B = static_cast<float *>(shares.get());
        args.strip_C = args.strip_B + share_bytes / sizeof(float);
    }

    const auto work = [&](int64_t unit, void *scratch) { k.backward(args, unit, scratch); };
    if (!parallel(k.backward_units(args.shape), threads, k.backward_scratch_bytes(args.shape), work)) return 1;

    if (strips > 1) {
        const auto add_shares = [&](int64_t unit, void *) {
            const int64_t row = unit / 2 * length, part = (unit / 2 / states * strips * states + unit / 2 % states) * length;
            if (unit % 2)
                sum_in_order(args.strip_C + part, strips, shared, length, grad_C + row);
            else
                sum_in_order(args.strip_B + part, strips, shared, length, grad_B + row);
        };
        if (!parallel(2 * batch * groups * states, threads, 0, add_shares)) return 1;
    }
    sum_in_order(args.image_A, batch, channels * states, channels * states, grad_A);
    if (D) sum_in_order(args.image_D, batch, channels, channels, grad_D);
    if (delta_bias) sum_in_order(args.image_bias, batch, channels, channels, grad_bias);
    return 0;
}

// y is (batch, positions, channels), or (batch, positions, routes, channels) where the routes are not merged.
// Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_scan_2d_fwd(const Scan2d *scan, float *y, int threads) {
    const Kernels &k = kernels();
    Forward2d args{scan, !scan->merge, y};
    const bool split = scan->merge && split_routes(scan->sequences, k.forward_2d_units(args), threads);
    const int64_t apart_bytes = scan->batch * scan->positions * scan->routes * scan->channels * sizeof(float);
    const Memory apart = allocate(split ? apart_bytes : 0);
    if (!apart) return 1;
    if (split) {
        args.by_route = true;
        args.y = static_cast<float *>(apart.get());
    }
    const auto work = [&](int64_t unit, void *scratch) { k.forward_2d(args, unit, scratch); };
    if (!parallel(k.forward_2d_units(args), threads, k.forward_2d_scratch_bytes(*scan), work)) return 1;
    return split && !sum_routes(*scan, args.y, scan->batch, false, threads, y);
}

// Contiguous: grad_y as y above, the gradients as (batch, positions, [sequences,] ...) and as the parameters. Null where the
// argument is. Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_scan_2d_bwd(const Scan2d *scan, const float *grad_y, float *grad_u, float *grad_dt, float *grad_A,
                                 float *grad_B, float *grad_C, float *grad_D, float *grad_bias, float *grad_weight,
                                 int threads) {
    const Kernels &k = kernels();
    const Scan2d &s = *scan;
    const int64_t slab = std::min(s.batch, kSlab), blocks = s.sequences * ((s.channels + k.lanes - 1) / k.lanes);
    Backward2d args{};
    args.scan = scan;
    args.grad_y = grad_y;
    args.grad_dt = grad_dt;

    // Enough strips to share out, and no more: they all have shares. This looks at the shape alone, since how the sums are
    // cut decides their last bits.
    constexpr int64_t kUnits = 8;
    const int64_t wanted = slab ? (kUnits + slab - 1) / slab : 1;
    args.strip = ((s.channels + wanted - 1) / wanted + kStrip - 1) / kStrip * kStrip;
    args.strips = (s.channels + args.strip - 1) / args.strip;
    args.by_route = s.own_input || split_routes(s.sequences, slab * args.strips, threads);
    const bool split = args.by_route && !s.own_input;

    const int64_t map = s.positions * s.channels;
    const int64_t share_count = slab * s.starts[s.sequences] * args.strips * args.rows();
    const int64_t sum_count = slab * blocks * (s.states + 2 + s.rank) * k.lanes;
    const Memory shares = allocate(share_count * sizeof(float)), sums(std::calloc(sum_count + 1, sizeof(double)), std::free);
    const Memory apart = allocate(split ? slab * s.routes * map * sizeof(float) : 0);
    if (!shares || !sums || !apart) return 1;
    args.shares = static_cast<float *>(shares.get());
    args.sums = static_cast<double *>(sums.get());
    args.grad_u = split ? static_cast<float *>(apart.get()) : grad_u;

    const auto scan_strip = [&](int64_t unit, void *scratch) { k.backward_2d(args, unit, scratch); };
    const auto place = [&](int64_t unit, void *) { place_shares(args, unit, grad_dt, grad_B, grad_C); };
    for (args.image = 0; args.image < s.batch; args.image += slab) {
        args.images = std::min(slab, s.batch - args.image);
        if (!parallel(k.backward_2d_units(args), threads, k.backward_2d_scratch_bytes(s), scan_strip)) return 1;
        if (!parallel(args.images * s.sequences, threads, 0, place)) return 1;
        if (split && !sum_routes(s, args.grad_u, args.images, true, threads, grad_u + args.image * map)) return 1;
    }

    const auto add = [&](int64_t unit, void *) {
        add_sums(s, args.sums, slab, k.lanes, unit, grad_A, grad_D, grad_bias, grad_weight);
    };
    return !parallel(blocks, threads, 0, add);
}

// y is (batch, positions, channels). Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_mamba_fwd(const Mamba *mamba, float *y, int threads) {
    const Kernels &k = kernels();
    const Scan2d &s = *mamba->scan;
    // Two tiles a thread, but no more than stay in the second-level cache. No result depends on how they are cut.
    const int64_t share = (s.batch * s.positions + 2 * threads - 1) / (2 * threads);
    const MambaTiles tiles{mamba, y, std::min<int64_t>(64, (share + 3) / 4 * 4)};
    const auto inputs = [&](int64_t unit, void *scratch) { k.mamba_inputs(tiles, unit, scratch); };
    const auto gate = [&](int64_t unit, void *) { k.mamba_gate(tiles, unit); };
    const size_t scratch_bytes = mamba->taps * k.lanes * sizeof(float);
    return !parallel(tiles.units(), threads, scratch_bytes, inputs) || vssm_scan_2d_fwd(mamba->scan, y, threads) ||
           !parallel(tiles.units(), threads, 0, gate);
}

// Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_depthwise(const Depthwise *args, int threads) {
    const Kernels &k = kernels();
    const auto work = [&](int64_t unit, void *scratch) { k.depthwise(*args, unit, scratch); };
    return !parallel(args->images * args->out_height, threads, k.depthwise_scratch_bytes(*args), work);
}

// Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_depthwise_grad(const DepthwiseGrad *args, int threads) {
    const Kernels &k = kernels();
    const auto work = [&](int64_t unit, void *scratch) { k.depthwise_grad(*args, unit, scratch); };
    return !parallel(args->parts, threads, 0, work);
}

// Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_deform(const Deform *args, int threads) {
    const Kernels &k = kernels();
    const bool backwards = args->grad;
    const auto work = [&](int64_t unit, void *scratch) {
        (backwards ? k.deform_grad : k.deform)(*args, unit, scratch);
    };
    return !parallel(args->images * (backwards ? args->groups : args->height), threads, 0, work);
}

// Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_neighborhood(const Neighborhood *args, int threads) {
    const Kernels &k = kernels();
    const auto work = [&](int64_t unit, void *scratch) {
        (args->grad_y ? k.neighborhood_grad : k.neighborhood)(*args, unit, scratch);
    };
    return !parallel(args->units(), threads, k.neighborhood_scratch_bytes(*args), work);
}

// Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_ssd(const Ssd *args, int threads) {
    const Kernels &k = kernels();
    if (args->grad_y) {
        const auto work = [&](int64_t unit, void *scratch) { k.ssd_grad(*args, unit, scratch); };
        return !parallel(args->batch * args->groups, threads, k.ssd_grad_scratch_bytes(*args), work);
    }
    const auto work = [&](int64_t unit, void *scratch) { k.ssd(*args, unit, scratch); };
    return !parallel(k.ssd_units(*args), threads, k.ssd_scratch_bytes(*args), work);
}

// Returns 0, or 1 when out of memory.
VSSM_EXPORT int vssm_norm(const Norm *args, int threads) {
    const Kernels &k = kernels();
    const auto work = [&](int64_t unit, void *scratch) { k.norm(*args, unit, scratch); };
    return !parallel(k.norm_units(*args), threads, k.norm_scratch_bytes(*args), work);
}

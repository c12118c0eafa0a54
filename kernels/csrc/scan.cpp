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
#include <immintrin.h>
#endif

#define VSSM_EXPORT extern "C" __attribute__((visibility("default")))

namespace vssm {
namespace {

// Raised whenever a signature or a meaning below changes; cpu.py refuses any other.
constexpr int kAbiVersion = 1;

typedef void (*GompParallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);
std::atomic<GompParallel> gomp_parallel{nullptr};

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
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &avx2_kernels : nullptr;
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

    typedef std::unique_ptr<void, void (*)(void *)> Memory;
    const Memory images(std::malloc(rows * (states + 2) * sizeof(double) + 1), std::free);
    // With one strip to a group its share is the gradient.
    const size_t share_bytes = strips > 1 ? batch * groups * strips * shared * sizeof(float) : 0;
    const Memory shares(std::malloc(2 * share_bytes + 1), std::free);
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

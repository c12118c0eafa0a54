#include "scan_kernel.h"

namespace vssm {

const Kernels avx512_kernels = VSSM_KERNELS("avx512");

}  // namespace vssm

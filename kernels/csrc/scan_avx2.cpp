#include "scan_kernel.h"

namespace vssm {

const Kernels avx2_kernels = VSSM_KERNELS("avx2");

}  // namespace vssm

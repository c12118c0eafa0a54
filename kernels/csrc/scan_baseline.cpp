#include "scan_kernel.h"

namespace vssm {

const Kernels baseline_kernels = VSSM_KERNELS("baseline");

}  // namespace vssm

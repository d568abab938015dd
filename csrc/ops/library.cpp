// SPDX-License-Identifier: MIT
// Opens the `genimg_fast` namespace of torch.ops and ties the CPU kernels' threads to torch's pool, so that
// torch.set_num_threads and DataLoader workers are obeyed.  Each op registers itself in ops/<op>.cpp.
#include "cpu/convolution_variant.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "ops/tensor.h"

namespace genimg_fast {

namespace cpu {

void parallel_for_range(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context) {
  torch_parallel_for(begin, end, grain, function, context);
}

int64_t thread_count() {
  uint32_t count = 1;
  torch_get_num_threads(&count);
  return count;
}

}  // namespace cpu

namespace {

int64_t best_cpu_isa() { return static_cast<int64_t>(cpu::best_isa()); }
int64_t cpu_isa() { return static_cast<int64_t>(cpu::active_isa()); }
bool set_cpu_isa(int64_t isa) { return cpu::set_active_isa(static_cast<cpu::Isa>(isa)); }
int64_t cpu_variant() { return static_cast<int64_t>(cpu::forced_variant()); }
void set_cpu_variant(int64_t variant) { cpu::force_variant(static_cast<cpu::Variant>(variant)); }
bool cpu_allow_winograd() { return cpu::winograd_allowed(); }
void set_cpu_allow_winograd(bool allowed) { cpu::allow_winograd(allowed); }

// All of the above in one number: what a packed weight depends on besides its convolution.
int64_t cpu_settings() { return (cpu_isa() << 8) + (cpu_variant() << 1) + cpu_allow_winograd(); }

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("best_cpu_isa() -> int");
  library.def("cpu_isa() -> int");
  library.def("set_cpu_isa(int isa) -> bool");
  library.def("cpu_variant() -> int");
  library.def("set_cpu_variant(int variant) -> ()");
  library.def("cpu_allow_winograd() -> bool");
  library.def("set_cpu_allow_winograd(bool allowed) -> ()");
  library.def("cpu_settings() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CompositeExplicitAutograd, library) {
  library.impl("best_cpu_isa", TORCH_BOX(&genimg_fast::best_cpu_isa));
  library.impl("cpu_isa", TORCH_BOX(&genimg_fast::cpu_isa));
  library.impl("set_cpu_isa", TORCH_BOX(&genimg_fast::set_cpu_isa));
  library.impl("cpu_variant", TORCH_BOX(&genimg_fast::cpu_variant));
  library.impl("set_cpu_variant", TORCH_BOX(&genimg_fast::set_cpu_variant));
  library.impl("cpu_allow_winograd", TORCH_BOX(&genimg_fast::cpu_allow_winograd));
  library.impl("set_cpu_allow_winograd", TORCH_BOX(&genimg_fast::set_cpu_allow_winograd));
  library.impl("cpu_settings", TORCH_BOX(&genimg_fast::cpu_settings));
}

// SPDX-License-Identifier: MIT
// Opens the `genimg_fast` namespace of torch.ops and ties the CPU kernels' threads to torch's pool, so that
// torch.set_num_threads and DataLoader workers are obeyed.  Each op registers itself in ops/<op>.cpp.
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

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("best_cpu_isa() -> int");
  library.def("cpu_isa() -> int");
  library.def("set_cpu_isa(int isa) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CompositeExplicitAutograd, library) {
  library.impl("best_cpu_isa", TORCH_BOX(&genimg_fast::best_cpu_isa));
  library.impl("cpu_isa", TORCH_BOX(&genimg_fast::cpu_isa));
  library.impl("set_cpu_isa", TORCH_BOX(&genimg_fast::set_cpu_isa));
}

// SPDX-License-Identifier: MIT
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu {
namespace {

const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable"; }

bool isa_from_name(const char* name, Isa* isa) {
  for (Isa candidate : {Isa::portable, Isa::avx2, Isa::avx512})
    if (std::strcmp(name, isa_name(candidate)) == 0) {
      *isa = candidate;
      return true;
    }
  return false;
}

Isa initial_isa() {
  Isa asked;
  const char* name = std::getenv("GENIMG_FAST_CPU_ISA");
  if (name && isa_from_name(name, &asked) && asked <= best_isa()) return asked;
  return best_isa();
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{initial_isa()};
  return isa;
}

}  // namespace

Isa best_isa() {
#if GENIMG_FAST_X86_BODIES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::portable;
}

Isa active_isa() { return current().load(std::memory_order_relaxed); }

bool set_active_isa(Isa isa) {
  if (isa > best_isa()) return false;
  current().store(isa, std::memory_order_relaxed);
  return true;
}

}  // namespace genimg_fast::cpu

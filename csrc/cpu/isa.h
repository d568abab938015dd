// SPDX-License-Identifier: MIT
// Which instruction set the kernels run on.  Every kernel body is compiled once per instruction set (foreach_isa.h) and
// chosen here at run time, so one binary is fast on a new CPU and legal on an old one.
#pragma once
#include <cstdint>

namespace genimg_fast::cpu {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

Isa best_isa();            // the widest this CPU and this binary have
Isa active_isa();          // best_isa(), or what set_active_isa() or GENIMG_FAST_CPU_ISA asked for
bool set_active_isa(Isa);  // false, and no change, if the CPU lacks it

// GENIMG_FAST_VECTOR_BYTES of the bodies compiled for it.
inline int64_t vector_bytes(Isa isa) { return 16 << static_cast<int>(isa); }

}  // namespace genimg_fast::cpu

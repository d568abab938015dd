// SPDX-License-Identifier: MIT
// Kernels that are wrong on purpose, in the notation of csrc/cpu: the sanitizers must end each of them.  All go over
// `count` floats at `x`, and beyond.
#ifndef GENIMG_FAST_ISA

#include "cpu/aligned_array.h"

#define GENIMG_FAST_KERNEL_FILE "../tests/sanitize/controls.cpp"
#include "cpu/foreach_isa.h"

#define CONTROL(name)                                                                    \
  extern "C" __attribute__((visibility("default"))) void name(float* x, int64_t count) { \
    GENIMG_FAST_DISPATCH_ISA(name(x, count));                                            \
  }
CONTROL(in_bounds)
CONTROL(read_past_the_end)
CONTROL(write_past_the_end)
CONTROL(read_past_packed_weights)
CONTROL(misaligned)
CONTROL(overflowing_index)

#else  // once per instruction set

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

void in_bounds(float* x, int64_t count) {
  for_each_vector<float>(0, count, [&](int64_t i, auto tail) { store(x + i, load(x + i, tail), tail); });
}

void read_past_the_end(float* x, int64_t count) {  // a last vector that is whole where it should be a part
  volatile float last = load(x + count - kLanes<float> + 1)[kLanes<float> - 1];
  (void)last;
}

void write_past_the_end(float* x, int64_t count) { store(x + count - kLanes<float> + 1, Vec<float>{}); }

void read_past_packed_weights(float* x, int64_t count) {
  const auto packed = aligned_array<float>(count);
  __builtin_memcpy(packed.get(), x, count * sizeof(float));
  read_past_the_end(packed.get(), count);
}

void misaligned(float* x, int64_t count) {
  *reinterpret_cast<Vec<float>*>(x + count % kLanes<float>) = broadcast(1.0f);
}

void overflowing_index(float* x, int64_t count) {
  volatile int32_t index = 1 << 30;
  x[(index * static_cast<int32_t>(4 + count)) % count] = 0;
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

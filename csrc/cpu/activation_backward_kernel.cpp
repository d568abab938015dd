// SPDX-License-Identifier: MIT
// Backward of an activation from its output: 2 reads, 1 write.
#ifndef GENIMG_FAST_ISA

#include "cpu/activation_backward_kernel.h"

#define GENIMG_FAST_KERNEL_FILE "cpu/activation_backward_kernel.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu {

template <typename T>
void activation_backward(const T* grad, const T* output, int64_t numel, Activation activation, T negative_slope,
                         T* grad_input) {
  parallel_for(0, numel, 4 * kChunk, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(
        activation_backward_range<T>(grad, output, activation, negative_slope, grad_input, begin, end));
  });
}

#define INSTANTIATE(T) template void activation_backward<T>(const T*, const T*, int64_t, Activation, T, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "cpu/vec_activation.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
void activation_backward_range(const T* grad, const T* output, Activation activation, T slope, T* grad_input,
                               int64_t begin, int64_t end) {
  with_activation(activation, [&](auto tag) {
    for_each_vector<T>(begin, end, [&](int64_t i, auto count) {
      const Vec<T> of_output = load(grad + i, count), y = load(output + i, count);
      store(grad_input + i, activate_backward_from_output<tag.value, T>(of_output, y, slope), count);
    });
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

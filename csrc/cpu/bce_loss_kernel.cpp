// SPDX-License-Identifier: MIT
// Binary cross-entropy of probabilities on the CPU: one read of input and target (and weight), one write of the loss,
// if it is not reduced, and one of the gradient, if it is wanted.
#ifndef GENIMG_FAST_ISA

#define GENIMG_FAST_KERNEL_FILE "cpu/bce_loss_kernel.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/bce_loss_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
double bce_loss(const BceOperands<T>& operands, BceOutside* outside) {
  int32_t input_outside = 0, target_outside = 0;
  const double sum = parallel_sum(operands.numel, [&](int64_t begin, int64_t end) {
    return GENIMG_FAST_DISPATCH_ISA(bce_partial<T>(operands, begin, end, &input_outside, &target_outside));
  });
  *outside = {input_outside != 0, target_outside != 0};
  return sum;
}

template double bce_loss<float>(const BceOperands<float>&, BceOutside*);
template double bce_loss<double>(const BceOperands<double>&, BceOutside*);

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "common/bce.h"
#include "cpu/vec_bce.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
GF_INLINE Mask<T> outside_unit_interval(Vec<T> v) {
  return ~((v >= 0) & (v <= 1));  // so that NaN is outside
}

template <typename T>
GF_INLINE void set_if_any(Mask<T> mask, int32_t* flag) {
  int32_t any = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) any |= mask[lane] != 0;
  if (any) __atomic_store_n(flag, 1, __ATOMIC_RELAXED);  // other threads may write it too
}

template <typename T>
double bce_partial(const BceOperands<T>& operands, int64_t begin, int64_t end, int32_t* input_outside,
                   int32_t* target_outside) {
  const T grad_scale = T(operands.grad_scale);
  Mask<T> inputs_outside{}, targets_outside{};
  const double sum = sum_over<T>(begin, end, [&](int64_t i, auto count) {
    const Vec<T> input = load(operands.input + i, count), target = load(operands.target + i, count);
    const Vec<T> weight = operands.weight ? load(operands.weight + i, count) : broadcast(T(1));
    const BceTerm<T> term = bce_term<T>(input, target);
    const Vec<T> loss = weight * term.loss;
    inputs_outside |= outside_unit_interval<T>(input);
    targets_outside |= outside_unit_interval<T>(target);
    if (operands.loss) store(operands.loss + i, loss, count);
    if (operands.grad) store(operands.grad + i, grad_scale * weight * term.grad, count);
    return loss;
  });
  set_if_any<T>(inputs_outside, input_outside);
  set_if_any<T>(targets_outside, target_outside);
  return sum;
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

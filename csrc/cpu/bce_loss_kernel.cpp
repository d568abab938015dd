// SPDX-License-Identifier: MIT
// Binary cross-entropy of probabilities on the CPU: one read of input and target (and weight), one write of the loss,
// if it is not reduced, and one of the gradient, if it is wanted.
#ifndef GENIMG_FAST_ISA

#define GENIMG_FAST_KERNEL_FILE "cpu/bce_loss_kernel.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/bce_loss_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
double bce_loss(const BceOperands<T>& operands, bool* outside) {
  int32_t any_outside = 0;
  const double sum = parallel_sum(operands.numel, [&](int64_t begin, int64_t end) {
    return GENIMG_FAST_DISPATCH_ISA(bce_partial<T>(operands, begin, end, &any_outside));
  });
  *outside = any_outside != 0;
  return sum;
}

template double bce_loss<float>(const BceOperands<float>&, bool*);
template double bce_loss<double>(const BceOperands<double>&, bool*);

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "common/bce.h"
#include "cpu/vec_bce.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
double bce_partial(const BceOperands<T>& operands, int64_t begin, int64_t end, int32_t* any_outside) {
  const T grad_scale = T(operands.grad_scale);
  Mask<T> outside{};
  const double sum = sum_over<T>(begin, end, [&](int64_t i, auto count) {
    const Vec<T> input = load(operands.input + i, count);
    const Vec<T> weight = operands.weight ? load(operands.weight + i, count) : broadcast(T(1));
    const BceTerm<T> term = bce_term<T>(input, load(operands.target + i, count));
    const Vec<T> loss = weight * term.loss;
    outside |= ~((input >= 0) & (input <= 1));
    if (operands.loss) store(operands.loss + i, loss, count);
    if (operands.grad) store(operands.grad + i, grad_scale * weight * term.grad, count);
    return loss;
  });
  int32_t found = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) found |= outside[lane] != 0;
  if (found) __atomic_store_n(any_outside, 1, __ATOMIC_RELAXED);  // other threads may write it too
  return sum;
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

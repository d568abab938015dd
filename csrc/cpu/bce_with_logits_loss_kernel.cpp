// SPDX-License-Identifier: MIT
// Binary cross-entropy of logits on the CPU: one read of input and target (and weights), one write of the loss, if it
// is not reduced, and one of the gradient, if it is wanted.
#ifndef GENIMG_FAST_ISA

#define GENIMG_FAST_KERNEL_FILE "cpu/bce_with_logits_loss_kernel.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/bce_with_logits_loss_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
double bce_with_logits_loss(const BceOperands<T>& operands) {
  return parallel_sum(operands.numel, [&](int64_t begin, int64_t end) {
    return GENIMG_FAST_DISPATCH_ISA(bce_with_logits_partial<T>(operands, begin, end));
  });
}

template double bce_with_logits_loss<float>(const BceOperands<float>&);
template double bce_with_logits_loss<double>(const BceOperands<double>&);

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "common/bce.h"
#include "cpu/vec_bce.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
double bce_with_logits_partial(const BceOperands<T>& operands, int64_t begin, int64_t end) {
  const T grad_scale = T(operands.grad_scale);
  return sum_over<T>(begin, end, [&](int64_t i, auto count) {
    const Vec<T> weight = operands.weight ? load(operands.weight + i, count) : broadcast(T(1));
    const Vec<T> input = load(operands.input + i, count), target = load(operands.target + i, count);
    const BceTerm<T> term = operands.pos_weight
                                ? bce_with_logits_term<T>(input, target, load(operands.pos_weight + i, count))
                                : bce_with_logits_term<T>(input, target);
    const Vec<T> loss = weight * term.loss;
    if (operands.loss) store(operands.loss + i, loss, count);
    if (operands.grad) store(operands.grad + i, grad_scale * weight * term.grad, count);
    return loss;
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

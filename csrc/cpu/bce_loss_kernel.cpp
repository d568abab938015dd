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

// The largest bit pattern of a range of values, read as unsigned: one instruction a vector tells whether all of them
// lie between 0 and 1.  -0 lies there too and is the one exception, for which the range is read again.
template <typename T>
class UnitInterval {
  using Lane = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  typedef Lane Bits __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));

 public:
  GF_INLINE void see(Vec<T> v) {
    Bits bits;
    __builtin_memcpy(&bits, &v, sizeof v);
    largest_ = bits > largest_ ? bits : largest_;
  }
  void check(const T* first, const T* last, int32_t* outside) const {
    Bits one;
    const Vec<T> ones = broadcast(T(1));
    __builtin_memcpy(&one, &ones, sizeof one);
    bool suspect = false;
    for (int lane = 0; lane < kLanes<T>; ++lane) suspect |= largest_[lane] > one[lane];
    for (; suspect && first < last; ++first)
      if (!(*first >= 0 && *first <= 1)) __atomic_store_n(outside, 1, __ATOMIC_RELAXED);  // other threads may write it
  }

 private:
  Bits largest_{};
};

template <typename T>
double bce_partial(const BceOperands<T>& operands, int64_t begin, int64_t end, int32_t* input_outside,
                   int32_t* target_outside) {
  const T grad_scale = T(operands.grad_scale);
  UnitInterval<T> inputs, targets;
  const double sum = sum_over<T>(begin, end, [&](int64_t i, auto count) {
    const Vec<T> input = load(operands.input + i, count), target = load(operands.target + i, count);
    const Vec<T> weight = operands.weight ? load(operands.weight + i, count) : broadcast(T(1));
    const BceTerm<T> term = bce_term<T>(input, target);
    const Vec<T> loss = weight * term.loss;
    inputs.see(input);
    targets.see(target);
    if (operands.loss) store(operands.loss + i, loss, count);
    if (operands.grad) store(operands.grad + i, grad_scale * weight * term.grad, count);
    return loss;
  });
  inputs.check(operands.input + begin, operands.input + end, input_outside);
  targets.check(operands.target + begin, operands.target + end, target_outside);
  return sum;
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

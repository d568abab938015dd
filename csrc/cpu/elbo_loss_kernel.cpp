// SPDX-License-Identifier: MIT
// The squared error of elbo_loss on the CPU: one read of recon and target, one write of the gradient, if it is wanted.
#ifndef GENIMG_FAST_ISA

#define GENIMG_FAST_KERNEL_FILE "cpu/elbo_loss_kernel.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/elbo_loss_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
double squared_error(const T* recon, const T* target, T* grad, double grad_scale, int64_t numel) {
  return parallel_sum(numel, [&](int64_t begin, int64_t end) {
    return GENIMG_FAST_DISPATCH_ISA(squared_error_partial<T>(recon, target, grad, T(grad_scale), begin, end));
  });
}

template double squared_error<float>(const float*, const float*, float*, double, int64_t);
template double squared_error<double>(const double*, const double*, double*, double, int64_t);

}  // namespace genimg_fast::cpu

#else  // once per instruction set

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
double squared_error_partial(const T* recon, const T* target, T* grad, T grad_scale, int64_t begin, int64_t end) {
  return sum_over<T>(begin, end, [&](int64_t i, auto count) {
    const Vec<T> difference = load(recon + i, count) - load(target + i, count);
    if (grad) store(grad + i, (grad_scale * T(2)) * difference, count);
    return difference * difference;
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

// SPDX-License-Identifier: MIT
// KL(N(mu, exp(logvar)) || N(0, I)) on the CPU: one read of mu and logvar, one write of the loss, if it is not reduced,
// and one of each gradient, if they are wanted.
#ifndef GENIMG_FAST_ISA

#define GENIMG_FAST_KERNEL_FILE "cpu/gaussian_kl_loss_kernel.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/gaussian_kl_loss_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
double gaussian_kl(const GaussianKlOperands<T>& operands) {
  return parallel_sum(operands.numel, [&](int64_t begin, int64_t end) {
    return GENIMG_FAST_DISPATCH_ISA(gaussian_kl_partial<T>(operands, begin, end));
  });
}

template double gaussian_kl<float>(const GaussianKlOperands<float>&);
template double gaussian_kl<double>(const GaussianKlOperands<double>&);

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "common/gaussian_kl.h"
#include "cpu/vec_gaussian_kl.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
double gaussian_kl_partial(const GaussianKlOperands<T>& operands, int64_t begin, int64_t end) {
  const T grad_scale = T(operands.grad_scale);
  return sum_over<T>(begin, end, [&](int64_t i, auto count) {
    const Vec<T> mu = load(operands.mu + i, count), logvar = load(operands.logvar + i, count), variance = exp(logvar);
    const Vec<T> loss = gaussian_kl_term<T>(mu, logvar, variance);
    if (operands.loss) store(operands.loss + i, loss, count);
    if (operands.grad_mu) {
      store(operands.grad_mu + i, grad_scale * mu, count);
      store(operands.grad_logvar + i, grad_scale * gaussian_kl_grad_logvar<T>(variance), count);
    }
    return loss;
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

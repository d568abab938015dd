// SPDX-License-Identifier: MIT
// KL(N(mu, exp(logvar)) || N(0, I)) on the CPU: one read of mu and logvar, one write (or none, for a sum).
#ifndef GENIMG_FAST_ISA

#define GENIMG_FAST_KERNEL_FILE "cpu/gaussian_kl_loss_kernel.cpp"
#include "cpu/foreach_isa.h"

#include "cpu/gaussian_kl_loss_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
void gaussian_kl(const T* mu, const T* logvar, T* out, int64_t numel) {
  parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(gaussian_kl_range<T>(mu, logvar, out, begin, end));
  });
}

template <typename T>
double gaussian_kl_sum(const T* mu, const T* logvar, int64_t numel) {
  return parallel_sum(numel, [&](int64_t begin, int64_t end) {
    return GENIMG_FAST_DISPATCH_ISA(gaussian_kl_partial<T>(mu, logvar, begin, end));
  });
}

template <typename T>
void gaussian_kl_backward(const T* grad, bool grad_is_scalar, double scale, const T* mu, const T* logvar, T* grad_mu,
                          T* grad_logvar, int64_t numel) {
  parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(
        gaussian_kl_backward_range<T>(grad, grad_is_scalar, T(scale), mu, logvar, grad_mu, grad_logvar, begin, end));
  });
}

#define INSTANTIATE(T)                                             \
  template void gaussian_kl<T>(const T*, const T*, T*, int64_t);   \
  template double gaussian_kl_sum<T>(const T*, const T*, int64_t); \
  template void gaussian_kl_backward<T>(const T*, bool, double, const T*, const T*, T*, T*, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

#else  // once per instruction set

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
GF_INLINE Vec<T> gaussian_kl_term(Vec<T> mu, Vec<T> logvar) {
  return T(0.5) * (mu * mu + exp(logvar) - T(1) - logvar);
}

template <typename T>
void gaussian_kl_range(const T* mu, const T* logvar, T* out, int64_t begin, int64_t end) {
  for_each_vector<T>(begin, end, [&](int64_t i, auto count) {
    store(out + i, gaussian_kl_term<T>(load(mu + i, count), load(logvar + i, count)), count);
  });
}

template <typename T>
double gaussian_kl_partial(const T* mu, const T* logvar, int64_t begin, int64_t end) {
  return sum_over<T>(begin, end, [&](int64_t i, auto count) {
    return gaussian_kl_term<T>(load(mu + i, count), load(logvar + i, count));
  });
}

template <typename T>
void gaussian_kl_backward_range(const T* grad, bool grad_is_scalar, T scale, const T* mu, const T* logvar, T* grad_mu,
                                T* grad_logvar, int64_t begin, int64_t end) {
  for_each_vector<T>(begin, end, [&](int64_t i, auto count) {
    const Vec<T> g = scale * (grad_is_scalar ? broadcast(*grad) : load(grad + i, count));
    store(grad_mu + i, g * load(mu + i, count), count);
    store(grad_logvar + i, g * T(0.5) * (exp(load(logvar + i, count)) - T(1)), count);
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

// SPDX-License-Identifier: MIT
// A sample of N(mu, exp(logvar)) and its KL divergence from N(0, I) on the CPU: one read of mu and logvar and one write
// of z forward, one read of mu, logvar and the gradient of z and one write of each gradient backward.
#ifndef GENIMG_FAST_ISA

#include "cpu/reparameterize_with_kl_kernel.h"

#include "common/philox.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GENIMG_FAST_KERNEL_FILE "cpu/reparameterize_with_kl_kernel.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu {

template <typename T>
double reparameterize_with_kl(const ReparameterizeWithKlOperands<T>& operands, uint64_t seed) {
  const auto partial = [&](int64_t begin, int64_t end) {
    return GENIMG_FAST_DISPATCH_ISA(reparameterize_with_kl_partial<T>(operands, seed, begin, end));
  };
  return parallel_sum(operands.numel, partial, kChunk);
}

template <typename T>
void reparameterize_with_kl_backward(const ReparameterizeWithKlGradients<T>& operands, uint64_t seed) {
  parallel_for_chunks(operands.numel, [&](int64_t begin, int64_t end) {
    GENIMG_FAST_DISPATCH_ISA(reparameterize_with_kl_backward_range<T>(operands, seed, begin, end));
  });
}

#define INSTANTIATE(T)                                                                              \
  template double reparameterize_with_kl<T>(const ReparameterizeWithKlOperands<T>&, uint64_t seed); \
  template void reparameterize_with_kl_backward<T>(const ReparameterizeWithKlGradients<T>&, uint64_t seed);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "cpu/vec_gaussian_kl.h"
#include "cpu/vec_reparameterize.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

template <typename T>
double reparameterize_with_kl_partial(const ReparameterizeWithKlOperands<T>& operands, uint64_t seed, int64_t begin,
                                      int64_t end) {
  return sum_over_loop<T>(begin, end, [&](int64_t first, int64_t last, const auto& add) {
    for_each_with_noise<T>(seed, first, last, [&](int64_t i, auto count, Vec<T> eps) {
      const Vec<T> mu = load(operands.mu + i, count), logvar = load(operands.logvar + i, count);
      store(operands.z + i, reparameterized<T>(mu, logvar, eps), count);
      const Vec<T> kl = gaussian_kl_term<T>(mu, logvar, exp(logvar));
      if (operands.kl) store(operands.kl + i, kl, count);
      add(kl, count);
    });
  });
}

template <typename T>
void reparameterize_with_kl_backward_range(const ReparameterizeWithKlGradients<T>& operands, uint64_t seed,
                                           int64_t begin, int64_t end) {
  const T scale = T(operands.kl_scale);
  const auto store_gradients = [&](int64_t i, auto count, Vec<T> logvar, Vec<T> through_z, Vec<T> through_z_to_logvar) {
    const Vec<T> grad_kl =
        scale * (operands.is_reduced ? broadcast(operands.grad_kl[0]) : load(operands.grad_kl + i, count));
    store(operands.grad_mu + i, through_z + grad_kl * load(operands.mu + i, count), count);
    store(operands.grad_logvar + i, through_z_to_logvar + grad_kl * gaussian_kl_grad_logvar<T>(exp(logvar)), count);
  };
  if (!operands.grad_z)
    return for_each_vector<T>(begin, end, [&](int64_t i, auto count) {
      store_gradients(i, count, load(operands.logvar + i, count), Vec<T>{}, Vec<T>{});
    });
  for_each_with_noise<T>(seed, begin, end, [&](int64_t i, auto count, Vec<T> eps) {
    const Vec<T> grad_z = load(operands.grad_z + i, count), logvar = load(operands.logvar + i, count);
    store_gradients(i, count, logvar, grad_z, reparameterized_grad_logvar<T>(grad_z, logvar, eps));
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

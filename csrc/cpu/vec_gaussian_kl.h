// SPDX-License-Identifier: MIT
// One term of KL(N(mu, exp(logvar)) || N(0, I)) and its derivative, on vectors; for files compiled through
// foreach_isa.h, hence no include guard.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// variance: exp(logvar)
template <typename T>
GF_INLINE Vec<T> gaussian_kl_term(Vec<T> mu, Vec<T> logvar, Vec<T> variance) {
  return T(0.5) * (mu * mu + variance - T(1) - logvar);
}

// With respect to logvar.  With respect to mu it is mu.
template <typename T>
GF_INLINE Vec<T> gaussian_kl_grad_logvar(Vec<T> variance) {
  return T(0.5) * (variance - T(1));
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

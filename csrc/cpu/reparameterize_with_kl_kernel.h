// SPDX-License-Identifier: MIT
#pragma once
#include "common/reparameterize_with_kl.h"

namespace genimg_fast::cpu {

// z[i] as reparameterize makes it of the same seed, and kl[i] = (mu[i]^2 + exp(logvar[i]) - 1 - logvar[i]) / 2, in one
// pass.  Returns the sum of kl[i], the same for every number of threads.
template <typename T>
double reparameterize_with_kl(const ReparameterizeWithKlOperands<T>& operands, uint64_t seed);

// Both gradients in one pass, eps drawn again.
template <typename T>
void reparameterize_with_kl_backward(const ReparameterizeWithKlGradients<T>& operands, uint64_t seed);

}  // namespace genimg_fast::cpu

// SPDX-License-Identifier: MIT
#pragma once
#include "common/gaussian_kl.h"

namespace genimg_fast::cpu {

// The sum over i of loss[i] = (mu[i]^2 + exp(logvar[i]) - 1 - logvar[i]) / 2, in one pass, the same for every number of
// threads.
template <typename T>
double gaussian_kl(const GaussianKlOperands<T>& operands);

}  // namespace genimg_fast::cpu

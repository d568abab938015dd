// SPDX-License-Identifier: MIT
#pragma once
#include <vector>

#include "common/activation.h"
#include "common/channel_layout.h"

namespace genimg_fast::cpu {

// What the normalisation does to a channel: y = activation((x - mean) / sqrt(var + eps) * weight + bias).
// Null weight: 1.  Null bias: 0.
template <typename T>
struct BatchNorm {
  const T* mean;    // [channels]
  const T* var;     // [channels], biased
  const T* weight;  // [channels] or null
  const T* bias;    // [channels] or null
  double eps;
  Activation activation;
  T negative_slope;
};

// The mean and the biased variance of each channel, the same for every number of threads.  NaN where there is no
// element.
template <typename T, typename Result>
void batch_norm_statistics(const T* input, const ChannelLayout& layout, Result* mean, Result* var);

template <typename T>
void batch_norm_act(const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm, T* output);

// training: mean and var came from this input, so gradient flows through them too.
template <typename T>
void batch_norm_act_backward(const T* grad, const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm,
                             bool training, T* grad_input, T* grad_weight, T* grad_bias);

// The two stages of the above, for statistics that other processes have a part in.

// Sums over each channel, dy being the gradient before activation: the gradients of bias and weight.  Zeros where there
// is no element.
struct GradientSums {
  std::vector<double> dy, dy_normalized;  // [channels] each
};
template <typename T>
GradientSums batch_norm_gradient_sums(const T* grad, const T* input, const ChannelLayout& layout,
                                      const BatchNorm<T>& norm);

// sums: over the `count` values that mean and var came from; null if mean and var are constants.
template <typename T>
void batch_norm_gradient_input(const T* grad, const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm,
                               const GradientSums* sums, double count, T* grad_input);

}  // namespace genimg_fast::cpu

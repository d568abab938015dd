// SPDX-License-Identifier: MIT
#pragma once
#include "common/activation.h"
#include "common/channel_layout.h"
#include "cuda/channel_vector.h"

namespace genimg_fast::cuda {

// As the CPU's (cpu/batch_norm_act_kernel.h).
struct BatchNorm {
  ChannelVector mean;
  ChannelVector var;     // biased
  ChannelVector weight;  // or null
  ChannelVector bias;    // or null
  float eps;
  Activation activation;
  float negative_slope;
};

// What batch statistics change: as F.batch_norm does, by the unbiased variance.
struct RunningStatistics {
  MutableChannelVector mean, var;
  float momentum = 0;
};

// Floats of scratch that each function below needs.
int64_t batch_norm_scratch(DType dtype, const ChannelLayout& layout);

void batch_norm_statistics(DType dtype, const void* input, const ChannelLayout& layout, float* scratch, float* mean,
                           float* var, const RunningStatistics& running, Stream stream);

// The last stage alone, for a convolution that has left Moments<float>[splits][channels] (cuda/moments.cuh) at the
// start of `scratch`, which holds batch_norm_merge_scratch floats.  More than one value a channel, where there are
// running statistics.
int64_t batch_norm_merge_scratch(int64_t splits, int64_t channels);
void batch_norm_merge_statistics(float* scratch, int64_t splits, int64_t channels, float* mean, float* var,
                                 const RunningStatistics& running, Stream stream);

// The running statistics of those of a batch, for whoever could not give them above.  unbiased: count / (count - 1).
void batch_norm_move_statistics(const float* mean, const float* var, int64_t channels, float unbiased,
                                const RunningStatistics& running, Stream stream);

void batch_norm_act(DType dtype, const void* input, const ChannelLayout& layout, const BatchNorm& norm, void* output,
                    Stream stream);

void batch_norm_act_backward(DType dtype, const void* grad, const void* input, const ChannelLayout& layout,
                             const BatchNorm& norm, bool training, float* scratch, void* grad_input,
                             MutableChannelVector grad_weight, MutableChannelVector grad_bias, Stream stream);

// The two stages of the above, for statistics that other processes have a part in.  Sums of dy, the gradient before
// activation, and of its product with the normalised input are the gradients of bias and weight: over `count` values,
// null if mean and var are constants.
void batch_norm_gradient_sums(DType dtype, const void* grad, const void* input, const ChannelLayout& layout,
                              const BatchNorm& norm, float* scratch, float* sum_dy_normalized, float* sum_dy,
                              MutableChannelVector grad_weight, MutableChannelVector grad_bias, Stream stream);
void batch_norm_gradient_input(DType dtype, const void* grad, const void* input, const ChannelLayout& layout,
                               const BatchNorm& norm, const float* sum_dy_normalized, const float* sum_dy,
                               int64_t count, void* grad_input, Stream stream);

}  // namespace genimg_fast::cuda

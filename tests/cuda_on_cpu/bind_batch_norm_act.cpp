// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/batch_norm_act_kernel.h"

CUDA_ON_CPU_BINDINGS {
  using namespace genimg_fast;
  using cuda::DType;
  cuda_on_cpu::bind("batch_norm_scratch", [](DType dtype, int64_t outer, int64_t channels, int64_t inner) {
    return cuda::batch_norm_scratch(dtype, {outer, channels, inner});
  });
  cuda_on_cpu::bind("batch_norm_statistics", [](DType dtype, const void* input, int64_t outer, int64_t channels,
                                                int64_t inner, float* scratch, float* mean, float* var) {
    cuda::batch_norm_statistics(dtype, input, {outer, channels, inner}, scratch, mean, var, {}, nullptr);
  });
  cuda_on_cpu::bind("batch_norm_merge_scratch", &cuda::batch_norm_merge_scratch);
  cuda_on_cpu::bind("batch_norm_merge_statistics",
                    [](float* scratch, int64_t splits, int64_t channels, float* mean, float* var) {
                      cuda::batch_norm_merge_statistics(scratch, splits, channels, mean, var, {}, nullptr);
                    });
  cuda_on_cpu::bind("batch_norm_running_statistics", [](float* scratch, int64_t splits, int64_t channels, float* mean,
                                                        float* var, cuda::MutableChannelVector running_mean,
                                                        cuda::MutableChannelVector running_var, float momentum) {
    cuda::batch_norm_merge_statistics(scratch, splits, channels, mean, var, {running_mean, running_var, momentum},
                                      nullptr);
  });
  cuda_on_cpu::bind("batch_norm_move_statistics", [](const float* mean, const float* var, int64_t channels,
                                                     float unbiased, cuda::MutableChannelVector running_mean,
                                                     cuda::MutableChannelVector running_var, float momentum) {
    cuda::batch_norm_move_statistics(mean, var, channels, unbiased, {running_mean, running_var, momentum}, nullptr);
  });
  cuda_on_cpu::bind("batch_norm_act",
                    [](DType dtype, const void* input, int64_t outer, int64_t channels, int64_t inner,
                       cuda::ChannelVector mean, cuda::ChannelVector var, cuda::ChannelVector weight,
                       cuda::ChannelVector bias, float eps, Activation activation, float slope, void* output) {
                      cuda::batch_norm_act(dtype, input, {outer, channels, inner},
                                           {mean, var, weight, bias, eps, activation, slope}, output, nullptr);
                    });
  cuda_on_cpu::bind(
      "batch_norm_act_backward",
      [](DType dtype, const void* grad, const void* input, int64_t outer, int64_t channels, int64_t inner,
         cuda::ChannelVector mean, cuda::ChannelVector var, cuda::ChannelVector weight, cuda::ChannelVector bias,
         float eps, Activation activation, float slope, bool training, float* scratch, void* grad_input,
         cuda::MutableChannelVector grad_weight, cuda::MutableChannelVector grad_bias) {
        cuda::batch_norm_act_backward(dtype, grad, input, {outer, channels, inner},
                                      {mean, var, weight, bias, eps, activation, slope}, training, scratch, grad_input,
                                      grad_weight, grad_bias, nullptr);
      });
  cuda_on_cpu::bind(
      "batch_norm_gradient_sums",
      [](DType dtype, const void* grad, const void* input, int64_t outer, int64_t channels, int64_t inner,
         cuda::ChannelVector mean, cuda::ChannelVector var, cuda::ChannelVector weight, cuda::ChannelVector bias,
         float eps, Activation activation, float slope, float* scratch, float* sum_dy_normalized, float* sum_dy) {
        cuda::batch_norm_gradient_sums(dtype, grad, input, {outer, channels, inner},
                                       {mean, var, weight, bias, eps, activation, slope}, scratch, sum_dy_normalized,
                                       sum_dy, {}, {}, nullptr);
      });
  cuda_on_cpu::bind("batch_norm_gradient_input",
                    [](DType dtype, const void* grad, const void* input, int64_t outer, int64_t channels, int64_t inner,
                       cuda::ChannelVector mean, cuda::ChannelVector var, cuda::ChannelVector weight,
                       cuda::ChannelVector bias, float eps, Activation activation, float slope,
                       const float* sum_dy_normalized, const float* sum_dy, int64_t count, void* grad_input) {
                      cuda::batch_norm_gradient_input(dtype, grad, input, {outer, channels, inner},
                                                      {mean, var, weight, bias, eps, activation, slope},
                                                      sum_dy_normalized, sum_dy, count, grad_input, nullptr);
                    });
}

// SPDX-License-Identifier: MIT
// What the CPU and CUDA registrations of batch_norm_act share.
#pragma once
#include "common/activation.h"
#include "common/channel_layout.h"
#include "ops/tensor.h"

namespace genimg_fast {

// Makes `input` dense, in the memory order that torch's batch normalisation returns, and says how its channels lie.
inline ChannelLayout make_channel_layout(Tensor& input) {
  check(input.dim() >= 2, "batch_norm_act: input must have at least 2 dimensions, got ", input.dim());
  if (!input.is_contiguous() && !lies_in_channels_last(input))
    input = is_channels_last(input) ? torch::stable::clone(input) : torch::stable::contiguous(input);
  const int64_t numel = input.numel(), channels = input.size(1);
  if (numel == 0) return {0, channels, 1};
  // In a dense tensor everything that lies inside a channel's stride fills it.  The stride of a single channel means
  // nothing.
  const int64_t inner = channels > 1 ? input.stride(1) : numel;
  return {numel / (channels * inner), channels, inner};
}

// `grad` laid out in memory as `input`, which is dense.
inline void make_like(Tensor& grad, const Tensor& input) {
  check(same_sizes(grad, input), "batch_norm_act_backward: grad and input differ in shape");
  check(grad.scalar_type() == input.scalar_type(), "batch_norm_act_backward: grad and input differ in dtype");
  check(on_same_device(grad, input), "batch_norm_act_backward: grad and input are on different devices");
  if (is_dense(grad) && same_order(grad, input)) return;
  Tensor copy = new_like(input);
  grad = torch::stable::copy_(copy, grad);
}

// The per-channel tensors as the kernels read them: contiguous, on input's device, and of `dtype` if that is given.
struct ChannelTensors {
  Tensor mean, var;
  OptionalTensor weight, bias;

  ChannelTensors(const Tensor& input, std::optional<ScalarType> dtype, const Tensor& mean_, const Tensor& var_,
                 const OptionalTensor& weight_, const OptionalTensor& bias_)
      : mean(prepare(mean_, input, dtype)), var(prepare(var_, input, dtype)) {
    if (weight_) weight = prepare(*weight_, input, dtype);
    if (bias_) bias = prepare(*bias_, input, dtype);
  }

  static Tensor prepare(const Tensor& t, const Tensor& input, std::optional<ScalarType> dtype) {
    check(t.dim() == 1 && t.size(0) == input.size(1), "batch_norm_act: per-channel tensors must have shape (",
          input.size(1), ",)");
    check(on_same_device(t, input), "batch_norm_act: a per-channel tensor and input are on different devices");
    return torch::stable::contiguous(!dtype || t.scalar_type() == *dtype ? t : torch::stable::to(t, *dtype));
  }
};

}  // namespace genimg_fast

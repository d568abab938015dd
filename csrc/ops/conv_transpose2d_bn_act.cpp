// SPDX-License-Identifier: MIT
// Schema and CPU registration of conv_transpose2d_bn_act.
#include "ops/conv_transpose2d_bn_act.h"

#include "cpu/batch_norm_act_kernel.h"
#include "cpu/conv_transpose2d_bn_act_kernel.h"

namespace genimg_fast {
namespace {

using Pair = std::vector<int64_t>;

Tensor inference(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor running_mean,
                 OptionalTensor running_var, OptionalTensor bn_weight, OptionalTensor bn_bias, double eps, Pair stride,
                 Pair padding, Pair output_padding, int64_t activation, double negative_slope) {
  const Deconvolution conv = deconvolution(input, weight, stride, padding, output_padding);
  check_channels(conv.out_channels, input.scalar_type(), bias, running_mean, running_var, bn_weight, bn_bias);
  Tensor out = new_channels_last(input, conv);
  const Tensor x = torch::stable::contiguous(input, MemoryFormat::ChannelsLast), w = torch::stable::contiguous(weight);
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> scale, shift;
    fold<T>({data<T>(bias), data<T>(running_mean), data<T>(running_var), data<T>(bn_weight), data<T>(bn_bias), eps},
            conv.out_channels, scale, shift);
    const cpu::Epilogue<T> epilogue{scale.data(), shift.data(), static_cast<Activation>(activation),
                                    static_cast<T>(negative_slope)};
    cpu::conv_transpose2d<T>(conv, data<T>(x), data<T>(w), epilogue, mutable_data<T>(out), nullptr, nullptr);
  });
  return is_channels_last(input) ? out : torch::stable::contiguous(out);
}

// raw is the convolution's output, all that the backward pass needs of this block; mean and var are of raw.
std::tuple<Tensor, Tensor, Tensor, Tensor> training(Tensor input, Tensor weight, OptionalTensor bias,
                                                    OptionalTensor bn_weight, OptionalTensor bn_bias, double eps,
                                                    Pair stride, Pair padding, Pair output_padding, int64_t activation,
                                                    double negative_slope) {
  const Deconvolution conv = deconvolution(input, weight, stride, padding, output_padding);
  check_channels(conv.out_channels, input.scalar_type(), bias, bn_weight, bn_bias);
  Tensor raw = new_channels_last(input, conv), out = new_channels_last(input, conv);
  Tensor mean = torch::stable::new_empty(input, {conv.out_channels});
  Tensor var = torch::stable::new_empty(input, {conv.out_channels});
  const Tensor x = torch::stable::contiguous(input, MemoryFormat::ChannelsLast), w = torch::stable::contiguous(weight);
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> scale, shift;
    fold<T>({data<T>(bias), nullptr, nullptr, nullptr, nullptr, eps}, conv.out_channels, scale, shift);
    cpu::conv_transpose2d<T>(conv, data<T>(x), data<T>(w), {scale.data(), shift.data(), Activation::none, T(0)},
                             mutable_data<T>(raw), mutable_data<T>(mean), mutable_data<T>(var));
    const ChannelLayout layout{conv.batch * conv.y.output * conv.x.output, conv.out_channels, 1};
    cpu::batch_norm_act<T>(data<T>(raw), layout,
                           {data<T>(mean), data<T>(var), data<T>(bn_weight), data<T>(bn_bias), eps,
                            static_cast<Activation>(activation), static_cast<T>(negative_slope)},
                           mutable_data<T>(out));
  });
  return {is_channels_last(input) ? out : torch::stable::contiguous(out), raw, mean, var};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "conv_transpose2d_bn_act(Tensor input, Tensor weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
      "Tensor? bn_weight, Tensor? bn_bias, float eps, int[] stride, int[] padding, int[] output_padding, int "
      "activation, "
      "float negative_slope) -> Tensor");
  library.def(
      "conv_transpose2d_bn_act_training(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
      "float eps, int[] stride, int[] padding, int[] output_padding, int activation, float negative_slope) "
      "-> (Tensor output, Tensor raw, Tensor mean, Tensor var)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("conv_transpose2d_bn_act", TORCH_BOX(&genimg_fast::inference));
  library.impl("conv_transpose2d_bn_act_training", TORCH_BOX(&genimg_fast::training));
}

// SPDX-License-Identifier: MIT
// Schema and CPU registration of conv2d_bn_act.
#include "common/convolution.h"
#include "cpu/aligned_array.h"
#include "cpu/batch_norm_act_kernel.h"
#include "cpu/conv2d_bn_act_kernel.h"
#include "ops/convolution.h"

namespace genimg_fast {
namespace {

using Pair = std::vector<int64_t>;

Convolution convolution(const Tensor& input, const Tensor& weight, const Pair& stride, const Pair& padding,
                        const Pair& dilation) {
  check(input.dim() == 4 && weight.dim() == 4 && input.size(1) == weight.size(1),
        "conv2d_bn_act: input must be [N, Cin, H, W] and weight [Cout, Cin, kH, kW]");
  check(input.scalar_type() == weight.scalar_type(), "conv2d_bn_act: input and weight differ in dtype");
  check(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2 && stride[0] > 0 && stride[1] > 0 &&
            padding[0] >= 0 && padding[1] >= 0 && dilation[0] > 0 && dilation[1] > 0 && weight.size(2) > 0 &&
            weight.size(3) > 0,
        "conv2d_bn_act: stride, padding and dilation must be pairs, and the kernel not empty");
  auto axis = [&](int64_t d) {
    return ConvolutionAxis::make(input.size(d + 2), weight.size(d + 2), stride[d], padding[d], dilation[d]);
  };
  // The division that counts outputs rounds towards zero: a kernel larger than the padded input is told beforehand.
  auto fits = [&](int64_t d) { return input.size(d + 2) + 2 * padding[d] > dilation[d] * (weight.size(d + 2) - 1); };
  check(fits(0) && fits(1), "conv2d_bn_act: the kernel is larger than the padded input");
  return {input.size(0), input.size(1), weight.size(0), axis(0), axis(1)};
}

// The convolution of a call, with its weight packed for the call alone.
template <typename T>
void run(const Convolution& conv, const Tensor& input, const Tensor& weight, const cpu::Epilogue<T>& epilogue,
         Tensor& output, T* mean, T* var) {
  const Tensor x = torch::stable::contiguous(input, MemoryFormat::ChannelsLast), w = torch::stable::contiguous(weight);
  const cpu::PackedLayout layout = cpu::choose_layout<T>(conv, true);
  auto packed = cpu::aligned_array<T>(layout.count);
  cpu::pack_weight(conv, layout, cpu::WeightOrder::forward, data<T>(w), packed.get());
  cpu::conv2d(conv, data<T>(x), cpu::Prologue<T>{}, layout, packed.get(), epilogue, mutable_data<T>(output), mean, var);
}

Tensor inference(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor running_mean,
                 OptionalTensor running_var, OptionalTensor bn_weight, OptionalTensor bn_bias, double eps, Pair stride,
                 Pair padding, Pair dilation, int64_t activation, double negative_slope) {
  const Convolution conv = convolution(input, weight, stride, padding, dilation);
  check_channels(conv.out_channels, input.scalar_type(), bias, running_mean, running_var, bn_weight, bn_bias);
  Tensor out = new_channels_last(input, conv);
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> scale, shift;
    fold<T>({data<T>(bias), data<T>(running_mean), data<T>(running_var), data<T>(bn_weight), data<T>(bn_bias), eps},
            conv.out_channels, scale, shift);
    run<T>(conv, input, weight,
           {scale.data(), shift.data(), static_cast<Activation>(activation), static_cast<T>(negative_slope)}, out,
           nullptr, nullptr);
  });
  return is_channels_last(input) ? out : torch::stable::contiguous(out);
}

// raw is the convolution's output, all that the backward pass needs of this block; mean and var are of raw.
std::tuple<Tensor, Tensor, Tensor, Tensor> training(Tensor input, Tensor weight, OptionalTensor bias,
                                                    OptionalTensor bn_weight, OptionalTensor bn_bias, double eps,
                                                    Pair stride, Pair padding, Pair dilation, int64_t activation,
                                                    double negative_slope) {
  const Convolution conv = convolution(input, weight, stride, padding, dilation);
  check_channels(conv.out_channels, input.scalar_type(), bias, bn_weight, bn_bias);
  Tensor raw = new_channels_last(input, conv), out = new_channels_last(input, conv);
  Tensor mean = torch::stable::new_empty(input, {conv.out_channels});
  Tensor var = torch::stable::new_empty(input, {conv.out_channels});
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> scale, shift;
    fold<T>({data<T>(bias), nullptr, nullptr, nullptr, nullptr, eps}, conv.out_channels, scale, shift);
    run<T>(conv, input, weight, {scale.data(), shift.data(), Activation::none, T(0)}, raw, mutable_data<T>(mean),
           mutable_data<T>(var));
    cpu::batch_norm_act<T>(data<T>(raw), {conv.pixels(), conv.out_channels, 1},
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
      "conv2d_bn_act(Tensor input, Tensor weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, "
      "Tensor? bn_weight, Tensor? bn_bias, float eps, int[] stride, int[] padding, int[] dilation, int activation, "
      "float negative_slope) -> Tensor");
  library.def(
      "conv2d_bn_act_training(Tensor input, Tensor weight, Tensor? bias, Tensor? bn_weight, Tensor? bn_bias, "
      "float eps, int[] stride, int[] padding, int[] dilation, int activation, float negative_slope) "
      "-> (Tensor output, Tensor raw, Tensor mean, Tensor var)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("conv2d_bn_act", TORCH_BOX(&genimg_fast::inference));
  library.impl("conv2d_bn_act_training", TORCH_BOX(&genimg_fast::training));
}

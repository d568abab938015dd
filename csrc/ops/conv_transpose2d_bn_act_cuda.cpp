// SPDX-License-Identifier: MIT
// CUDA registration of conv_transpose2d_bn_act.
#include "common/channel_layout.h"
#include "cuda/batch_norm_act_kernel.h"
#include "cuda/conv_transpose2d_bn_act_kernel.h"
#include "ops/conv_transpose2d_bn_act.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

using Pair = std::vector<int64_t>;

cuda::ImageStrides strides(const Tensor& t) { return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

Tensor inference(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor running_mean,
                 OptionalTensor running_var, OptionalTensor bn_weight, OptionalTensor bn_bias, double eps, Pair stride,
                 Pair padding, Pair output_padding, int64_t activation, double negative_slope) {
  const Deconvolution conv = deconvolution(input, weight, stride, padding, output_padding);
  const CudaScope scope(input);
  for (OptionalTensor* t : {&bias, &running_mean, &running_var, &bn_weight, &bn_bias}) *t = as_float(*t);
  check_channels(conv.out_channels, ScalarType::Float, bias, running_mean, running_var, bn_weight, bn_bias);
  const Tensor w = torch::stable::contiguous(weight);
  Tensor out =
      is_channels_last(input) ? new_channels_last(input, conv) : torch::stable::new_empty(input, output_sizes(conv));
  cuda::conv_transpose2d(cuda_dtype(input), conv, input.const_data_ptr(), strides(input), w.const_data_ptr(),
                         {data<float>(bias), data<float>(running_mean), data<float>(running_var),
                          data<float>(bn_weight), data<float>(bn_bias), eps},
                         static_cast<Activation>(activation), static_cast<float>(negative_slope),
                         out.mutable_data_ptr(), strides(out), scope.stream);
  return out;
}

// As the CPU's, with a pass of its own for the statistics.
std::tuple<Tensor, Tensor, Tensor, Tensor> training(Tensor input, Tensor weight, OptionalTensor bias,
                                                    OptionalTensor bn_weight, OptionalTensor bn_bias, double eps,
                                                    Pair stride, Pair padding, Pair output_padding, int64_t activation,
                                                    double negative_slope) {
  const Deconvolution conv = deconvolution(input, weight, stride, padding, output_padding);
  const CudaScope scope(input);
  for (OptionalTensor* t : {&bias, &bn_weight, &bn_bias}) *t = as_float(*t);
  check_channels(conv.out_channels, ScalarType::Float, bias, bn_weight, bn_bias);
  const cuda::DType dtype = cuda_dtype(input);
  const Tensor w = torch::stable::contiguous(weight);
  Tensor raw = new_channels_last(input, conv), out = new_channels_last(input, conv);
  cuda::conv_transpose2d(dtype, conv, input.const_data_ptr(), strides(input), w.const_data_ptr(),
                         {data<float>(bias), nullptr, nullptr, nullptr, nullptr, eps}, Activation::none, 0.0f,
                         raw.mutable_data_ptr(), strides(raw), scope.stream);

  const ChannelLayout layout{conv.batch * conv.y.output * conv.x.output, conv.out_channels, 1};
  Tensor mean = float_scratch(input, conv.out_channels), var = float_scratch(input, conv.out_channels);
  Tensor scratch = float_scratch(input, cuda::batch_norm_scratch(dtype, layout));
  cuda::batch_norm_statistics(dtype, raw.const_data_ptr(), layout, mutable_data<float>(scratch),
                              mutable_data<float>(mean), mutable_data<float>(var), scope.stream);
  cuda::batch_norm_act(
      dtype, raw.const_data_ptr(), layout,
      {data<float>(mean), data<float>(var), data<float>(bn_weight), data<float>(bn_bias), static_cast<float>(eps),
       static_cast<Activation>(activation), static_cast<float>(negative_slope)},
      out.mutable_data_ptr(), scope.stream);
  return {is_channels_last(input) ? out : torch::stable::contiguous(out), raw, mean, var};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("conv_transpose2d_bn_act", TORCH_BOX(&genimg_fast::inference));
  library.impl("conv_transpose2d_bn_act_training", TORCH_BOX(&genimg_fast::training));
}

// SPDX-License-Identifier: MIT
// CUDA registration of conv_transpose2d_bn_act.
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

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("conv_transpose2d_bn_act", TORCH_BOX(&genimg_fast::inference));
}

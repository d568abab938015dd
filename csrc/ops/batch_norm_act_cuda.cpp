// SPDX-License-Identifier: MIT
// CUDA registration of batch_norm_act.
#include "cuda/batch_norm_act_kernel.h"
#include "ops/batch_norm_act.h"
#include "ops/tensor_cuda.h"

namespace genimg_fast {
namespace {

cuda::BatchNorm batch_norm(const ChannelTensors& channels, double eps, int64_t activation, double negative_slope) {
  return {channel_vector(channels.mean),     channel_vector(channels.var), channel_vector(channels.weight),
          channel_vector(channels.bias),     static_cast<float>(eps),      activation_of(activation),
          static_cast<float>(negative_slope)};
}

Tensor inference(Tensor input, Tensor mean, Tensor var, OptionalTensor weight, OptionalTensor bias, double eps,
                 int64_t activation, double negative_slope) {
  const CudaScope scope(input);
  const ChannelLayout layout = make_channel_layout(input);
  const ChannelTensors channels(input, std::nullopt, mean, var, weight, bias);
  Tensor output = torch::stable::empty_like(input);
  cuda::batch_norm_act(cuda_dtype(input), input.const_data_ptr(), layout,
                       batch_norm(channels, eps, activation, negative_slope), output.mutable_data_ptr(), scope.stream);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> training(Tensor input, OptionalTensor weight, OptionalTensor bias, double eps,
                                            int64_t activation, double negative_slope) {
  const CudaScope scope(input);
  const ChannelLayout layout = make_channel_layout(input);
  const cuda::DType dtype = cuda_dtype(input);
  Tensor mean = float_scratch(input, layout.channels), var = float_scratch(input, layout.channels);
  Tensor scratch = float_scratch(input, cuda::batch_norm_scratch(dtype, layout));
  cuda::batch_norm_statistics(dtype, input.const_data_ptr(), layout, mutable_data<float>(scratch),
                              mutable_data<float>(mean), mutable_data<float>(var), {}, scope.stream);
  const ChannelTensors channels(input, std::nullopt, mean, var, weight, bias);
  Tensor output = torch::stable::empty_like(input);
  cuda::batch_norm_act(dtype, input.const_data_ptr(), layout, batch_norm(channels, eps, activation, negative_slope),
                       output.mutable_data_ptr(), scope.stream);
  return {output, mean, var};
}

void move_statistics_(Tensor running_mean, Tensor running_var, Tensor mean, Tensor var, double momentum,
                      double unbiased) {
  const CudaScope scope(mean);
  for (const Tensor* t : {&running_mean, &running_var, &mean, &var})
    check(on_same_device(*t, mean) && t->dim() == 1 && t->is_contiguous() && t->numel() == mean.numel(),
          "batch_norm_act_move_statistics_: all must be contiguous vectors of one length on the GPU");
  check(mean.scalar_type() == ScalarType::Float && var.scalar_type() == ScalarType::Float,
        "batch_norm_act_move_statistics_: mean and var must be float32");
  cuda::batch_norm_move_statistics(
      data<float>(mean), data<float>(var), mean.numel(), static_cast<float>(unbiased),
      {mutable_channel_vector(running_mean), mutable_channel_vector(running_var), static_cast<float>(momentum)},
      scope.stream);
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor mean, Tensor var, OptionalTensor weight,
                                            OptionalTensor bias, double eps, int64_t activation, double negative_slope,
                                            bool training) {
  const CudaScope scope(input);
  const ChannelLayout layout = make_channel_layout(input);
  make_like(grad, input);
  const cuda::DType dtype = cuda_dtype(input);
  const ChannelTensors channels(input, std::nullopt, mean, var, weight, bias);
  Tensor grad_input = torch::stable::empty_like(input);
  auto gradient_of = [&](const OptionalTensor& parameter) {
    return torch::stable::new_empty(input, {layout.channels}, parameter ? parameter->scalar_type() : ScalarType::Float);
  };
  Tensor grad_weight = gradient_of(weight), grad_bias = gradient_of(bias);
  Tensor scratch = float_scratch(input, cuda::batch_norm_scratch(dtype, layout));
  cuda::batch_norm_act_backward(dtype, grad.const_data_ptr(), input.const_data_ptr(), layout,
                                batch_norm(channels, eps, activation, negative_slope), training,
                                mutable_data<float>(scratch), grad_input.mutable_data_ptr(),
                                mutable_channel_vector(grad_weight), mutable_channel_vector(grad_bias), scope.stream);
  return {grad_input, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor> statistics(Tensor input) {
  const CudaScope scope(input);
  const ChannelLayout layout = make_channel_layout(input);
  const cuda::DType dtype = cuda_dtype(input);
  Tensor mean = float_scratch(input, layout.channels), var = float_scratch(input, layout.channels);
  Tensor scratch = float_scratch(input, cuda::batch_norm_scratch(dtype, layout));
  cuda::batch_norm_statistics(dtype, input.const_data_ptr(), layout, mutable_data<float>(scratch),
                              mutable_data<float>(mean), mutable_data<float>(var), {}, scope.stream);
  return {torch::stable::to(mean, ScalarType::Double), torch::stable::to(var, ScalarType::Double)};
}

std::tuple<Tensor, Tensor> gradient_sums(Tensor grad, Tensor input, Tensor mean, Tensor var, OptionalTensor weight,
                                         OptionalTensor bias, double eps, int64_t activation, double negative_slope) {
  const CudaScope scope(input);
  const ChannelLayout layout = make_channel_layout(input);
  make_like(grad, input);
  const cuda::DType dtype = cuda_dtype(input);
  const ChannelTensors channels(input, std::nullopt, mean, var, weight, bias);
  Tensor grad_weight = float_scratch(input, layout.channels), grad_bias = float_scratch(input, layout.channels);
  Tensor scratch = float_scratch(input, cuda::batch_norm_scratch(dtype, layout));
  cuda::batch_norm_gradient_sums(dtype, grad.const_data_ptr(), input.const_data_ptr(), layout,
                                 batch_norm(channels, eps, activation, negative_slope), mutable_data<float>(scratch),
                                 mutable_data<float>(grad_weight), mutable_data<float>(grad_bias), {}, {},
                                 scope.stream);
  return {grad_weight, grad_bias};
}

Tensor gradient_input(Tensor grad, Tensor input, Tensor mean, Tensor var, OptionalTensor weight, OptionalTensor bias,
                      double eps, int64_t activation, double negative_slope, Tensor mean_grad_weight,
                      Tensor mean_grad_bias) {
  const CudaScope scope(input);
  const ChannelLayout layout = make_channel_layout(input);
  make_like(grad, input);
  const ChannelTensors channels(input, std::nullopt, mean, var, weight, bias);
  const Tensor dy_normalized = ChannelTensors::prepare(mean_grad_weight, input, ScalarType::Float);
  const Tensor dy = ChannelTensors::prepare(mean_grad_bias, input, ScalarType::Float);
  Tensor grad_input = torch::stable::empty_like(input);
  cuda::batch_norm_gradient_input(cuda_dtype(input), grad.const_data_ptr(), input.const_data_ptr(), layout,
                                  batch_norm(channels, eps, activation, negative_slope), data<float>(dy_normalized),
                                  data<float>(dy), 1, grad_input.mutable_data_ptr(), scope.stream);
  return grad_input;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, library) {
  library.impl("batch_norm_act_inference", TORCH_BOX(&genimg_fast::inference));
  library.impl("batch_norm_act_training", TORCH_BOX(&genimg_fast::training));
  library.impl("batch_norm_act_move_statistics_", TORCH_BOX(&genimg_fast::move_statistics_));
  library.impl("batch_norm_act_backward", TORCH_BOX(&genimg_fast::backward));
  library.impl("batch_norm_act_statistics", TORCH_BOX(&genimg_fast::statistics));
  library.impl("batch_norm_act_gradient_sums", TORCH_BOX(&genimg_fast::gradient_sums));
  library.impl("batch_norm_act_gradient_input", TORCH_BOX(&genimg_fast::gradient_input));
}

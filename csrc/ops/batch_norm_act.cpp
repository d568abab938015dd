// SPDX-License-Identifier: MIT
// Schema and CPU registration of batch_norm_act.
#include "ops/batch_norm_act.h"

#include "cpu/batch_norm_act_kernel.h"

namespace genimg_fast {
namespace {

template <typename T>
cpu::BatchNorm<T> batch_norm(const ChannelTensors& channels, double eps, int64_t activation, double negative_slope) {
  return {
      data<T>(channels.mean),    data<T>(channels.var),         data<T>(channels.weight), data<T>(channels.bias), eps,
      activation_of(activation), static_cast<T>(negative_slope)};
}

Tensor inference(Tensor input, Tensor mean, Tensor var, OptionalTensor weight, OptionalTensor bias, double eps,
                 int64_t activation, double negative_slope) {
  const ChannelLayout layout = make_channel_layout(input);
  Tensor output = new_like(input);
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    const ChannelTensors channels(input, input.scalar_type(), mean, var, weight, bias);
    cpu::batch_norm_act(data<T>(input), layout, batch_norm<T>(channels, eps, activation, negative_slope),
                        mutable_data<T>(output));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor> training(Tensor input, OptionalTensor weight, OptionalTensor bias, double eps,
                                            int64_t activation, double negative_slope) {
  const ChannelLayout layout = make_channel_layout(input);
  Tensor output = new_like(input);
  Tensor mean = torch::stable::new_empty(input, {layout.channels});
  Tensor var = torch::stable::new_empty(input, {layout.channels});
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    cpu::batch_norm_statistics(data<T>(input), layout, mutable_data<T>(mean), mutable_data<T>(var));
    const ChannelTensors channels(input, input.scalar_type(), mean, var, weight, bias);
    cpu::batch_norm_act(data<T>(input), layout, batch_norm<T>(channels, eps, activation, negative_slope),
                        mutable_data<T>(output));
  });
  return {output, mean, var};
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad, Tensor input, Tensor mean, Tensor var, OptionalTensor weight,
                                            OptionalTensor bias, double eps, int64_t activation, double negative_slope,
                                            bool training) {
  const ChannelLayout layout = make_channel_layout(input);
  make_like(grad, input);
  Tensor grad_input = new_like(input);
  Tensor grad_weight = torch::stable::new_empty(input, {layout.channels});
  Tensor grad_bias = torch::stable::new_empty(input, {layout.channels});
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    const ChannelTensors channels(input, input.scalar_type(), mean, var, weight, bias);
    cpu::batch_norm_act_backward(data<T>(grad), data<T>(input), layout,
                                 batch_norm<T>(channels, eps, activation, negative_slope), training,
                                 mutable_data<T>(grad_input), mutable_data<T>(grad_weight), mutable_data<T>(grad_bias));
  });
  return {grad_input, grad_weight, grad_bias};
}

// ---- The stages of training one by one, for sync_batch_norm_act, which joins statistics and sums with other
// processes'.

// In float64: the difference of two means, each rounded to float32, would lose digits of the joined variance.
std::tuple<Tensor, Tensor> statistics(Tensor input) {
  const ChannelLayout layout = make_channel_layout(input);
  Tensor mean = torch::stable::new_empty(input, {layout.channels}, ScalarType::Double);
  Tensor var = torch::stable::new_empty(input, {layout.channels}, ScalarType::Double);
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    cpu::batch_norm_statistics(data<T>(input), layout, mutable_data<double>(mean), mutable_data<double>(var));
  });
  return {mean, var};
}

std::tuple<Tensor, Tensor> gradient_sums(Tensor grad, Tensor input, Tensor mean, Tensor var, OptionalTensor weight,
                                         OptionalTensor bias, double eps, int64_t activation, double negative_slope) {
  const ChannelLayout layout = make_channel_layout(input);
  make_like(grad, input);
  Tensor grad_weight = torch::stable::new_empty(input, {layout.channels});
  Tensor grad_bias = torch::stable::new_empty(input, {layout.channels});
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    const ChannelTensors channels(input, input.scalar_type(), mean, var, weight, bias);
    const cpu::GradientSums sums = cpu::batch_norm_gradient_sums(
        data<T>(grad), data<T>(input), layout, batch_norm<T>(channels, eps, activation, negative_slope));
    std::copy(sums.dy_normalized.begin(), sums.dy_normalized.end(), mutable_data<T>(grad_weight));
    std::copy(sums.dy.begin(), sums.dy.end(), mutable_data<T>(grad_bias));
  });
  return {grad_weight, grad_bias};
}

Tensor gradient_input(Tensor grad, Tensor input, Tensor mean, Tensor var, OptionalTensor weight, OptionalTensor bias,
                      double eps, int64_t activation, double negative_slope, Tensor mean_grad_weight,
                      Tensor mean_grad_bias) {
  const ChannelLayout layout = make_channel_layout(input);
  make_like(grad, input);
  Tensor grad_input = new_like(input);
  dispatch_float_double(input, [&](auto zero) {
    using T = decltype(zero);
    const ChannelTensors channels(input, input.scalar_type(), mean, var, weight, bias);
    const auto values = [&](const Tensor& t) {
      const Tensor dense = ChannelTensors::prepare(t, input, input.scalar_type());
      return std::vector<double>(data<T>(dense), data<T>(dense) + layout.channels);
    };
    const cpu::GradientSums means{values(mean_grad_bias), values(mean_grad_weight)};
    cpu::batch_norm_gradient_input(data<T>(grad), data<T>(input), layout,
                                   batch_norm<T>(channels, eps, activation, negative_slope), &means, 1.0,
                                   mutable_data<T>(grad_input));
  });
  return grad_input;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "batch_norm_act_inference(Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, float eps, "
      "int activation, float negative_slope) -> Tensor");
  library.def(
      "batch_norm_act_training(Tensor input, Tensor? weight, Tensor? bias, float eps, int activation, "
      "float negative_slope) -> (Tensor output, Tensor mean, Tensor var)");
  library.def(
      "batch_norm_act_backward(Tensor grad, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
      "float eps, int activation, float negative_slope, bool training) "
      "-> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  // CUDA alone has it: on the CPU PyTorch's operators are as quick.
  library.def(
      "batch_norm_act_move_statistics_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor mean, Tensor var, "
      "float momentum, float unbiased) -> ()");
  library.def("batch_norm_act_statistics(Tensor input) -> (Tensor mean, Tensor var)");
  library.def(
      "batch_norm_act_gradient_sums(Tensor grad, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
      "float eps, int activation, float negative_slope) -> (Tensor grad_weight, Tensor grad_bias)");
  // The last two: the sums, divided by the number of values that mean and var are of.
  library.def(
      "batch_norm_act_gradient_input(Tensor grad, Tensor input, Tensor mean, Tensor var, Tensor? weight, Tensor? bias, "
      "float eps, int activation, float negative_slope, Tensor mean_grad_weight, Tensor mean_grad_bias) "
      "-> Tensor grad_input");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("batch_norm_act_inference", TORCH_BOX(&genimg_fast::inference));
  library.impl("batch_norm_act_training", TORCH_BOX(&genimg_fast::training));
  library.impl("batch_norm_act_backward", TORCH_BOX(&genimg_fast::backward));
  library.impl("batch_norm_act_statistics", TORCH_BOX(&genimg_fast::statistics));
  library.impl("batch_norm_act_gradient_sums", TORCH_BOX(&genimg_fast::gradient_sums));
  library.impl("batch_norm_act_gradient_input", TORCH_BOX(&genimg_fast::gradient_input));
}

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
  Tensor output = torch::stable::empty_like(input);
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
  Tensor output = torch::stable::empty_like(input);
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
  Tensor grad_input = torch::stable::empty_like(input);
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
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("batch_norm_act_inference", TORCH_BOX(&genimg_fast::inference));
  library.impl("batch_norm_act_training", TORCH_BOX(&genimg_fast::training));
  library.impl("batch_norm_act_backward", TORCH_BOX(&genimg_fast::backward));
}

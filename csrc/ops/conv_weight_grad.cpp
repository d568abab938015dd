// SPDX-License-Identifier: MIT
// Schema and CPU registration of conv_weight_grad: the kernel by itself, for its tests.  In training block_chain calls
// the kernel directly.
#include "cpu/conv_weight_grad_kernel.h"
#include "ops/convolution.h"

namespace genimg_fast {
namespace {

void check_prologue(const OptionalTensor& prologue, const Tensor& image) {
  check(!prologue || (prologue->dim() == 2 && prologue->size(0) == 3 && prologue->size(1) == image.size(1) &&
                      prologue->scalar_type() == image.scalar_type() && prologue->is_contiguous()),
        "conv_weight_grad: a prologue must be a contiguous [3, C] tensor of the images' dtype");
}

template <typename T>
cpu::Prologue<T> prologue_of(const OptionalTensor& rows, int64_t activation, double negative_slope) {
  if (!rows) return {};
  const T* mean = data<T>(rows);
  const int64_t channels = rows->size(1);
  return {mean, mean + channels, mean + 2 * channels, activation_of(activation), static_cast<T>(negative_slope)};
}

Tensor conv_weight_grad(Tensor small, Tensor large, Pair kernel_size, Pair stride, Pair padding, Pair dilation,
                        OptionalTensor small_prologue, OptionalTensor large_prologue, int64_t activation,
                        double negative_slope) {
  check(small.dim() == 4 && large.dim() == 4 && small.size(0) == large.size(0),
        "conv_weight_grad: small must be [N, Cout, H', W'] and large [N, Cin, H, W]");
  check(small.scalar_type() == large.scalar_type(), "conv_weight_grad: small and large differ in dtype");
  auto all = [](const Pair& pair, int64_t least) { return pair.size() == 2 && pair[0] >= least && pair[1] >= least; };
  check(all(kernel_size, 1) && all(stride, 1) && all(padding, 0) && all(dilation, 1),
        "conv_weight_grad: kernel_size, stride, padding and dilation must be pairs");
  check_prologue(small_prologue, small);
  check_prologue(large_prologue, large);

  auto axis = [&](int d) {
    return ConvolutionAxis{large.size(d + 2), small.size(d + 2), kernel_size[d], stride[d], padding[d], dilation[d]};
  };
  const Convolution conv{small.size(0), large.size(1), small.size(1), axis(0), axis(1)};
  const Tensor s = torch::stable::contiguous(small, MemoryFormat::ChannelsLast);
  const Tensor l = torch::stable::contiguous(large, MemoryFormat::ChannelsLast);
  Tensor grad_weight =
      torch::stable::new_empty(small, {conv.out_channels, conv.in_channels, kernel_size[0], kernel_size[1]});
  dispatch_float_double(small, [&](auto zero) {
    using T = decltype(zero);
    cpu::conv_weight_grad<T>(conv, data<T>(s), prologue_of<T>(small_prologue, activation, negative_slope), data<T>(l),
                             prologue_of<T>(large_prologue, activation, negative_slope), mutable_data<T>(grad_weight));
  });
  return grad_weight;
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  // The gradient of the weight of the convolution that leads from large to small.  A prologue is mean, scale and shift
  // of each channel, as rows: activation((image - mean) * scale + shift) takes the image's place.
  library.def(
      "conv_weight_grad(Tensor small, Tensor large, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
      "Tensor? small_prologue=None, Tensor? large_prologue=None, int activation=0, float negative_slope=0.0) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("conv_weight_grad", TORCH_BOX(&genimg_fast::conv_weight_grad));
}

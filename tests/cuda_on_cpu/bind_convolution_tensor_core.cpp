// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/convolution_tensor_core_kernel.h"

namespace {

using namespace genimg_fast;

// sizes: transposed (0 or 1), N, Cin, Cout, H, W, kernel, stride, padding, output_padding, dilation
cuda::PhasedConvolution geometry(const int64_t* sizes) {
  const int64_t n = sizes[1], in = sizes[2], out = sizes[3], kernel = sizes[6], stride = sizes[7], padding = sizes[8];
  auto transposed = [&](int64_t size) { return DeconvolutionAxis::make(size, kernel, stride, padding, sizes[9]); };
  auto plain = [&](int64_t size) { return ConvolutionAxis::make(size, kernel, stride, padding, sizes[10]); };
  return sizes[0] ? *cuda::phased(Deconvolution{n, in, out, transposed(sizes[4]), transposed(sizes[5])})
                  : *cuda::phased(Convolution{n, in, out, plain(sizes[4]), plain(sizes[5])});
}

// Of a contiguous weight: [in, out, kernel, kernel] if transposed, else [out, in, kernel, kernel].
cuda::WeightStrides weight_strides(const int64_t* sizes) {
  const int64_t in = sizes[2], out = sizes[3], taps = sizes[6] * sizes[6];
  return {sizes[0] ? taps : in * taps, sizes[0] ? out * taps : taps, sizes[6], 1};
}

}  // namespace

CUDA_ON_CPU_BINDINGS {
  using cuda_on_cpu::bind;

  bind("packed_weight_numel",
       [](cuda::DType dtype, const int64_t* sizes) { return cuda::packed_weight_numel(dtype, geometry(sizes)); });
  bind("pack_weight", [](cuda::DType dtype, const int64_t* sizes, const void* weight, void* packed) {
    cuda::pack_weight(dtype, geometry(sizes), weight, weight_strides(sizes), packed, nullptr);
  });
  bind("choose_tile",
       [](const int64_t* sizes, int multiprocessors) { return cuda::choose_tile(geometry(sizes), multiprocessors); });
  bind("statistics_splits",
       [](const int64_t* sizes, cuda::GemmTileChoice tile) { return cuda::statistics_splits(geometry(sizes), tile); });
  bind("convolution_tensor_core",
       [](cuda::DType dtype, const int64_t* sizes, cuda::GemmTileChoice tile, const void* input, const void* packed,
          const float* bias, const float* mean, const float* var, const float* bn_weight, const float* bn_bias,
          double eps, Activation activation, float negative_slope, void* output, float* moments) {
         cuda::convolution_tensor_core(dtype, geometry(sizes), tile, input, packed,
                                       {bias, mean, var, bn_weight, bn_bias, eps}, activation, negative_slope, output,
                                       moments, nullptr);
       });
}

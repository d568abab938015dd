// SPDX-License-Identifier: MIT
#include "binding.h"
#include "cuda/conv_transpose2d_narrow_kernel.h"
#include "cuda/convolution_tensor_core_kernel.h"
#include "cuda/convolution_wgmma_kernel.h"

namespace {

using namespace genimg_fast;

// sizes: transposed (0 or 1), N, Cin, Cout, H, W, kernel, stride, padding, output_padding, dilation
Deconvolution deconvolution(const int64_t* sizes) {
  auto axis = [&](int64_t size) { return DeconvolutionAxis::make(size, sizes[6], sizes[7], sizes[8], sizes[9]); };
  return {sizes[1], sizes[2], sizes[3], axis(sizes[4]), axis(sizes[5])};
}
Convolution convolution(const int64_t* sizes) {
  auto axis = [&](int64_t size) { return ConvolutionAxis::make(size, sizes[6], sizes[7], sizes[8], sizes[10]); };
  return {sizes[1], sizes[2], sizes[3], axis(sizes[4]), axis(sizes[5])};
}
cuda::PhasedConvolution geometry(const int64_t* sizes) {
  return sizes[0] ? *cuda::phased(deconvolution(sizes)) : *cuda::phased(convolution(sizes));
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
          cuda::ChannelVector bias, cuda::ChannelVector mean, cuda::ChannelVector var, cuda::ChannelVector bn_weight,
          cuda::ChannelVector bn_bias, double eps, Activation activation, float negative_slope, void* output,
          float* moments) {
         cuda::convolution_tensor_core(dtype, geometry(sizes), tile, input, packed,
                                       {bias, mean, var, bn_weight, bn_bias, eps}, activation, negative_slope, output,
                                       moments, nullptr);
       });

  bind("why_not_wgmma",
       [](cuda::DType dtype, const int64_t* sizes) { return cuda::why_not_wgmma(dtype, geometry(sizes)) != nullptr; });
  bind("choose_wgmma_tile", [](const int64_t* sizes, int multiprocessors) {
    return cuda::choose_wgmma_tile(geometry(sizes), multiprocessors);
  });
  bind("wgmma_statistics_splits", [](const int64_t* sizes, cuda::WgmmaTileChoice tile) {
    return cuda::wgmma_statistics_splits(geometry(sizes), tile);
  });
  bind("convolution_wgmma", [](cuda::DType dtype, const int64_t* sizes, cuda::WgmmaTileChoice tile, const void* input,
                               const void* packed, cuda::ChannelVector bias, cuda::ChannelVector mean,
                               cuda::ChannelVector var, cuda::ChannelVector bn_weight, cuda::ChannelVector bn_bias,
                               double eps, Activation activation, float negative_slope, void* output, float* moments) {
    cuda::convolution_wgmma(dtype, geometry(sizes), tile, input, packed, {bias, mean, var, bn_weight, bn_bias, eps},
                            activation, negative_slope, output, moments, nullptr);
  });

  bind("why_not_narrow", [](cuda::DType dtype, const int64_t* sizes) {
    return cuda::why_not_narrow(dtype, deconvolution(sizes)) != nullptr;
  });
  bind("narrow_packed_numel",
       [](cuda::DType dtype, const int64_t* sizes) { return cuda::narrow_packed_numel(dtype, deconvolution(sizes)); });
  bind("narrow_pack_weight", [](cuda::DType dtype, const int64_t* sizes, const void* weight, void* packed) {
    cuda::narrow_pack_weight(dtype, deconvolution(sizes), weight, weight_strides(sizes), packed, nullptr);
  });
  bind("conv_transpose2d_narrow",
       [](cuda::DType dtype, const int64_t* sizes, const void* input, const void* packed, cuda::ChannelVector bias,
          cuda::ChannelVector mean, cuda::ChannelVector var, cuda::ChannelVector bn_weight, cuda::ChannelVector bn_bias,
          double eps, Activation activation, float negative_slope, void* output, MemoryOrder order) {
         cuda::conv_transpose2d_narrow(dtype, deconvolution(sizes), input, packed,
                                       {bias, mean, var, bn_weight, bn_bias, eps}, activation, negative_slope, output,
                                       order, nullptr);
       });
}

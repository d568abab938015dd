// SPDX-License-Identifier: MIT
// The geometry of a convolution with groups = 1, and its relation to the transposed one (deconvolution.h): the gradient
// of either with respect to its input is the other, with the same weight.
#pragma once
#include "common/deconvolution.h"

namespace genimg_fast {

// One dimension (rows or columns).  Output o sees input o * stride - padding + k * dilation through tap k.
struct ConvolutionAxis {
  int64_t input, output, kernel, stride, padding, dilation;

  static ConvolutionAxis make(int64_t input, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
    return {input, (input + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1, kernel, stride, padding, dilation};
  }
  // Input positions of the same residue modulo the stride make a phase: the taps that see one, or one fewer.
  int64_t phase_taps() const { return (kernel + stride - 1) / stride; }
};

struct Convolution {
  int64_t batch, in_channels, out_channels;
  ConvolutionAxis y, x;

  GENIMG_FAST_HOST_DEVICE int64_t taps() const { return y.kernel * x.kernel; }
  GENIMG_FAST_HOST_DEVICE int64_t pixels() const { return batch * y.output * x.output; }
  // Whether both dimensions are of this kind.
  bool has(int64_t kernel, int64_t stride) const {
    auto fits = [&](const ConvolutionAxis& a) { return a.kernel == kernel && a.stride == stride && a.dilation == 1; };
    return fits(y) && fits(x);
  }
};

// The convolution that leads from the output's shape back to the input's.
inline Convolution adjoint(const Deconvolution& conv) {
  auto axis = [](const DeconvolutionAxis& a) {
    return ConvolutionAxis{a.output, a.input, a.kernel, a.stride, a.padding, 1};
  };
  return {conv.batch, conv.out_channels, conv.in_channels, axis(conv.y), axis(conv.x)};
}

// Dilation must be 1.
inline Deconvolution adjoint(const Convolution& conv) {
  auto axis = [](const ConvolutionAxis& a) {
    const int64_t stride = a.output == 1 ? a.input + a.kernel + a.padding : a.stride;  // as DeconvolutionAxis::make
    return DeconvolutionAxis{a.output, a.input, a.kernel, stride, a.padding};
  };
  return {conv.batch, conv.out_channels, conv.in_channels, axis(conv.y), axis(conv.x)};
}

}  // namespace genimg_fast

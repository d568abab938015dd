// SPDX-License-Identifier: MIT
// The geometry of a transposed convolution, for host and device.
//
// Output row oy receives weight row ky from input row iy where oy + padding = iy * stride + ky.  So the rows with the
// same residue r = oy % stride see the same taps:
//
//      ky = (r + padding) % stride, that + stride, that + 2 * stride, ...
//      iy = oy / stride + (r + padding - ky) / stride
//
// One residue a dimension makes a phase; each phase is an ordinary stride-1 convolution over its own taps, and a stride
// of s makes s * s of them.  With k4 s2 p1, rows:
//
//      output row   0   1   2   3   4   5          phase 0 (even):  ky = 1 from iy = j,     ky = 3 from iy = j - 1
//      phase        0   1   0   1   0   1          phase 1 (odd):   ky = 0 from iy = j + 1, ky = 2 from iy = j
//      j            0   0   1   1   2   2
#pragma once
#include "common/activation.h"

namespace genimg_fast {

// One dimension (rows or columns).
struct DeconvolutionAxis {
  int64_t input, output, kernel, stride, padding;

  // An input of size 1 meets each output position with one tap.  Seen with a stride beyond the output every position is
  // a phase of its own with that one tap, and nothing is multiplied by padding.
  static DeconvolutionAxis make(int64_t input, int64_t kernel, int64_t stride, int64_t padding,
                                int64_t output_padding) {
    const int64_t output = (input - 1) * stride - 2 * padding + kernel + output_padding;
    if (input == 1) stride = output + kernel + padding;
    return {input, output, kernel, stride, padding};
  }

  GENIMG_FAST_HOST_DEVICE int64_t phases() const { return stride < output ? stride : output; }
  GENIMG_FAST_HOST_DEVICE int64_t positions(int64_t phase) const { return (output - phase + stride - 1) / stride; }
  GENIMG_FAST_HOST_DEVICE int64_t first_tap(int64_t phase) const { return (phase + padding) % stride; }
  GENIMG_FAST_HOST_DEVICE int64_t taps(int64_t phase) const {
    const int64_t first = first_tap(phase);
    return first < kernel ? (kernel - first + stride - 1) / stride : 0;
  }
  // Of the phase's tap number t: its index in the kernel, and the input position minus j.
  GENIMG_FAST_HOST_DEVICE int64_t tap(int64_t phase, int64_t t) const { return first_tap(phase) + t * stride; }
  GENIMG_FAST_HOST_DEVICE int64_t shift(int64_t phase, int64_t t) const {
    return (phase + padding) / stride - t;  // (phase + padding - tap) / stride, which divides without a rest
  }
};

struct Deconvolution {
  int64_t batch, in_channels, out_channels;
  DeconvolutionAxis y, x;

  GENIMG_FAST_HOST_DEVICE int64_t phases() const { return y.phases() * x.phases(); }
  // Output positions of a phase over the whole batch, and the length of the dot product behind each value there.
  GENIMG_FAST_HOST_DEVICE int64_t rows(int64_t phase) const {
    return batch * y.positions(phase / x.phases()) * x.positions(phase % x.phases());
  }
  GENIMG_FAST_HOST_DEVICE int64_t depth(int64_t phase) const {
    return y.taps(phase / x.phases()) * x.taps(phase % x.phases()) * in_channels;
  }
};

// Bias and batch normalisation with fixed statistics, as a scale and a shift of each channel:
// ((x + bias) - mean) / sqrt(var + eps) * bn_weight + bn_bias.  Every vector may be null; without var there is only
// bias.
template <typename T, typename Vector = const T*>
struct ChannelAffine {
  Vector bias, mean, var, bn_weight, bn_bias;
  double eps;

  template <typename Compute>
  GENIMG_FAST_HOST_DEVICE void at(int64_t channel, Compute* scale, Compute* shift) const {
    *scale = 1;
    *shift = bias ? static_cast<Compute>(bias[channel]) : Compute(0);
    if (!var) return;
    *scale = (bn_weight ? static_cast<Compute>(bn_weight[channel]) : Compute(1)) /
             sqrt(static_cast<Compute>(var[channel]) + static_cast<Compute>(eps));
    *shift = (*shift - static_cast<Compute>(mean[channel])) * *scale +
             (bn_bias ? static_cast<Compute>(bn_bias[channel]) : Compute(0));
  }
};

}  // namespace genimg_fast

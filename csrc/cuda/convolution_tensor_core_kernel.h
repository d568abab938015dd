// SPDX-License-Identifier: MIT
#pragma once
#include <optional>

#include "common/convolution.h"
#include "cuda/channel_vector.h"

namespace genimg_fast::cuda {

// An axis of a gather (implicit_gemm.cuh): position p sees, through tap t, pixel p * step + origin + t * tap_step.
struct GatherAxis {
  int size;  // of the image
  int positions, step, origin;
  int taps, tap_step;
};

// One phase of a convolution along one axis.
struct PhaseAxis {
  GatherAxis gather;
  int first_tap, tap_stride;     // the taps' places in the kernel: first_tap, + tap_stride, ...
  int first_output, out_stride;  // the positions' places in the output
};

// What the tensor-core kernels compute: a transposed convolution, phase by phase, or a convolution, which has one
// phase.
struct PhasedConvolution {
  static constexpr int kMaxPhases = 8;  // along an axis

  int64_t batch, in_channels, out_channels;
  int y_output, x_output, y_phases, x_phases;
  PhaseAxis y[kMaxPhases], x[kMaxPhases];
};

// Nothing if it has more phases than fit, or an axis of more than 2^30 pixels.
std::optional<PhasedConvolution> phased(const Deconvolution& conv);
std::optional<PhasedConvolution> phased(const Convolution& conv);

// Why the kernels cannot take a convolution of such values, or null.  All tensors must be channels_last and begin at
// multiples of 16 bytes.
const char* why_not_tensor_cores(DType dtype, const PhasedConvolution& conv);

// Element strides of a weight, whose own order of dimensions is (out, in) for a convolution and (in, out) for a
// transposed one.
struct WeightStrides {
  int64_t out, in, y, x;
};

// The weight as the kernels read it: packed[phase][out_channels][tap, channel], each phase's taps alone, the depth
// filled with zeros to a whole number of steps, of each tap or with few channels of all together; for float32 rounded
// to tf32.
struct PackedWeightShape {
  int64_t taps;       // of the phase that has most
  int64_t tap_depth;  // elements from a tap to the next
  int64_t depth;      // of a row: from an output channel to the next
};
PackedWeightShape packed_weight_shape(DType dtype, const PhasedConvolution& conv);
int64_t packed_weight_numel(DType dtype, const PhasedConvolution& conv);
void pack_weight(DType dtype, const PhasedConvolution& conv, const void* weight, const WeightStrides& strides,
                 void* packed, Stream stream);

enum class GemmTileChoice : int64_t { m128n128 = 0, m256n64 = 1, m128n64 = 2, m64n64 = 3 };
constexpr int64_t kGemmTileChoices = 4;
// Else choose_tile says which one there is.
bool takes_any_tile(DType dtype, const PhasedConvolution& conv);

// The tile with which the kernel is expected to take least time on a GPU of so many multiprocessors, or on the current
// one.
GemmTileChoice choose_tile(const PhasedConvolution& conv, int multiprocessors);
GemmTileChoice choose_tile(const PhasedConvolution& conv);

// Rows of Moments<float>[out_channels] that the kernel leaves where statistics are asked for.
int64_t statistics_splits(const PhasedConvolution& conv, GemmTileChoice tile);

// output = activation(affine(convolution(input))), both images channels_last.  float32 is multiplied as tf32.  With
// `moments`, also the statistics of `output` before activation, for batch_norm_merge_statistics (activation must be
// none).  The tile must be the chosen one, or any if in_channels is a multiple of 8.
void convolution_tensor_core(DType dtype, const PhasedConvolution& conv, GemmTileChoice tile, const void* input,
                             const void* packed, const ChannelAffine& affine, Activation activation,
                             float negative_slope, void* output, float* moments, Stream stream);

}  // namespace genimg_fast::cuda

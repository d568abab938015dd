// SPDX-License-Identifier: MIT
// What the CPU's convolution kernels have in common: the ways to compute one, packed weights, and what is fused with
// the reading of the input and the writing of the output.
#pragma once
#include <cstdint>
#include <type_traits>

#include "common/activation.h"
#include "common/channel_layout.h"
#include "cpu/isa.h"

namespace genimg_fast::cpu {

// The ways to compute a convolution.  Toom-Cook serves some kernels; a number is the edge of its tiles.  Unpacked is
// for few pixels: reading the weight where it lies, once, then takes less time than packing it. The numbers are those
// of VARIANTS in genimg_fast/backends/cpu.py.
enum class Variant : int64_t { automatic = 0, direct = 1, toom_cook_2 = 2, toom_cook_4 = 3, narrow = 4, unpacked = 5 };

constexpr int64_t kMostUnpackedPixels = 64;  // of the smaller image, in the whole batch

inline bool is_toom_cook(Variant variant) { return variant == Variant::toom_cook_2 || variant == Variant::toom_cook_4; }
inline int64_t tile_edge(Variant variant) { return variant == Variant::toom_cook_2 ? 2 : 4; }

// Process-wide settings.  A forced variant that cannot compute a shape gives way to direct.
void force_variant(Variant);
Variant forced_variant();
void allow_winograd(bool);
bool winograd_allowed();

// Who asks for double asks for precision, and gets Toom-Cook only if it is forced.
template <typename T>
bool may_toom_cook() {
  return winograd_allowed() && std::is_same_v<T, float>;
}

// What a packed weight is.  It serves any batch on the instruction set that it was packed for.
struct PackedLayout {
  Variant variant;
  Isa isa;
  int64_t count;  // elements
};

// What happens to a value of the input as it is read: activation((x - mean[c]) * scale[c] + shift[c]), which is the
// normalisation and activation of the block before.  Padding stays 0.  With a null mean nothing happens.
template <typename T>
struct Prologue {
  const T *mean = nullptr, *scale = nullptr, *shift = nullptr;  // [Cin]
  Activation activation = Activation::none;
  T negative_slope = 0;
};

// What happens to a sum before it is stored: activation(sum * scale[channel] + shift[channel]).
template <typename T>
struct Epilogue {
  const T *scale, *shift;  // [Cout]
  Activation activation;
  T negative_slope;
};

}  // namespace genimg_fast::cpu

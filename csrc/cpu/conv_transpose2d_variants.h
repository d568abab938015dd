// SPDX-License-Identifier: MIT
// What each variant of the transposed convolution offers to conv_transpose2d_bn_act_kernel.cpp, which chooses among
// them. Every variant packs and runs as conv_transpose2d_bn_act_kernel.h says; `sums` is [parts][Cout] for
// channel_sums.h, sized and filled by run() if it is not null.
#pragma once
#include <vector>

#include "cpu/channel_sums.h"
#include "cpu/conv_transpose2d_bn_act_kernel.h"

namespace genimg_fast::cpu {

template <typename T>
struct ConvTranspose2dCall {
  const Deconvolution& conv;
  const T* input;
  const Prologue<T>& prologue;
  const T* packed;
  const Epilogue<T>& epilogue;
  T* output;
  MemoryOrder order;
};

namespace direct {
template <typename T>
int64_t packed_count(const Deconvolution& conv);
template <typename T>
void pack(const Deconvolution& conv, const T* weight, T* packed);
template <typename T>
void run(const ConvTranspose2dCall<T>& call, std::vector<ChannelSums<T>>* sums);
}  // namespace direct

namespace toom_cook {
bool supports(const Deconvolution& conv, int64_t m);
template <typename T>
int64_t packed_count(const Deconvolution& conv, int64_t m);
template <typename T>
void pack(const Deconvolution& conv, int64_t m, const T* weight, T* packed);
template <typename T>
void run(const ConvTranspose2dCall<T>& call, int64_t m, std::vector<ChannelSums<T>>* sums);
}  // namespace toom_cook

// By conv2d_toom_cook.cpp, at the variants' names of Toom-Cook.
namespace subpixel {
bool is_subpixel(const Deconvolution& conv);
bool supports(const Deconvolution& conv, int64_t m);
template <typename T>
int64_t packed_count(const Deconvolution& conv, int64_t m);
template <typename T>
void pack(const Deconvolution& conv, int64_t m, const T* weight, T* packed);
template <typename T>
void run(const ConvTranspose2dCall<T>& call, int64_t m, std::vector<ChannelSums<T>>* sums);
}  // namespace subpixel

namespace narrow {
bool supports(const Deconvolution& conv);
template <typename T>
int64_t packed_count(const Deconvolution& conv);
template <typename T>
void pack(const Deconvolution& conv, const T* weight, T* packed);
template <typename T>
void run(const ConvTranspose2dCall<T>& call, std::vector<ChannelSums<T>>* sums);
}  // namespace narrow

// A weight is packed by copying it.
namespace unpacked {
bool supports(const Deconvolution& conv);
template <typename T>
void run(const ConvTranspose2dCall<T>& call, std::vector<ChannelSums<T>>* sums);
}  // namespace unpacked

}  // namespace genimg_fast::cpu

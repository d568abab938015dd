// SPDX-License-Identifier: MIT
// What the registrations of the two convolution blocks share.
#pragma once
#include "common/deconvolution.h"
#include "ops/tensor.h"

namespace genimg_fast {

using torch::headeronly::MemoryFormat;
using Pair = std::vector<int64_t>;

inline std::vector<int64_t> sizes_of(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

// dtype: that of all of them, unless each may have its own.
template <typename... Optionals>
void check_channels(int64_t channels, std::optional<ScalarType> dtype, const Optionals&... tensors) {
  auto fits = [&](const OptionalTensor& t) {
    return !t || (t->numel() == channels && t->is_contiguous() && (!dtype || t->scalar_type() == *dtype));
  };
  check((fits(tensors) && ...), "genimg_fast: a convolution's per-channel tensor must be contiguous, hold Cout values ",
        "and, on the CPU, be of input's dtype");
}

// Geometry: Convolution or Deconvolution.
template <typename Geometry>
std::vector<int64_t> output_sizes(const Geometry& conv) {
  return {conv.batch, conv.out_channels, conv.y.output, conv.x.output};
}

inline Tensor to_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }
inline OptionalTensor to_contiguous(const OptionalTensor& t) { return t ? OptionalTensor(to_contiguous(*t)) : t; }

inline std::array<int64_t, 4> image_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  const int64_t c = sizes[1], h = sizes[2], w = sizes[3];
  if (channels_last) return {c * h * w, 1, c * w, c};
  return {c * h * w, h * w, w, 1};
}
// The same memory, for images of one channel or one pixel, which lie in both orders: PyTorch's operators lay out what
// they return by what the strides say.
inline Tensor with_strides_of_nchw(const Tensor& t) {
  const std::vector<int64_t> sizes = sizes_of(t);
  AtenTensorHandle made = nullptr;
  check(aoti_torch__reinterpret_tensor(t.get(), 4, sizes.data(), image_strides(sizes, false).data(), 0, &made) == 0,
        "genimg_fast: an image took no strides");
  return Tensor(made);
}
// By the C shim, which unlike torch::stable::empty does not look an operator up by its name: five blocks of one small
// image take little longer than that.
inline Tensor new_image(const Tensor& like, const std::vector<int64_t>& sizes, bool channels_last) {
  const std::array<int64_t, 4> strides = image_strides(sizes, channels_last);
  int32_t dtype = 0, device_type = 0, device_index = 0;
  AtenTensorHandle made = nullptr;
  check(aoti_torch_get_dtype(like.get(), &dtype) == 0 && aoti_torch_get_device_type(like.get(), &device_type) == 0 &&
            aoti_torch_get_device_index(like.get(), &device_index) == 0 &&
            aoti_torch_empty_strided(4, sizes.data(), strides.data(), dtype, device_type, device_index, &made) == 0,
        "genimg_fast: no memory for an image");
  return in_huge_pages(Tensor(made));
}
inline Tensor new_channels_last(const Tensor& like, const std::vector<int64_t>& sizes) {
  return new_image(like, sizes, true);
}

// The scale and the shift of each channel.
template <typename T>
void fold(const ChannelAffine<T>& affine, int64_t channels, std::vector<T>& scale, std::vector<T>& shift) {
  scale.resize(channels);
  shift.resize(channels);
  for (int64_t c = 0; c < channels; ++c) {
    double channel_scale, channel_shift;
    affine.at(c, &channel_scale, &channel_shift);
    scale[c] = static_cast<T>(channel_scale);
    shift[c] = static_cast<T>(channel_shift);
  }
}

}  // namespace genimg_fast

// SPDX-License-Identifier: MIT
// The little that the registration files need of a tensor, on LibTorch's stable ABI alone.
//
// The messages a user reads come from genimg_fast/ops/_check.py, which every backend shares, the pure-PyTorch one
// included.  What is checked here is what keeps a direct torch.ops call from touching memory it must not.
#pragma once

#include "ops/torch_error.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/activation.h"
#include "cpu/aligned_array.h"

namespace genimg_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline Activation activation_of(int64_t code) {
  check(code >= 0 && code <= static_cast<int64_t>(Activation::sigmoid), "genimg_fast: unknown activation code ", code);
  return static_cast<Activation>(code);
}

// No holes and no overlaps: the elements fill one block of memory, in any order of dimensions (NCHW, channels_last,
// ...).
inline bool is_dense(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // (stride, size)
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) == 0) return true;
    if (t.size(d) != 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (auto [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

inline bool on_same_device(const Tensor& a, const Tensor& b) {
  return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin());
}

// Memory order N, (D,) H, W, C, with or without gaps, by the rule of torch's operators (suggest_memory_format), which
// lay out by it what they return: the strides tell even where sizes of 1 leave both orders possible.
inline bool is_channels_last(const Tensor& t) {
  const int64_t dims = t.dim();
  if (dims < 4 || dims > 5 || t.stride(1) == 0) return false;
  int64_t least = 0;
  auto lies_outside = [&](int64_t d) {
    if (t.size(d) == 0 || t.stride(d) < least || (d == 0 && least == t.stride(1))) return false;
    least = t.stride(d) * t.size(d);
    return true;
  };
  if (!lies_outside(1)) return false;
  for (int64_t d = dims - 1; d > 1; --d)
    if (!lies_outside(d)) return false;
  return lies_outside(0);
}

// Whether the values of an image lie as in a dense [N, H, W, C], whatever the strides of sizes of 1 say.
inline bool lies_in_channels_last(const Tensor& t) {
  if (t.dim() != 4) return false;
  const int64_t c = t.size(1), h = t.size(2), w = t.size(3);
  const std::array<int64_t, 4> strides{c * h * w, 1, c * w, c};
  for (int64_t d = 0; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != strides[d]) return false;
  return true;
}

// Both walk memory in the same order.  The stride of a dimension of size 1 means nothing.
inline bool same_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// For a tensor not written yet.  The allocator gives large blocks back to the system and gets them anew, and a fresh
// page of 4 KiB takes longer to fault in than to fill.
inline Tensor in_huge_pages(Tensor t) {
  const int64_t bytes = t.numel() * t.element_size();
  if (t.is_cpu() && bytes >= 2 * cpu::kHugePage) cpu::advise_huge_pages(t.mutable_data_ptr(), bytes);
  return t;
}

// As torch.empty_like(t).
inline Tensor new_like(const Tensor& t) { return in_huge_pages(torch::stable::empty_like(t)); }

// As torch.empty_like(t, dtype=dtype).
inline Tensor new_like(const Tensor& t, ScalarType dtype) {
  using torch::stable::detail::from;
  std::array<StableIValue, 6> stack{
      from(t),           from(std::optional(dtype)), from(std::nullopt), from(std::nullopt), from(std::nullopt),
      from(std::nullopt)};
  check(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION) == 0,
        "genimg_fast: no memory for ", t.numel(), " elements");
  return in_huge_pages(torch::stable::detail::to<Tensor>(stack[0]));
}

inline Tensor densely_copied(const Tensor& t, const Tensor& layout) {
  Tensor copy = new_like(layout, t.scalar_type());
  return torch::stable::copy_(copy, t);
}

// Lays `t` out so that its element i in memory order belongs to element i of `dense`: as it is if it already lies so,
// else as a copy.
inline void lay_out_like_in_own_dtype(const Tensor& dense, Tensor& t) {
  check(same_sizes(dense, t), "genimg_fast: elementwise operands differ in shape");
  check(on_same_device(dense, t), "genimg_fast: elementwise operands are on different devices");
  if (!same_order(dense, t)) t = densely_copied(t, dense);
}
inline void lay_out_like(const Tensor& dense, Tensor& t) {
  check(dense.scalar_type() == t.scalar_type(), "genimg_fast: elementwise operands differ in dtype");
  lay_out_like_in_own_dtype(dense, t);
}
inline void lay_out_like(const Tensor& dense, OptionalTensor& t) {
  if (t) lay_out_like(dense, *t);
}

// All the tensors in the memory order of the first, which new_like() keeps: channels_last in,
// channels_last out.
template <typename... Tensors>
void make_elementwise(Tensor& first, Tensors&... rest) {
  if (!is_dense(first)) first = densely_copied(first, first);
  (lay_out_like(first, rest), ...);
}

inline Tensor new_scalar(const Tensor& like) { return torch::stable::new_empty(like, {}); }

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <typename T>
const T* data(const OptionalTensor& t) {
  return t ? data<T>(*t) : nullptr;
}
template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Calls body(T{}) with T the element type: float or double, what the CPU kernels are made for.
template <typename Body>
auto dispatch_float_double(const Tensor& t, const Body& body) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    default:
      throw std::runtime_error("genimg_fast: the CPU kernels take float32 or float64");
  }
}

}  // namespace genimg_fast

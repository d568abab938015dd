// SPDX-License-Identifier: MIT
// The little that the registration files need of a tensor, on LibTorch's stable ABI alone.
//
// The messages a user reads come from genimg_fast/ops/_check.py, which every backend shares, the pure-PyTorch one
// included.  What is checked here is what keeps a direct torch.ops call from touching memory it must not.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

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

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && std::equal(a.sizes().begin(), a.sizes().end(), b.sizes().begin());
}

// Both walk memory in the same order.  The stride of a dimension of size 1 means nothing.
inline bool same_order(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// The same tensors, laid out so that element i of one belongs to element i of the others in memory order: as they are
// if dense and alike, else contiguous copies.
template <typename... Tensors>
void make_elementwise(Tensor& first, Tensors&... rest) {
  (check(same_sizes(first, rest), "genimg_fast: elementwise operands differ in shape"), ...);
  (check(first.scalar_type() == rest.scalar_type(), "genimg_fast: elementwise operands differ in dtype"), ...);
  (check(first.is_cuda() == rest.is_cuda(), "genimg_fast: elementwise operands are on different devices"), ...);
  if (is_dense(first) && (same_order(first, rest) && ...)) return;
  first = torch::stable::contiguous(first);
  ((rest = torch::stable::contiguous(rest)), ...);
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

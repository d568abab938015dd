// SPDX-License-Identifier: MIT
// A chain of blocks, each a convolution or transposed convolution (+ batch normalisation) (+ activation), as the
// registrations of training and inference see it.
#pragma once
#include "cpu/convolution_layer.h"
#include "cpu/memory_order_kernel.h"
#include "cpu/thread_workspace.h"
#include "ops/conv2d_bn_act.h"
#include "ops/conv_transpose2d_bn_act.h"

namespace genimg_fast {

// Images in another memory order; as they are if they lie in it already.  PyTorch's own copy takes up to ten times as
// long.
inline Tensor to_channels_last(const Tensor& t) {
  if (lies_in_channels_last(t)) return t;
  if (!t.is_contiguous()) return torch::stable::contiguous(t, MemoryFormat::ChannelsLast);
  Tensor out = new_channels_last(t, sizes_of(t));
  dispatch_float_double(t, [&](auto zero) {
    using T = decltype(zero);
    cpu::transpose_each(data<T>(t), t.size(0), t.size(1), t.size(2) * t.size(3), mutable_data<T>(out));
  });
  return out;
}
inline Tensor to_nchw(const Tensor& t) {
  if (t.is_contiguous()) return is_channels_last(t) ? with_strides_of_nchw(t) : t;
  const Tensor from = to_channels_last(t);
  Tensor out = new_image(t, sizes_of(t), false);
  dispatch_float_double(t, [&](auto zero) {
    using T = decltype(zero);
    cpu::transpose_each(data<T>(from), t.size(0), t.size(2) * t.size(3), t.size(1), mutable_data<T>(out));
  });
  return out;
}

// The values of a weight that is contiguous or channels_last, as the kernels take them.  They hold until the thread's
// next call.
template <typename T>
const T* contiguous_values(const Tensor& weight) {
  if (weight.is_contiguous()) return data<T>(weight);
  T* values = cpu::reordering_memory<T>(weight.numel());
  cpu::transpose_each(data<T>(weight), weight.size(0), weight.size(2) * weight.size(3), weight.size(1), values);
  return values;
}

struct Geometry {
  bool transposed;
  Pair stride, padding, output_padding, dilation;

  // On an input of these sizes.
  cpu::ConvolutionLayer layer(const std::vector<int64_t>& input, const Tensor& weight) const {
    const std::vector<int64_t> w = sizes_of(weight);
    if (transposed) return cpu::ConvolutionLayer(deconvolution(input, w, stride, padding, output_padding));
    return cpu::ConvolutionLayer(convolution(input, w, stride, padding, dilation));
  }
};

inline std::vector<int64_t> output_sizes(const cpu::ConvolutionLayer& layer) {
  if (layer.transposed) return output_sizes(layer.up);
  return {layer.down.batch, layer.down.out_channels, layer.down.y.output, layer.down.x.output};
}

// What a block normalises by.
enum class Statistics : int64_t { none = 0, batch = 1, fixed = 2 };

// One block, with its tensors.  `code` is what genimg_fast/ops/block_chain.py makes of it: kCodes integers.
struct Block {
  static constexpr size_t kCodes = 14, kNumbers = 2;

  Geometry geometry;
  Activation activation;
  Statistics statistics;
  double eps, negative_slope;
  Tensor weight;  // contiguous or channels_last
  OptionalTensor bias, bn_weight, bn_bias;

  // Takes its tensors from `parameters`, from `next` on.
  Block(const int64_t* code, const double* numbers, const std::vector<Tensor>& parameters, size_t& next)
      : geometry{code[0] != 0, {code[1], code[2]}, {code[3], code[4]}, {code[5], code[6]}, {code[7], code[8]}},
        activation(activation_of(code[9])),
        statistics(static_cast<Statistics>(code[10])),
        eps(numbers[0]),
        negative_slope(numbers[1]),
        weight(take(parameters, next)) {
    check(weight.dim() == 4, "block_chain: weight must have 4 dimensions");
    if (!lies_in_channels_last(weight)) weight = to_contiguous(weight);
    check(code[10] >= 0 && code[10] <= 2, "block_chain: unknown kind of statistics");
    if (code[11]) bias = to_contiguous(take(parameters, next));
    if (code[12]) bn_weight = to_contiguous(take(parameters, next));
    if (code[13]) bn_bias = to_contiguous(take(parameters, next));
    check_channels(out_channels(), weight.scalar_type(), bias, bn_weight, bn_bias);
  }

  bool normalized() const { return statistics != Statistics::none; }
  int64_t out_channels() const { return geometry.transposed ? weight.size(1) : weight.size(0); }
  // Its tensors in the order of `parameters`.
  int64_t parameter_count() const { return 1 + bias.has_value() + bn_weight.has_value() + bn_bias.has_value(); }

 private:
  static const Tensor& take(const std::vector<Tensor>& parameters, size_t& next) {
    check(next < parameters.size(), "block_chain: too few parameters");
    return parameters[next++];
  }
};

inline std::vector<Block> read_blocks(const Tensor& input, const std::vector<Tensor>& parameters,
                                      const std::vector<int64_t>& codes, const std::vector<double>& numbers) {
  for (const Tensor& p : parameters)
    check(p.scalar_type() == input.scalar_type(), "block_chain: a parameter is not of input's dtype");
  const size_t count = codes.size() / Block::kCodes;
  check(count > 0 && codes.size() == count * Block::kCodes && numbers.size() == count * Block::kNumbers,
        "block_chain: malformed description");
  std::vector<Block> blocks;
  size_t next = 0;
  for (size_t i = 0; i < count; ++i)
    blocks.emplace_back(codes.data() + i * Block::kCodes, numbers.data() + i * Block::kNumbers, parameters, next);
  check(next == parameters.size(), "block_chain: too many parameters");
  return blocks;
}

// What each block normalises by; undefined tensors where it does not.
struct Moments {
  Tensor mean, var;
};

// Hands (mean, var) out of flat lists: `batch` to the blocks that took them of their batch, `fixed` to those that were
// given them.
inline std::vector<Moments> hand_out(const std::vector<Block>& blocks, const std::vector<Tensor>& batch,
                                     const std::vector<Tensor>& fixed) {
  std::vector<Moments> moments;
  size_t next_batch = 0, next_fixed = 0;
  for (const Block& block : blocks) {
    moments.emplace_back();
    if (!block.normalized()) continue;
    const std::vector<Tensor>& from = block.statistics == Statistics::batch ? batch : fixed;
    size_t& next = block.statistics == Statistics::batch ? next_batch : next_fixed;
    check(next + 2 <= from.size(), "block_chain: too few statistics");
    moments.back() = {to_contiguous(from[next]), to_contiguous(from[next + 1])};
    next += 2;
    check_channels(block.out_channels(), block.weight.scalar_type(), OptionalTensor(moments.back().mean),
                   OptionalTensor(moments.back().var));
  }
  check(next_batch == batch.size() && next_fixed == fixed.size(), "block_chain: too many statistics");
  return moments;
}

// Normalisation with given statistics and activation, for the prologue of the block after.
template <typename T>
struct Normalization {
  std::vector<T> mean, scale, shift;
  cpu::Prologue<T> prologue;

  Normalization(const Block& block, const Moments& moments)
      : mean(data<T>(moments.mean), data<T>(moments.mean) + moments.mean.numel()),
        scale(mean.size()),
        shift(mean.size(), T(0)) {
    for (size_t c = 0; c < scale.size(); ++c) {
      const double weight = block.bn_weight ? data<T>(block.bn_weight)[c] : 1.0;
      scale[c] = static_cast<T>(weight / std::sqrt(static_cast<double>(data<T>(moments.var)[c]) + block.eps));
    }
    if (block.bn_bias) std::copy_n(data<T>(block.bn_bias), shift.size(), shift.begin());
    prologue = {mean.data(), scale.data(), shift.data(), block.activation, static_cast<T>(block.negative_slope)};
  }
};

}  // namespace genimg_fast

// SPDX-License-Identifier: MIT
// Schema and CPU registration of a chain of blocks in training.
//
// Between blocks only the raw output of each convolution exists.  The block after it normalises and activates as it
// reads (Prologue), forward and backward, so that no activation is ever stored.  Images are channels_last inside.
#include "ops/block_chain.h"

#include <cmath>
#include <memory>

#include "cpu/activation_backward_kernel.h"
#include "cpu/batch_norm_act_kernel.h"

namespace genimg_fast {
namespace {

ChannelLayout rows_of(const Tensor& image) {
  const int64_t channels = image.size(1);
  return {channels ? image.numel() / channels : 0, channels, 1};
}

template <typename T>
cpu::BatchNorm<T> batch_norm(const Block& block, const Moments& moments) {
  return {data<T>(moments.mean),
          data<T>(moments.var),
          data<T>(block.bn_weight),
          data<T>(block.bn_bias),
          block.eps,
          block.activation,
          static_cast<T>(block.negative_slope)};
}

// What the blocks hand to each other: an image as it is stored, and how the next block has to read it.
template <typename T>
struct Link {
  Tensor stored;
  std::unique_ptr<Normalization<T>> normalization;  // null: as it is

  cpu::Prologue<T> prologue() const { return normalization ? normalization->prologue : cpu::Prologue<T>{}; }
};

using Saved = std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>>;

template <typename T>
Saved forward(const Tensor& input, const std::vector<Block>& blocks, const std::vector<Tensor>& fixed) {
  std::vector<Tensor> stored, statistics;
  for (const Block& block : blocks)
    if (block.statistics == Statistics::batch)
      for (int i = 0; i < 2; ++i) statistics.push_back(torch::stable::new_empty(input, {block.out_channels()}));
  const std::vector<Moments> moments = hand_out(blocks, statistics, fixed);

  Link<T> link{to_channels_last(input), nullptr};
  for (size_t i = 0; i < blocks.size(); ++i) {
    const Block& block = blocks[i];
    const cpu::ConvolutionLayer layer = block.geometry.layer(sizes_of(link.stored), block.weight);
    const cpu::PackedLayout layout = cpu::choose_layout<T>(layer, true);
    const T* packed = cpu::pack_weight_once(layer, layout, contiguous_values<T>(block.weight));

    std::vector<T> scale, shift;
    fold<T>({data<T>(block.bias), nullptr, nullptr, nullptr, nullptr, 0}, layer.out_channels(), scale, shift);
    const cpu::Epilogue<T> epilogue{scale.data(), shift.data(),
                                    block.normalized() ? Activation::none : block.activation,
                                    static_cast<T>(block.negative_slope)};
    const bool from_batch = block.statistics == Statistics::batch;
    Tensor output = new_channels_last(input, output_sizes(layer));
    cpu::convolution(layer, data<T>(link.stored), link.prologue(), layout, packed, epilogue, mutable_data<T>(output),
                     from_batch ? mutable_data<T>(moments[i].mean) : nullptr,
                     from_batch ? mutable_data<T>(moments[i].var) : nullptr);
    stored.push_back(output);
    link = {output, block.normalized() ? std::make_unique<Normalization<T>>(block, moments[i]) : nullptr};
  }
  Tensor output = stored.back();
  if (blocks.back().normalized()) {
    output = new_channels_last(input, sizes_of(output));
    cpu::batch_norm_act<T>(data<T>(stored.back()), rows_of(output), batch_norm<T>(blocks.back(), moments.back()),
                           mutable_data<T>(output));
  } else {
    stored.pop_back();  // the backward pass is given the output
  }
  return {is_channels_last(input) ? output : to_nchw(output), stored, statistics};
}

Saved training(Tensor input, std::vector<Tensor> parameters, std::vector<Tensor> fixed, std::vector<int64_t> codes,
               std::vector<double> numbers) {
  const std::vector<Block> blocks = read_blocks(input, parameters, codes, numbers);
  return dispatch_float_double(input, [&](auto zero) { return forward<decltype(zero)>(input, blocks, fixed); });
}

// The gradient before normalisation and activation, and those of the block's affine parameters.  It may overwrite grad.
template <typename T>
void normalization_backward(const Block& block, Tensor& grad, bool may_overwrite, const Tensor& raw,
                            const Moments& moments, Tensor& grad_weight, Tensor& grad_bias) {
  Tensor grad_raw = may_overwrite ? grad : new_like(grad);
  grad_weight = torch::stable::new_empty(moments.mean, {moments.mean.numel()});
  grad_bias = torch::stable::new_empty(moments.mean, {moments.mean.numel()});
  cpu::batch_norm_act_backward<T>(data<T>(grad), data<T>(raw), rows_of(raw), batch_norm<T>(block, moments),
                                  block.statistics == Statistics::batch, mutable_data<T>(grad_raw),
                                  mutable_data<T>(grad_weight), mutable_data<T>(grad_bias));
  grad = grad_raw;
}

template <typename T>
void activation_backward(const Block& block, Tensor& grad, bool may_overwrite, const Tensor& output) {
  if (block.activation == Activation::none) return;
  Tensor grad_raw = may_overwrite ? grad : new_like(grad);
  cpu::activation_backward<T>(data<T>(grad), data<T>(output), grad.numel(), block.activation,
                              static_cast<T>(block.negative_slope), mutable_data<T>(grad_raw));
  grad = grad_raw;
}

Tensor channel_sum(const Tensor& image) {
  const std::vector<int64_t> dims{0, 2, 3};
  return torch::stable::sum(image, torch::headeronly::IntHeaderOnlyArrayRef(dims.data(), dims.size()));
}

bool is_of_dtype(const Tensor& input, const std::vector<Tensor>& tensors) {
  return std::all_of(tensors.begin(), tensors.end(),
                     [&](const Tensor& t) { return t.scalar_type() == input.scalar_type(); });
}

using Gradients = std::tuple<Tensor, std::vector<Tensor>>;

// wanted: of the input, then of each parameter.  A gradient that is not wanted comes back empty.
// nchw: the order of the gradient of the input.
template <typename T>
Gradients backward(const Tensor& grad_output, const Tensor& input, const Tensor& output,
                   const std::vector<Block>& blocks, const std::vector<Tensor>& stored,
                   const std::vector<Moments>& moments, const std::vector<int64_t>& wanted, bool nchw) {
  const Tensor none = torch::stable::new_empty(input, {0});
  std::vector<Tensor> grads(wanted.size() - 1, none);
  Tensor grad = to_channels_last(grad_output);
  bool may_overwrite = false;
  int64_t first_parameter = static_cast<int64_t>(grads.size());
  for (size_t i = blocks.size(); i-- > 0;) {
    const Block& block = blocks[i];
    Link<T> link{to_channels_last(i > 0 ? stored[i - 1] : input), nullptr};
    if (i > 0 && blocks[i - 1].normalized())
      link.normalization = std::make_unique<Normalization<T>>(blocks[i - 1], moments[i - 1]);
    const cpu::ConvolutionLayer layer = block.geometry.layer(sizes_of(link.stored), block.weight);
    const Tensor made = to_channels_last(i < stored.size() ? stored[i] : output);
    check(sizes_of(grad) == output_sizes(layer) && same_sizes(grad, made),
          "block_chain_backward: a gradient or a saved tensor has the wrong shape");

    first_parameter -= block.parameter_count();
    int64_t next = first_parameter + 1;
    Tensor *grad_weight = &grads[first_parameter], *grad_bias = block.bias ? &grads[next++] : nullptr;
    if (block.normalized()) {
      Tensor grad_scale, grad_shift;
      normalization_backward<T>(block, grad, may_overwrite, made, moments[i], grad_scale, grad_shift);
      if (block.bn_weight) grads[next++] = grad_scale;
      if (block.bn_bias) grads[next++] = grad_shift;
    } else {
      activation_backward<T>(block, grad, may_overwrite, made);
    }
    if (grad_bias && wanted[1 + first_parameter + 1]) *grad_bias = channel_sum(grad);
    if (wanted[1 + first_parameter]) {
      *grad_weight = new_like(block.weight);
      const bool reorder = !grad_weight->is_contiguous();  // autograd would do so later, and more slowly
      T* values = reorder ? cpu::reordering_memory<T>(grad_weight->numel()) : mutable_data<T>(*grad_weight);
      cpu::convolution_weight_grad<T>(layer, data<T>(grad), data<T>(link.stored), link.prologue(), values);
      if (reorder) {
        const int64_t pixels = grad_weight->size(2) * grad_weight->size(3);
        cpu::transpose_each(values, grad_weight->size(0), grad_weight->size(1), pixels, mutable_data<T>(*grad_weight));
      }
    }
    // wanted[0] is of the input, and those after it of the blocks before this one
    if (std::none_of(wanted.begin(), wanted.begin() + 1 + first_parameter, [](int64_t want) { return want != 0; }))
      return {none, grads};
    Tensor grad_input = new_channels_last(input, sizes_of(link.stored));
    cpu::convolution_input_grad<T>(layer, data<T>(grad), contiguous_values<T>(block.weight),
                                   mutable_data<T>(grad_input));
    grad = grad_input;
    may_overwrite = true;
  }
  return {nchw ? to_nchw(grad) : grad, grads};
}

Gradients training_backward(Tensor grad, Tensor input, Tensor output, std::vector<Tensor> parameters,
                            std::vector<Tensor> fixed, std::vector<Tensor> stored, std::vector<Tensor> statistics,
                            std::vector<int64_t> codes, std::vector<double> numbers, std::vector<int64_t> wanted,
                            bool nchw) {
  const std::vector<Block> blocks = read_blocks(input, parameters, codes, numbers);
  check(stored.size() + !blocks.back().normalized() == blocks.size() && wanted.size() == parameters.size() + 1,
        "block_chain_backward: these tensors are not of this chain");
  check(is_of_dtype(input, {grad, output}) && is_of_dtype(input, stored),
        "block_chain_backward: a gradient or a saved tensor is not of input's dtype");
  const std::vector<Moments> moments = hand_out(blocks, statistics, fixed);
  return dispatch_float_double(input, [&](auto zero) {
    return backward<decltype(zero)>(grad, input, output, blocks, stored, moments, wanted, nchw);
  });
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def(
      "block_chain_training(Tensor input, Tensor[] parameters, Tensor[] fixed, int[] codes, float[] numbers) "
      "-> (Tensor output, Tensor[] stored, Tensor[] statistics)");
  library.def(
      "block_chain_backward(Tensor grad, Tensor input, Tensor output, Tensor[] parameters, Tensor[] fixed, "
      "Tensor[] stored, Tensor[] statistics, int[] codes, float[] numbers, int[] wanted, bool nchw) "
      "-> (Tensor grad_input, Tensor[] grads)");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("block_chain_training", TORCH_BOX(&genimg_fast::training));
  library.impl("block_chain_backward", TORCH_BOX(&genimg_fast::training_backward));
}

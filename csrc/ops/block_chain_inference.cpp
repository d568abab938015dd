// SPDX-License-Identifier: MIT
// Schema and CPU registration of a chain of blocks in inference: weights packed beforehand, normalisation folded into
// the epilogue of each convolution.
//
// A packed weight is one tensor, the kernels' values and after them what tells whether it still serves:
//
//     [layout.count values][way][instruction set][samples of the weight it was made of]
//
// The caller packs anew when the weight's version counter says so.  The samples catch what that counter misses, writes
// through `weight.data`: there is one of each input channel, each output channel and each tap at least.
#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "ops/block_chain.h"

namespace genimg_fast {
namespace {

constexpr int64_t kCodes = 2;  // way and instruction set

// How a weight is packed: by the variant and, since a transposed convolution of one row or column takes its taps in
// another order (DeconvolutionAxis), by whether there is only one.
int64_t way_of(const cpu::ConvolutionLayer& layer, cpu::Variant variant) {
  const bool one_row = layer.transposed && layer.up.y.input == 1,
             one_column = layer.transposed && layer.up.x.input == 1;
  return static_cast<int64_t>(variant) + 256 * one_row + 512 * one_column;
}

int64_t count_samples(const Tensor& weight) {
  return std::max({weight.size(0), weight.size(1), weight.size(2) * weight.size(3)});
}

// Whether `accept(value)` is true for all samples, which it is asked for in turn.
template <typename T, typename Accept>
bool each_sample(const Tensor& weight, const Accept& accept) {
  const T* values = data<T>(weight);
  int64_t at[4] = {};
  for (int64_t i = count_samples(weight); i-- > 0;) {
    int64_t offset = 0;
    for (int d = 0; d < 4; ++d) offset += at[d] * weight.stride(d);
    if (!accept(values[offset])) return false;
    for (const int d : {0, 1, 3})
      if (++at[d] == weight.size(d)) at[d] = 0;
    if (at[3] == 0 && ++at[2] == weight.size(2)) at[2] = 0;
  }
  return true;
}

// What the packed weight is; null if it does not serve.
template <typename T>
std::optional<cpu::PackedLayout> layout_of(const Tensor& packed, const cpu::ConvolutionLayer& layer,
                                           const Tensor& weight) {
  const int64_t count = packed.numel() - kCodes - count_samples(weight);
  if (count < 0 || packed.scalar_type() != weight.scalar_type() || !packed.is_contiguous() || weight.numel() == 0)
    return std::nullopt;
  const T* trailer = data<T>(packed) + count;
  if (!(trailer[0] >= 0 && trailer[0] < 1024)) return std::nullopt;  // some other tensor
  const auto variant = static_cast<cpu::Variant>(static_cast<int64_t>(trailer[0]) % 256);
  const auto layout = cpu::layout_of_variant<T>(layer, variant);
  const auto way = static_cast<T>(way_of(layer, layout.variant));
  const bool is_that = trailer[0] == way && trailer[1] == static_cast<T>(layout.isa);
  if (layout.count != count || !is_that) return std::nullopt;
  const T* sample = trailer + kCodes;  // compared bit by bit: a NaN equals itself
  if (!each_sample<T>(weight, [&](const T& value) { return std::memcmp(&value, sample++, sizeof value) == 0; }))
    return std::nullopt;
  return layout;
}

// Calls visit(i, block, layer, layout, zero) for each block, with the layout that serves it where the weight stays
// packed.
template <typename Visit>
void each_layout(const Tensor& input, const std::vector<Tensor>& parameters, const std::vector<int64_t>& codes,
                 const std::vector<double>& numbers, const Visit& visit) {
  std::vector<int64_t> sizes = sizes_of(input);
  const std::vector<Block> blocks = read_blocks(input, parameters, codes, numbers);
  for (size_t i = 0; i < blocks.size(); ++i) {
    const cpu::ConvolutionLayer layer = blocks[i].geometry.layer(sizes, blocks[i].weight);
    sizes = output_sizes(layer);
    dispatch_float_double(input, [&](auto zero) {
      visit(static_cast<int64_t>(i), blocks[i], layer, cpu::choose_layout<decltype(zero)>(layer, false), zero);
    });
  }
}

// The way in which each block's weight is packed: what is packed in one serves images of other sizes too.
std::vector<int64_t> ways(Tensor input, std::vector<Tensor> parameters, std::vector<int64_t> codes,
                          std::vector<double> numbers) {
  std::vector<int64_t> found;
  each_layout(input, parameters, codes, numbers,
              [&](int64_t, const Block&, const cpu::ConvolutionLayer& layer, const cpu::PackedLayout& layout, auto) {
                found.push_back(way_of(layer, layout.variant));
              });
  return found;
}

template <typename T>
Tensor pack_one(const Tensor& weight, const cpu::ConvolutionLayer& layer, const cpu::PackedLayout& layout) {
  Tensor packed = torch::stable::new_empty(weight, {layout.count + kCodes + count_samples(weight)});
  T* values = mutable_data<T>(packed);
  cpu::advise_huge_pages(values, layout.count * sizeof(T));
  cpu::pack_weight(layer, layout, contiguous_values<T>(weight), values);
  T* trailer = values + layout.count;
  *trailer++ = static_cast<T>(way_of(layer, layout.variant));
  *trailer++ = static_cast<T>(layout.isa);
  if (weight.numel() > 0)
    each_sample<T>(weight, [&](const T& value) {
      *trailer++ = value;
      return true;
    });
  return packed;
}

// The weights of the blocks whose numbers are in `which`, in its order, which ascends.
std::vector<Tensor> pack(Tensor input, std::vector<Tensor> parameters, std::vector<int64_t> codes,
                         std::vector<double> numbers, std::vector<int64_t> which) {
  std::vector<Tensor> packed;
  each_layout(input, parameters, codes, numbers,
              [&](int64_t i, const Block& block, const cpu::ConvolutionLayer& layer, const cpu::PackedLayout& layout,
                  auto zero) {
                if (std::find(which.begin(), which.end(), i) != which.end())
                  packed.push_back(pack_one<decltype(zero)>(block.weight, layer, layout));
              });
  return packed;
}

// nchw: whether the output may be written in that order, if the kernel can.
template <typename T>
Tensor run_block(const Block& block, const Tensor& input, const Tensor* packed, const Moments& moments, bool nchw) {
  const cpu::ConvolutionLayer layer = block.geometry.layer(sizes_of(input), block.weight);
  const auto kept = packed ? layout_of<T>(*packed, layer, block.weight) : std::nullopt;
  const cpu::PackedLayout layout = kept ? *kept : cpu::choose_layout<T>(layer, true);
  const T* values = kept ? data<T>(*packed) : cpu::pack_weight_once(layer, layout, contiguous_values<T>(block.weight));
  std::vector<T> scale, shift;
  const ChannelAffine<T> affine{data<T>(block.bias),
                                block.normalized() ? data<T>(moments.mean) : nullptr,
                                block.normalized() ? data<T>(moments.var) : nullptr,
                                data<T>(block.bn_weight),
                                data<T>(block.bn_bias),
                                block.eps};
  fold<T>(affine, layer.out_channels(), scale, shift);
  nchw = nchw && cpu::writes_nchw(layer, layout);
  Tensor output = new_image(input, output_sizes(layer), !nchw);
  cpu::convolution<T>(layer, data<T>(input), {}, layout, values,
                      {scale.data(), shift.data(), block.activation, static_cast<T>(block.negative_slope)},
                      mutable_data<T>(output), nullptr, nullptr, nchw ? MemoryOrder::nchw : MemoryOrder::channels_last);
  return output;
}

// A chain with its tensors.
struct Chain {
  std::vector<Block> blocks;
  std::vector<Moments> moments;
  std::vector<Tensor> packed;  // of `pack`, or empty

  Chain(const Tensor& input, const std::vector<Tensor>& parameters, const std::vector<Tensor>& fixed,
        std::vector<Tensor> packed_, const std::vector<int64_t>& codes, const std::vector<double>& numbers)
      : blocks(read_blocks(input, parameters, codes, numbers)),
        moments(hand_out(blocks, {}, fixed)),
        packed(std::move(packed_)) {
    check(packed.empty() || packed.size() == blocks.size(), "block_chain_inference: a packed weight is missing");
  }

  Tensor run(const Tensor& input) const {
    Tensor image = to_channels_last(input);
    const bool as_nchw = !is_channels_last(input);
    for (size_t i = 0; i < blocks.size(); ++i)
      image = dispatch_float_double(input, [&](auto zero) {
        return run_block<decltype(zero)>(blocks[i], image, packed.empty() ? nullptr : &packed[i], moments[i],
                                         as_nchw && i + 1 == blocks.size());
      });
    return as_nchw ? to_nchw(image) : image;
  }
};

Tensor inference(Tensor input, std::vector<Tensor> parameters, std::vector<Tensor> fixed, std::vector<Tensor> packed,
                 std::vector<int64_t> codes, std::vector<double> numbers) {
  return Chain(input, parameters, fixed, packed, codes, numbers).run(input);
}

// What a tensor is.
struct Memory {
  const void* address;
  ScalarType dtype;
  std::vector<int64_t> sizes, strides;

  explicit Memory(const Tensor& t)
      : address(t.const_data_ptr()),
        dtype(t.scalar_type()),
        sizes(sizes_of(t)),
        strides(t.strides().begin(), t.strides().end()) {}

  bool is_that_of(const Tensor& t) const {
    return t.const_data_ptr() == address && t.scalar_type() == dtype &&
           std::equal(t.sizes().begin(), t.sizes().end(), sizes.begin(), sizes.end()) &&
           std::equal(t.strides().begin(), t.strides().end(), strides.begin(), strides.end());
  }
};

// A chain kept between calls: to hand over its thirty tensors each time takes as long as a small layer.
struct KeptChain {
  Chain chain;
  ScalarType dtype;
  std::vector<Tensor> given;
  std::vector<Memory> memory;  // of what was given, which `x.data = y` changes

  bool serves(const Tensor& input) const {
    if (!input.is_cpu() || input.scalar_type() != dtype) return false;
    for (size_t i = 0; i < given.size(); ++i)
      if (!memory[i].is_that_of(given[i])) return false;
    return true;
  }
};

std::mutex chains_mutex;
std::unordered_map<int64_t, std::shared_ptr<const KeptChain>> chains;
int64_t next_chain = 0;

// A fork, as of a DataLoader's worker, waits until no thread holds the lock: in the child nobody would release it.
[[maybe_unused]] const int at_fork =
    pthread_atfork([] { chains_mutex.lock(); }, [] { chains_mutex.unlock(); }, [] { chains_mutex.unlock(); });

int64_t keep(Tensor input, std::vector<Tensor> parameters, std::vector<Tensor> fixed, std::vector<Tensor> packed,
             std::vector<int64_t> codes, std::vector<double> numbers) {
  auto kept = std::make_shared<KeptChain>(
      KeptChain{Chain(input, parameters, fixed, packed, codes, numbers), input.scalar_type(), parameters, {}});
  kept->given.insert(kept->given.end(), fixed.begin(), fixed.end());
  for (const Tensor& t : kept->given) kept->memory.emplace_back(t);
  const std::lock_guard lock(chains_mutex);
  chains[next_chain] = std::move(kept);
  return next_chain++;
}

// Nothing if the kept chain is not what a call with its tensors would compute now.
std::optional<Tensor> repeat(Tensor input, int64_t id) {
  std::shared_ptr<const KeptChain> kept;
  {
    const std::lock_guard lock(chains_mutex);
    if (const auto found = chains.find(id); found != chains.end()) kept = found->second;
  }
  if (!kept || !kept->serves(input)) return std::nullopt;
  return kept->chain.run(input);
}

void release(int64_t id) {
  std::shared_ptr<const KeptChain> last;  // declared before the lock: its tensors are freed after it
  const std::lock_guard lock(chains_mutex);
  if (const auto found = chains.find(id); found != chains.end()) {
    last = std::move(found->second);
    chains.erase(found);
  }
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_FRAGMENT(genimg_fast, library) {
  library.def("block_chain_ways(Tensor input, Tensor[] parameters, int[] codes, float[] numbers) -> int[]");
  library.def(
      "block_chain_pack(Tensor input, Tensor[] parameters, int[] codes, float[] numbers, int[] which) -> Tensor[]");
  library.def(
      "block_chain_inference(Tensor input, Tensor[] parameters, Tensor[] fixed, Tensor[] packed, int[] codes, "
      "float[] numbers) -> Tensor");
  library.def(
      "block_chain_keep(Tensor input, Tensor[] parameters, Tensor[] fixed, Tensor[] packed, int[] codes, "
      "float[] numbers) -> int");
  library.def("block_chain_repeat(Tensor input, int chain) -> Tensor?");
  library.def("block_chain_release(int chain) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, library) {
  library.impl("block_chain_ways", TORCH_BOX(&genimg_fast::ways));
  library.impl("block_chain_pack", TORCH_BOX(&genimg_fast::pack));
  library.impl("block_chain_inference", TORCH_BOX(&genimg_fast::inference));
  library.impl("block_chain_keep", TORCH_BOX(&genimg_fast::keep));
  library.impl("block_chain_repeat", TORCH_BOX(&genimg_fast::repeat));
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CompositeExplicitAutograd, library) {
  library.impl("block_chain_release", TORCH_BOX(&genimg_fast::release));
}

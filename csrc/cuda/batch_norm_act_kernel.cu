// SPDX-License-Identifier: MIT
// Batch normalisation and activation on CUDA.
//
// Plan: memory bound.  Elements read and written per element of input:
//   statistics 1, forward 2, backward 2 (the two sums) + 3 (the gradient of input).
// A thread keeps to its channel or channels, so that their coefficients stay in registers:
//
//   planes (NCHW)                               rows (channels_last, [N, C]), here with width = 4
//     a block: one channel                        a block: width * N channels
//     thread t: packs t, t + 256, ... of it       thread t: column t % 4 of packs, rows t / 4, t / 4 + 64, ...
//
// In both a warp reads consecutive addresses.  `splits` blocks share a channel, so many that the GPU has room for all
// at once, up to kSplitsAtOnce.  A reduction leaves one partial a split, by Welford's update and Chan's merge in a
// fixed tree, and a second kernel merges the splits in order, in double.
//
// At 4.3 TB/s and 800 ns from a load to its value, 26 KB must be on their way to each of 132 multiprocessors.  Their
// registers have room for 768 to 1280 threads of 16 bytes a load: with one load each, 12 to 20 KB.  So a thread loads
// two packs of each tensor before it uses the first.
#include "cuda/batch_norm_act_kernel.h"

#include <algorithm>

#include "cuda/elementwise.cuh"
#include "cuda/moments.cuh"

namespace genimg_fast::cuda {
namespace {

// More splits, of which a convolution may leave any number, are merged in two stages, else few blocks read much.
constexpr int64_t kSplitsAtOnce = 1024;
constexpr int kGroups = 64;

struct ChannelTiling {
  ChannelLayout layout;
  int width;      // packs of a row that lie side by side in a block; 1 for planes
  int64_t tiles;  // blocks that cover the channels once
  int64_t splits;
};

inline ChannelTiling make_tiling(const ChannelLayout& layout, int pack, int blocks) {
  ChannelTiling tiling{layout, 1, layout.channels, 1};
  int64_t steps = (layout.per_channel() / pack + kThreads - 1) / kThreads;
  if (layout.inner == 1) {
    const int64_t packs = layout.channels / pack;
    while (tiling.width < 32 && tiling.width < packs) tiling.width *= 2;
    tiling.tiles = (packs + tiling.width - 1) / tiling.width;
    const int64_t rows = kThreads / tiling.width;
    steps = (layout.outer + rows - 1) / rows;
  }
  if (tiling.tiles > 0) tiling.splits = std::min({blocks / tiling.tiles, steps, kSplitsAtOnce});
  if (tiling.splits < 1) tiling.splits = 1;
  return tiling;
}

// The packs of a thread, one after the other.
template <int N, bool Rows>
class PackWalk;

template <int N>
class PackWalk<N, true> {
 public:
  __device__ __forceinline__ PackWalk(const ChannelTiling& tiling, int64_t split, int64_t channel)
      : rows_at_once_(kThreads / tiling.width * tiling.splits),
        rows_(tiling.layout.outer),
        channels_(tiling.layout.channels),
        channel_(channel),
        row_(split * (kThreads / tiling.width) + threadIdx.x / tiling.width) {}

  __device__ __forceinline__ bool has_pack() const { return row_ < rows_; }
  __device__ __forceinline__ int64_t next() {
    const int64_t offset = row_ * channels_ + channel_;
    row_ += rows_at_once_;
    return offset;
  }

 private:
  int64_t rows_at_once_, rows_, channels_, channel_, row_;
};

// Plane and position in it advance together: a division a thread, not one a pack.
template <int N>
class PackWalk<N, false> {
 public:
  __device__ __forceinline__ PackWalk(const ChannelTiling& tiling, int64_t split, int64_t channel)
      : layout_(tiling.layout), channel_(channel), packs_(tiling.layout.inner / N) {
    const int64_t first = split * kThreads + threadIdx.x, step = tiling.splits * kThreads;
    plane_step_ = step / packs_, position_step_ = step % packs_;
    plane_ = first / packs_, position_ = first % packs_;
  }

  __device__ __forceinline__ bool has_pack() const { return plane_ < layout_.outer; }
  __device__ __forceinline__ int64_t next() {
    const int64_t offset = (plane_ * layout_.channels + channel_) * layout_.inner + position_ * N;
    plane_ += plane_step_;
    position_ += position_step_;
    if (position_ >= packs_) {
      position_ -= packs_;
      ++plane_;
    }
    return offset;
  }

 private:
  const ChannelLayout& layout_;
  int64_t channel_, packs_, plane_step_, position_step_, plane_, position_;
};

// A thread's part of the tensor.  Rows: `channel` is the first of N.
template <int N, bool Rows>
struct ChannelThread {
  const ChannelTiling& tiling;
  int64_t split, channel;

  __device__ __forceinline__ explicit ChannelThread(const ChannelTiling& t) : tiling(t) {
    split = blockIdx.x / t.tiles;
    const int64_t tile = blockIdx.x % t.tiles;
    channel = Rows ? (tile * t.width + threadIdx.x % t.width) * N : tile;
  }

  __device__ __forceinline__ bool has_work() const { return channel < tiling.layout.channels; }

  // use(offset, load(offset)) for each pack of N elements, two loads at once.
  template <typename Load, typename Use>
  __device__ __forceinline__ void for_each_pack(const Load& load, const Use& use) const {
    PackWalk<N, Rows> walk(tiling, split, channel);
    while (walk.has_pack()) {
      const int64_t first = walk.next();
      const bool has_second = walk.has_pack();
      const int64_t second = has_second ? walk.next() : first;
      const auto first_loaded = load(first), second_loaded = load(second);
      use(first, first_loaded);
      if (has_second) use(second, second_loaded);
    }
  }
};

// What the reductions carry: Moments, and in backward
template <typename Real>
struct GradientSums {
  Real dy, dy_centered;

  template <typename Other>
  __device__ __forceinline__ void merge(const GradientSums<Other>& other) {
    dy += other.dy;
    dy_centered += other.dy_centered;
  }
  template <typename Other>
  __device__ __forceinline__ static GradientSums merged(const GradientSums<Other>* first, int64_t size, int64_t step) {
    GradientSums all = {};
#pragma unroll 8
    for (int64_t i = 0; i < size; ++i) all.merge(first[i * step]);
    return all;
  }
};

// Merges states[lane][y * width + x] over y into y = 0, in a fixed tree.
template <typename State>
__device__ __forceinline__ void merge_over_block(State* states, int lanes, int width) {
  for (int half = kThreads / 2; half >= width; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half)
      for (int k = 0; k < lanes; ++k)
        states[k * kThreads + threadIdx.x].merge(states[k * kThreads + threadIdx.x + half]);
  }
}

// Leaves the block's states in partial[splits][channels].
template <int N, bool Rows, typename State>
__device__ __forceinline__ void store_partial(const ChannelThread<N, Rows>& thread, const State* state,
                                              State* partial) {
  constexpr int kLanes = Rows ? N : 1;
  GENIMG_FAST_SHARED(State, states);  // [kLanes][kThreads]
  for (int k = 0; k < kLanes; ++k) states[k * kThreads + threadIdx.x] = state[k];
  const int width = thread.tiling.width;
  merge_over_block(states, kLanes, width);
  if (threadIdx.x < width && thread.has_work())
    for (int k = 0; k < kLanes; ++k)
      partial[thread.split * thread.tiling.layout.channels + thread.channel + k] = states[k * kThreads + threadIdx.x];
}

template <typename T, int N, bool Rows>
__global__ void moments_kernel(const T* input, ChannelTiling tiling, Moments<float>* partial) {
  await_previous_kernel();
  const ChannelThread<N, Rows> thread(tiling);
  Moments<float> state[Rows ? N : 1] = {};
  auto load = [&](int64_t i) { return PackOf<N>{}.load(input + i); };
  auto add = [&](int64_t, const Pack<T, N>& x) {
    if (Rows) {  // N channels, all with the same count
      const float count = state[0].count + 1, reciprocal = 1.0f / count;
      for (int k = 0; k < N; ++k) {
        Moments<float>& s = state[Rows ? k : 0];
        const float delta = to_float(x.lane[k]) - s.mean;
        s.mean += delta * reciprocal;
        s.m2 += delta * (to_float(x.lane[k]) - s.mean);
        s.count = count;
      }
    } else {  // N elements of one channel: exact moments of the pack, then one merge
      float sum = 0, m2 = 0;
      for (int k = 0; k < N; ++k) sum += to_float(x.lane[k]);
      const float mean = sum * (1.0f / N);
      for (int k = 0; k < N; ++k) {
        const float delta = to_float(x.lane[k]) - mean;
        m2 += delta * delta;
      }
      state[0].merge(N, mean, m2);
    }
  };
  if (thread.has_work()) thread.for_each_pack(load, add);
  store_partial(thread, state, partial);
}

constexpr int kFinishChannels = 8;  // channels of a block of a finishing kernel: 32 threads a channel

// The state of a channel, merged over its splits; valid where threadIdx.x < kFinishChannels.
template <template <typename> class State>
__device__ __forceinline__ State<double> merge_partials(const State<float>* partial, int64_t splits, int64_t channels,
                                                        int64_t channel) {
  GENIMG_FAST_SHARED(State<double>, states);  // [kThreads]
  constexpr int kRows = kThreads / kFinishChannels;
  const int64_t row = threadIdx.x / kFinishChannels, size = channel < channels ? (splits - row + kRows - 1) / kRows : 0;
  states[threadIdx.x] = State<double>::merged(partial + row * channels + channel, size, kRows * channels);
  merge_over_block(states, 1, kFinishChannels);
  return states[threadIdx.x];
}

__device__ __forceinline__ int64_t finish_channel() {
  return static_cast<int64_t>(blockIdx.x) * kFinishChannels + threadIdx.x % kFinishChannels;
}

__global__ void finish_moments_kernel(const Moments<float>* partial, int64_t splits, int64_t channels, float* mean,
                                      float* var, RunningStatistics running) {
  await_previous_kernel();
  const int64_t channel = finish_channel();
  const Moments<double> moments = merge_partials<Moments>(partial, splits, channels, channel);
  if (threadIdx.x >= kFinishChannels || channel >= channels) return;
  mean[channel] = static_cast<float>(moments.mean);
  var[channel] = static_cast<float>(moments.m2 / moments.count);
  running.mean.move_towards(channel, static_cast<float>(moments.mean), running.momentum);
  running.var.move_towards(channel, static_cast<float>(moments.m2 / (moments.count - 1)), running.momentum);
}

__global__ void move_statistics_kernel(const float* mean, const float* var, int64_t channels, float unbiased,
                                       RunningStatistics running) {
  await_previous_kernel();
  for_each_pack<1>(channels, [&](int64_t channel, auto) {
    running.mean.move_towards(channel, mean[channel], running.momentum);
    running.var.move_towards(channel, var[channel] * unbiased, running.momentum);
  });
}

// Merges the splits of each of `groups` equal parts, one part a row of blocks.
__global__ void group_moments_kernel(const Moments<float>* partial, int64_t splits, int64_t channels,
                                     Moments<float>* grouped) {
  await_previous_kernel();
  const int64_t channel = finish_channel(), group = blockIdx.y;
  const int64_t first = splits * group / gridDim.y, end = splits * (group + 1) / gridDim.y;
  const Moments<double> m = merge_partials<Moments>(partial + first * channels, end - first, channels, channel);
  if (threadIdx.x >= kFinishChannels || channel >= channels) return;
  grouped[group * channels + channel] = {static_cast<float>(m.count), static_cast<float>(m.mean),
                                         static_cast<float>(m.m2)};
}

// The affine map of a channel before activation: (x - mean) * scale + bias.
struct CenteredAffine {
  float mean, inverse_std, scale, bias;

  // The gradient before activation, from the gradient after it.
  __device__ __forceinline__ float dy(const BatchNorm& norm, float grad, float x) const {
    return activate_backward(norm.activation, norm.negative_slope, grad, (x - mean) * scale + bias);
  }
};

// Those of channels first, first + 1, ...
template <int N>
__device__ __forceinline__ void load_affines(const BatchNorm& norm, int64_t first, CenteredAffine (&affine)[N]) {
  float mean[N], var[N], weight[N], bias[N];
  load_channels(norm.mean, first, mean);
  load_channels(norm.var, first, var);
  load_channels(norm.weight, first, weight, 1.0f);
  load_channels(norm.bias, first, bias, 0.0f);
  for (int k = 0; k < N; ++k) {
    const float inverse_std = 1.0f / sqrtf(var[k] + norm.eps);
    affine[k] = {mean[k], inverse_std, inverse_std * weight[k], bias[k]};
  }
}

template <typename T, int N, bool Rows>
__global__ void normalize_act_kernel(const T* input, ChannelTiling tiling, BatchNorm norm, T* output) {
  await_previous_kernel();
  const ChannelThread<N, Rows> thread(tiling);
  if (!thread.has_work()) return;
  CenteredAffine affine[Rows ? N : 1];
  load_affines(norm, thread.channel, affine);
  auto load = [&](int64_t i) { return PackOf<N>{}.load(input + i); };
  thread.for_each_pack(load, [&](int64_t i, Pack<T, N> x) {
    for (int k = 0; k < N; ++k) {
      const CenteredAffine& a = affine[Rows ? k : 0];
      x.lane[k] = from_float<T>(
          activate(norm.activation, norm.negative_slope, (to_float(x.lane[k]) - a.mean) * a.scale + a.bias));
    }
    PackOf<N>{}.store(output + i, x);
  });
}

template <typename T, int N>
struct LoadedPair {
  Pack<T, N> grad, input;
};

template <typename T, int N, bool Rows>
__global__ void gradient_sums_kernel(const T* grad, const T* input, ChannelTiling tiling, BatchNorm norm,
                                     GradientSums<float>* partial) {
  await_previous_kernel();
  constexpr int kLanes = Rows ? N : 1;
  const ChannelThread<N, Rows> thread(tiling);
  GradientSums<float> sums[kLanes] = {};
  if (thread.has_work()) {
    CenteredAffine affine[kLanes];
    load_affines(norm, thread.channel, affine);
    auto load = [&](int64_t i) { return LoadedPair<T, N>{PackOf<N>{}.load(grad + i), PackOf<N>{}.load(input + i)}; };
    thread.for_each_pack(load, [&](int64_t, const LoadedPair<T, N>& loaded) {
      for (int k = 0; k < N; ++k) {
        const int lane = Rows ? k : 0;
        const float g = to_float(loaded.grad.lane[k]), x = to_float(loaded.input.lane[k]);
        const float dy = affine[lane].dy(norm, g, x);
        sums[lane].dy += dy;
        sums[lane].dy_centered += dy * (x - affine[lane].mean);
      }
    });
  }
  store_partial(thread, sums, partial);
}

__global__ void finish_gradients_kernel(const GradientSums<float>* partial, int64_t splits, int64_t channels,
                                        BatchNorm norm, float* sum_dy_normalized, float* sum_dy,
                                        MutableChannelVector grad_weight, MutableChannelVector grad_bias) {
  await_previous_kernel();
  const int64_t channel = finish_channel();
  const GradientSums<double> sums = merge_partials<GradientSums>(partial, splits, channels, channel);
  if (threadIdx.x >= kFinishChannels || channel >= channels) return;
  // 0 * NaN would make the gradient of an empty batch, whose variance is NaN, NaN.
  const float dy_normalized =
      sums.dy_centered == 0 ? 0.0f : static_cast<float>(sums.dy_centered / sqrtf(norm.var[channel] + norm.eps));
  sum_dy_normalized[channel] = dy_normalized;
  sum_dy[channel] = static_cast<float>(sums.dy);
  grad_weight.store(channel, dy_normalized);
  grad_bias.store(channel, static_cast<float>(sums.dy));
}

template <typename T, int N, bool Rows>
__global__ void gradient_input_kernel(const T* grad, const T* input, ChannelTiling tiling, BatchNorm norm,
                                      const float* sum_dy_normalized, const float* sum_dy, float reciprocal,
                                      T* grad_input) {
  await_previous_kernel();
  constexpr int kLanes = Rows ? N : 1;
  const ChannelThread<N, Rows> thread(tiling);
  if (!thread.has_work()) return;
  CenteredAffine affine[kLanes];
  load_affines(norm, thread.channel, affine);
  float mean_dy[kLanes], slope[kLanes];  // what flows through the statistics: mean_dy + (x - mean) * slope
  for (int k = 0; k < kLanes; ++k) {
    const int64_t channel = thread.channel + k;
    mean_dy[k] = sum_dy ? sum_dy[channel] * reciprocal : 0.0f;
    slope[k] = sum_dy ? sum_dy_normalized[channel] * affine[k].inverse_std * reciprocal : 0.0f;
  }
  auto load = [&](int64_t i) { return LoadedPair<T, N>{PackOf<N>{}.load(grad + i), PackOf<N>{}.load(input + i)}; };
  thread.for_each_pack(load, [&](int64_t i, const LoadedPair<T, N>& loaded) {
    Pack<T, N> result;
    for (int k = 0; k < N; ++k) {
      const int lane = Rows ? k : 0;
      const float g = to_float(loaded.grad.lane[k]), x = to_float(loaded.input.lane[k]);
      float dy = affine[lane].dy(norm, g, x);
      if (sum_dy) dy -= mean_dy[lane] + (x - affine[lane].mean) * slope[lane];
      result.lane[k] = from_float<T>(dy * affine[lane].scale);
    }
    PackOf<N>{}.store(grad_input + i, result);
  });
}

template <int N, bool Rows>
struct Access {
  static constexpr int pack = N;
  static constexpr bool rows = Rows;
};

// Calls body(Access{}) with the widest access that these addresses and this layout allow.
template <typename T, typename Body>
void with_access(const ChannelLayout& layout, bool aligned, const Body& body) {
  const bool rows = layout.inner == 1;
  const bool wide = aligned && (rows ? layout.channels : layout.inner) % kPack<T> == 0;
  if (rows) return wide ? body(Access<kPack<T>, true>{}) : body(Access<1, true>{});
  return wide ? body(Access<kPack<T>, false>{}) : body(Access<1, false>{});
}

inline dim3 grid_of(const ChannelTiling& tiling) { return dim3(static_cast<unsigned>(tiling.tiles * tiling.splits)); }

inline dim3 finish_grid(int64_t channels) {
  return dim3(static_cast<unsigned>((channels + kFinishChannels - 1) / kFinishChannels));
}

template <typename State>
size_t state_bytes(int lanes) {
  return sizeof(State) * kThreads * lanes;
}

}  // namespace

int64_t batch_norm_scratch(DType dtype, const ChannelLayout& layout) {
  int64_t states = 0;
  dispatch(dtype, [&](auto zero) {
    for (bool aligned : {false, true})
      with_access<decltype(zero)>(layout, aligned, [&](auto access) {
        const int64_t count = make_tiling(layout, access.pack, most_resident_blocks()).splits * layout.channels;
        states = count > states ? count : states;
      });
  });
  return states * static_cast<int64_t>(sizeof(Moments<float>) / sizeof(float)) + 2 * layout.channels;
}

void batch_norm_statistics(DType dtype, const void* input, const ChannelLayout& layout, float* scratch, float* mean,
                           float* var, const RunningStatistics& running, Stream stream) {
  if (layout.channels == 0) return;
  auto* partial = reinterpret_cast<Moments<float>*>(scratch);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_access<T>(layout, is_aligned(input), [&](auto access) {
      constexpr int kWide = decltype(access)::pack;
      constexpr bool kRows = decltype(access)::rows;
      const auto kernel = moments_kernel<T, kWide, kRows>;
      const size_t shared_bytes = state_bytes<Moments<float>>(kRows ? kWide : 1);
      const ChannelTiling tiling = make_tiling(layout, kWide, resident_blocks(kernel, shared_bytes));
      launch(kernel, grid_of(tiling), dim3(kThreads), shared_bytes, stream, static_cast<const T*>(input), tiling,
             partial);
      batch_norm_merge_statistics(scratch, tiling.splits, layout.channels, mean, var, running, stream);
    });
  });
}

int64_t batch_norm_merge_scratch(int64_t splits, int64_t channels) {
  const int64_t groups = splits > kSplitsAtOnce ? kGroups : 0;
  return (splits + groups) * channels * static_cast<int64_t>(sizeof(Moments<float>) / sizeof(float));
}

void batch_norm_merge_statistics(float* scratch, int64_t splits, int64_t channels, float* mean, float* var,
                                 const RunningStatistics& running, Stream stream) {
  if (channels == 0) return;
  auto* partial = reinterpret_cast<Moments<float>*>(scratch);
  const size_t shared_bytes = state_bytes<Moments<double>>(1);
  if (splits > kSplitsAtOnce) {
    Moments<float>* grouped = partial + splits * channels;
    launch(group_moments_kernel, dim3(finish_grid(channels).x, kGroups), dim3(kThreads), shared_bytes, stream,
           static_cast<const Moments<float>*>(partial), splits, channels, grouped);
    partial = grouped;
    splits = kGroups;
  }
  launch(finish_moments_kernel, finish_grid(channels), dim3(kThreads), shared_bytes, stream,
         static_cast<const Moments<float>*>(partial), splits, channels, mean, var, running);
}

void batch_norm_move_statistics(const float* mean, const float* var, int64_t channels, float unbiased,
                                const RunningStatistics& running, Stream stream) {
  const int blocks = block_count(move_statistics_kernel, 0, channels);
  launch(move_statistics_kernel, dim3(blocks), dim3(kThreads), 0, stream, mean, var, channels, unbiased, running);
}

void batch_norm_act(DType dtype, const void* input, const ChannelLayout& layout, const BatchNorm& norm, void* output,
                    Stream stream) {
  if (layout.numel() == 0) return;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_access<T>(layout, is_aligned(input) && is_aligned(output), [&](auto access) {
      const auto kernel = normalize_act_kernel<T, decltype(access)::pack, decltype(access)::rows>;
      const ChannelTiling tiling = make_tiling(layout, access.pack, resident_blocks(kernel, 0));
      launch(kernel, grid_of(tiling), dim3(kThreads), 0, stream, static_cast<const T*>(input), tiling, norm,
             static_cast<T*>(output));
    });
  });
}

void batch_norm_gradient_sums(DType dtype, const void* grad, const void* input, const ChannelLayout& layout,
                              const BatchNorm& norm, float* scratch, float* sum_dy_normalized, float* sum_dy,
                              MutableChannelVector grad_weight, MutableChannelVector grad_bias, Stream stream) {
  if (layout.channels == 0) return;
  auto* partial = reinterpret_cast<GradientSums<float>*>(scratch);
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_access<T>(layout, is_aligned(grad) && is_aligned(input), [&](auto access) {
      constexpr int kWide = decltype(access)::pack;
      constexpr bool kRows = decltype(access)::rows;
      const auto kernel = gradient_sums_kernel<T, kWide, kRows>;
      const size_t shared_bytes = state_bytes<GradientSums<float>>(kRows ? kWide : 1);
      const ChannelTiling tiling = make_tiling(layout, kWide, resident_blocks(kernel, shared_bytes));
      launch(kernel, grid_of(tiling), dim3(kThreads), shared_bytes, stream, static_cast<const T*>(grad),
             static_cast<const T*>(input), tiling, norm, partial);
      launch(finish_gradients_kernel, finish_grid(layout.channels), dim3(kThreads),
             state_bytes<GradientSums<double>>(1), stream, static_cast<const GradientSums<float>*>(partial),
             tiling.splits, layout.channels, norm, sum_dy_normalized, sum_dy, grad_weight, grad_bias);
    });
  });
}

void batch_norm_gradient_input(DType dtype, const void* grad, const void* input, const ChannelLayout& layout,
                               const BatchNorm& norm, const float* sum_dy_normalized, const float* sum_dy,
                               int64_t count, void* grad_input, Stream stream) {
  if (layout.numel() == 0) return;
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    with_access<T>(layout, is_aligned(grad) && is_aligned(input) && is_aligned(grad_input), [&](auto access) {
      const auto kernel = gradient_input_kernel<T, decltype(access)::pack, decltype(access)::rows>;
      const ChannelTiling tiling = make_tiling(layout, access.pack, resident_blocks(kernel, 0));
      launch(kernel, grid_of(tiling), dim3(kThreads), 0, stream, static_cast<const T*>(grad),
             static_cast<const T*>(input), tiling, norm, sum_dy_normalized, sum_dy, 1.0f / static_cast<float>(count),
             static_cast<T*>(grad_input));
    });
  });
}

void batch_norm_act_backward(DType dtype, const void* grad, const void* input, const ChannelLayout& layout,
                             const BatchNorm& norm, bool training, float* scratch, void* grad_input,
                             MutableChannelVector grad_weight, MutableChannelVector grad_bias, Stream stream) {
  float *sum_dy_normalized = scratch, *sum_dy = scratch + layout.channels;
  batch_norm_gradient_sums(dtype, grad, input, layout, norm, scratch + 2 * layout.channels, sum_dy_normalized, sum_dy,
                           grad_weight, grad_bias, stream);
  batch_norm_gradient_input(dtype, grad, input, layout, norm, training ? sum_dy_normalized : nullptr,
                            training ? sum_dy : nullptr, layout.per_channel(), grad_input, stream);
}

}  // namespace genimg_fast::cuda

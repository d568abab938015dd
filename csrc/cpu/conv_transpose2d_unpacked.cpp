// SPDX-License-Identifier: MIT
// Transposed convolution of few pixels: one product with the weight where it lies, and then every value of the product
// is added to the output that it falls on.
//
//      P [input pixels x (channel, tap)] = input [input pixels x Cin] * weight [Cin x (channel, tap)]
//
// To pack a weight takes several times as long as to read it, which is all the time that a product with a few rows
// needs.  A block of output channels at a time: a row of its part of the weight is contiguous, a band of such rows is
// multiplied at once, and P and the outputs stay in L1 or L2.  Work is split over threads by these blocks.
//
// Bytes: the weight once.  FLOPs: 2 Cin Cout a tap of an input pixel, those that fall on no output included.
#ifndef GENIMG_FAST_ISA

#include <algorithm>

#include "cpu/conv_transpose2d_variants.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {

// A block of output channels: the unit of work.
template <typename T>
struct UnpackedJob {
  const ConvTranspose2dCall<T>& call;
  const T* columns;  // the input after the prologue, [Cin][pixels]
  int64_t block;     // channels of all blocks but the last, whole vectors
  int64_t first_channel, channels;
  T* products;           // [pixels][channels x taps]
  T* outputs;            // [output pixels][block]
  ChannelSums<T>* sums;  // [Cout], or null

  int64_t pixels() const { return call.conv.batch * call.conv.y.input * call.conv.x.input; }
  int64_t taps() const { return call.conv.y.kernel * call.conv.x.kernel; }
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_transpose2d_unpacked.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::unpacked {
namespace {

constexpr int64_t kProductRow = 512;  // values, about: half a page of a row of the weight

}  // namespace

bool supports(const Deconvolution& conv) { return conv.batch * conv.y.input * conv.x.input <= kMostUnpackedPixels; }

template <typename T>
void run(const ConvTranspose2dCall<T>& call, std::vector<ChannelSums<T>>* sums) {
  const Deconvolution& conv = call.conv;
  const int64_t lanes = vector_bytes(active_isa()) / static_cast<int64_t>(sizeof(T));
  const int64_t pixels = conv.batch * conv.y.input * conv.x.input, taps = conv.y.kernel * conv.x.kernel;
  const auto columns = aligned_array<T>(conv.in_channels * pixels);
  GENIMG_FAST_DISPATCH_ISA(gather_columns<T>(call, pixels, columns.get()));

  const int64_t block = std::max<int64_t>(kProductRow / taps / lanes, 1) * lanes;
  if (sums) sums->resize(conv.out_channels);
  parallel_for(0, (conv.out_channels + block - 1) / block, 1, [&](int64_t begin, int64_t end) {
    const int64_t output_pixels = conv.batch * conv.y.output * conv.x.output;
    const auto [products, outputs] = thread_workspace<T>(pixels * block * taps, output_pixels * block);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item * block;
      const UnpackedJob<T> job{call,
                               columns.get(),
                               block,
                               first,
                               std::min(block, conv.out_channels - first),
                               products,
                               outputs,
                               sums ? sums->data() : nullptr};
      GENIMG_FAST_DISPATCH_ISA(run_channels<T>(job));
    }
  });
}

#define INSTANTIATE(T) template void run<T>(const ConvTranspose2dCall<T>&, std::vector<ChannelSums<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::unpacked

#else  // once per instruction set

#include "cpu/vec_activation.h"
#include "cpu/vec_channel_sums.h"
#include "cpu/vec_prologue.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// input [pixels][Cin], after the prologue -> columns [Cin][pixels]
template <typename T>
void gather_columns(const ConvTranspose2dCall<T>& call, int64_t pixels, T* columns) {
  const int64_t channels = call.conv.in_channels;
  const auto [pixel] = thread_workspace<T>(channels);
  for (int64_t p = 0; p < pixels; ++p) {
    apply_prologue(call.prologue, call.input + p * channels, 1, channels, pixel, channels);
    for (int64_t c = 0; c < channels; ++c) columns[c * pixels + p] = pixel[c];
  }
}

// products [pixels][size] (+)= columns [Depth][pixels] * weight [Depth rows, `stride` apart]: sums of Depth products,
// which are added to earlier sums, so that a long sum does not lose more digits than blocked BLAS.
template <int Depth, typename T>
void add_products(const T* columns, int64_t pixels, const T* weight, int64_t stride, int64_t size, T* products,
                  bool add) {
  for_each_vector<T>(0, size, [&](int64_t i, auto count) {
    Vec<T> row[Depth];
#pragma GCC unroll 8
    for (int k = 0; k < Depth; ++k) row[k] = load(weight + k * stride + i, count);
    for (int64_t p = 0; p < pixels; ++p) {
      Vec<T> sum = columns[p] * row[0];
#pragma GCC unroll 8
      for (int k = 1; k < Depth; ++k) sum += columns[k * pixels + p] * row[k];
      T* to = products + p * size + i;
      store(to, add ? load(to, count) + sum : sum, count);
    }
  });
}

// Adds each value of the products to the output that it falls on.
template <typename T>
void scatter_products(const UnpackedJob<T>& job) {
  const Deconvolution& conv = job.call.conv;
  const DeconvolutionAxis &y = conv.y, &x = conv.x;
  const int64_t taps = job.taps(), size = job.channels * taps;
  __builtin_memset(job.outputs, 0, conv.batch * y.output * x.output * job.block * sizeof(T));
  const T* from = job.products;
  for (int64_t n = 0; n < conv.batch; ++n)
    for (int64_t iy = 0; iy < y.input; ++iy)
      for (int64_t ix = 0; ix < x.input; ++ix, from += size)
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t oy = iy * y.stride - y.padding + tap / x.kernel;
          const int64_t ox = ix * x.stride - x.padding + tap % x.kernel;
          if (oy < 0 || oy >= y.output || ox < 0 || ox >= x.output) continue;
          T* to = job.outputs + ((n * y.output + oy) * x.output + ox) * job.block;
          for (int64_t c = 0; c < job.channels; ++c) to[c] += from[c * taps + tap];
        }
}

// The sums of the values of one vector of channels, at first about their mean: the outputs that no tap falls on are all
// alike, and about another value their squares would cancel.
template <typename T>
GF_INLINE void sum_values(const T* values, int64_t stride, int64_t pixels, Vec<T> mean, ChannelSums<T>* to, int lanes) {
  constexpr int64_t kSums = 16;  // values a lane adds up before they are saved
  for (int64_t first = 0; first < pixels; first += kSums) {
    const int64_t last = first + kSums < pixels ? first + kSums : pixels;
    LaneSums<T> sums(to, lanes);
    if (first == 0) sums.start_at(mean);
    for (int64_t p = first; p < last; ++p) sums.add(load(values + p * stride));
    sums.save(to, lanes);
  }
}

template <Activation A, typename T>
void finish_outputs(const UnpackedJob<T>& job) {
  const Deconvolution& conv = job.call.conv;
  const Epilogue<T>& epilogue = job.call.epilogue;
  const int64_t pixels = conv.batch * conv.y.output * conv.x.output;
  for_each_vector<T>(0, job.channels, [&](int64_t c, auto count) {
    const int64_t channel = job.first_channel + c;
    const Vec<T> scale = load(epilogue.scale + channel, count), shift = load(epilogue.shift + channel, count);
    Vec<T> total{};
    for (int64_t p = 0; p < pixels; ++p) {
      T* from = job.outputs + p * job.block + c;
      const Vec<T> v = activate<A, T>(load(from) * scale + shift, epilogue.negative_slope);
      store(from, v);
      store(job.call.output + p * conv.out_channels + channel, v, count);
      total += v;
    }
    if (job.sums)
      sum_values(job.outputs + c, job.block, pixels, total / static_cast<T>(pixels), job.sums + channel,
                 lanes_in(count, kLanes<T>));
  });
}

template <typename T>
void run_channels(const UnpackedJob<T>& job) {
  constexpr int64_t kDepth = 8;
  const Deconvolution& conv = job.call.conv;
  const int64_t pixels = job.pixels(), size = job.channels * job.taps(), stride = conv.out_channels * job.taps();
  const T* weight = job.call.packed + job.first_channel * job.taps();
  int64_t k = 0;
  for (; k + kDepth <= conv.in_channels; k += kDepth)
    add_products<kDepth>(job.columns + k * pixels, pixels, weight + k * stride, stride, size, job.products, k > 0);
  for (; k < conv.in_channels; ++k)
    add_products<1>(job.columns + k * pixels, pixels, weight + k * stride, stride, size, job.products, k > 0);
  scatter_products(job);
  with_activation(job.call.epilogue.activation, [&](auto tag) { finish_outputs<decltype(tag)::value>(job); });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

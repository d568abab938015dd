// SPDX-License-Identifier: MIT
// Batch normalisation and activation on the CPU, in the fewest passes over memory:
//   statistics  1 read.   Sums of (x - K) and (x - K)^2 in double, K being the channel's first element, so that a mean
//                         far larger than the deviation costs no digits.  In float64 once more, about the mean, where
//                         the first element lies far from it.
//   forward     1 read, 1 write.
//   backward    2 reads for the two sums, then 2 reads and 1 write.  Mask and normalised value are recomputed from x.
// Sums are kept per chunk of a channel and added in order: a result does not depend on the number of threads.
#ifndef GENIMG_FAST_ISA

#include "cpu/batch_norm_act_kernel.h"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

namespace genimg_fast::cpu {

// A part of a reduction: elements [begin, end) of channels [first_channel, last_channel).
struct ChannelSlice {
  int64_t first_channel, last_channel, begin, end;
};

// The affine map of each channel before activation: (x - mean) * scale + bias.
template <typename T>
struct CenteredAffine {
  const T *mean, *scale, *bias;  // [channels] each
};

// What is subtracted from a channel's gradient when gradient flows through its statistics: mean + (x - mean_x) * slope.
template <typename T>
struct ChannelCorrection {
  const T *mean, *slope;  // [channels] each
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/batch_norm_act_kernel.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu {
namespace {

// Two sums over each channel, [2][channels].  body(slice, sums) adds a slice's share to sums.
template <typename Body>
std::vector<double> channel_sums(const ChannelLayout& layout, const Body& body) {
  const int64_t channels = layout.channels, per_channel = layout.per_channel();
  // Rows hold all channels, so a slice takes them all; planes hold one, so a slice takes one.
  const bool rows = layout.inner == 1;
  const int64_t blocks = rows ? 1 : channels;
  const int64_t chunk = rows ? std::max<int64_t>(64, 4 * kChunk / std::max<int64_t>(channels, 1)) : 4 * kChunk;
  const int64_t chunks = (per_channel + chunk - 1) / chunk;
  const int64_t elements = std::max<int64_t>(1, std::min(chunk, per_channel) * (rows ? channels : 1));  // of a slice

  std::vector<double> partial(chunks * 2 * channels), sums(2 * channels);
  parallel_for(0, chunks * blocks, std::max<int64_t>(1, kGrain / elements), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      const int64_t c = item / blocks, block = item % blocks;
      const ChannelSlice slice{rows ? 0 : block, rows ? channels : block + 1, c * chunk,
                               std::min((c + 1) * chunk, per_channel)};
      body(slice, partial.data() + c * 2 * channels);
    }
  });
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += partial[c * 2 * channels + i];
  return sums;
}

// A run is what is contiguous and alike: a row of all channels, or a plane of one.  body(first, last) takes runs.
template <typename Body>
void parallel_for_runs(const ChannelLayout& layout, const Body& body) {
  if (layout.numel() == 0) return;
  const int64_t length = layout.inner == 1 ? layout.channels : layout.inner;
  parallel_for(0, layout.numel() / length, std::max<int64_t>(1, kGrain / length), body);
}

// Owns what CenteredAffine points to.
template <typename T>
struct AffineStorage {
  std::vector<T> scale, bias;
  CenteredAffine<T> affine;

  AffineStorage(const BatchNorm<T>& norm, int64_t channels) : scale(channels), bias(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = inverse_std(norm, c) * (norm.weight ? norm.weight[c] : T(1));
      bias[c] = norm.bias ? norm.bias[c] : T(0);
    }
    affine = {norm.mean, scale.data(), bias.data()};
  }
  static T inverse_std(const BatchNorm<T>& norm, int64_t c) {
    return static_cast<T>(1.0 / std::sqrt(static_cast<double>(norm.var[c]) + norm.eps));
  }
};

// The reduction pass of backward.
template <typename T>
GradientSums sum_gradients(const T* grad, const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm,
                           const AffineStorage<T>& storage) {
  const int64_t channels = layout.channels;
  GradientSums sums{std::vector<double>(channels), std::vector<double>(channels)};
  if (layout.numel() == 0) return sums;  // 0 * NaN would make the sums of an empty batch, whose variance is NaN, NaN
  // sum(dy) and sum(dy * (x - mean))
  const std::vector<double> both = channel_sums(layout, [&](const ChannelSlice& slice, double* out) {
    GENIMG_FAST_DISPATCH_ISA(
        gradient_sums<T>(grad, input, layout, storage.affine, norm.activation, norm.negative_slope, slice, out));
  });
  for (int64_t c = 0; c < channels; ++c) {
    sums.dy[c] = both[c];
    sums.dy_normalized[c] = both[channels + c] * AffineStorage<T>::inverse_std(norm, c);
  }
  return sums;
}

// The pass of backward that writes.
template <typename T>
void apply_gradient(const T* grad, const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm,
                    const AffineStorage<T>& storage, const GradientSums* sums, double count, T* grad_input) {
  const int64_t channels = layout.channels;
  std::vector<T> mean(sums ? channels : 0), slope(sums ? channels : 0);
  for (int64_t c = 0; sums && c < channels; ++c) {
    mean[c] = static_cast<T>(sums->dy[c] / count);
    slope[c] = static_cast<T>(sums->dy_normalized[c] * AffineStorage<T>::inverse_std(norm, c) / count);
  }
  const ChannelCorrection<T> correction{mean.data(), slope.data()};
  parallel_for_runs(layout, [&](int64_t first, int64_t last) {
    GENIMG_FAST_DISPATCH_ISA(gradient_input<T>(grad, input, layout, storage.affine, sums ? &correction : nullptr,
                                               norm.activation, norm.negative_slope, grad_input, first, last));
  });
}

// Squared distance of the shift from the mean, in variances, from which on a second pass pays.
constexpr double kFarFromMean = 100;

}  // namespace

template <typename T, typename Result>
void batch_norm_statistics(const T* input, const ChannelLayout& layout, Result* mean, Result* var) {
  const int64_t channels = layout.channels;
  const double count = static_cast<double>(layout.per_channel());
  std::vector<double> shift(channels);
  if (count > 0)
    for (int64_t c = 0; c < channels; ++c) {
      const double first = input[c * layout.inner];
      shift[c] = std::isfinite(first) ? first : 0.0;  // inf - inf would hide which infinity the mean is
    }
  const auto moments = [&] {
    return channel_sums(layout, [&](const ChannelSlice& slice, double* out) {
      GENIMG_FAST_DISPATCH_ISA(shifted_moments<T>(input, layout, shift.data(), slice, out));
    });
  };
  std::vector<double> sums = moments();
  if constexpr (std::is_same_v<T, double>) {
    // A first element far from the others costs digits: of float64 those that count, of float32 none.
    bool again = false;
    for (int64_t c = 0; c < channels; ++c) {
      const double offset = sums[c] / count, square = offset * offset;
      if (!std::isfinite(square) || square <= kFarFromMean * (sums[channels + c] / count - square)) continue;
      shift[c] += offset;
      again = true;
    }
    if (again) sums = moments();
  }
  for (int64_t c = 0; c < channels; ++c) {
    const double offset = sums[c] / count;
    mean[c] = static_cast<Result>(shift[c] + offset);
    const double variance = sums[channels + c] / count - offset * offset;
    var[c] = static_cast<Result>(variance < 0 ? 0.0 : variance);
  }
}

template <typename T>
void batch_norm_act(const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm, T* output) {
  const AffineStorage<T> storage(norm, layout.channels);
  parallel_for_runs(layout, [&](int64_t first, int64_t last) {
    GENIMG_FAST_DISPATCH_ISA(
        normalize_act<T>(input, layout, storage.affine, norm.activation, norm.negative_slope, output, first, last));
  });
}

template <typename T>
GradientSums batch_norm_gradient_sums(const T* grad, const T* input, const ChannelLayout& layout,
                                      const BatchNorm<T>& norm) {
  return sum_gradients(grad, input, layout, norm, AffineStorage<T>(norm, layout.channels));
}

template <typename T>
void batch_norm_gradient_input(const T* grad, const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm,
                               const GradientSums* sums, double count, T* grad_input) {
  const AffineStorage<T> storage(norm, layout.channels);
  apply_gradient(grad, input, layout, norm, storage, sums, count, grad_input);
}

template <typename T>
void batch_norm_act_backward(const T* grad, const T* input, const ChannelLayout& layout, const BatchNorm<T>& norm,
                             bool training, T* grad_input, T* grad_weight, T* grad_bias) {
  const AffineStorage<T> storage(norm, layout.channels);
  const GradientSums sums = sum_gradients(grad, input, layout, norm, storage);
  for (int64_t c = 0; c < layout.channels; ++c) {
    grad_bias[c] = static_cast<T>(sums.dy[c]);
    grad_weight[c] = static_cast<T>(sums.dy_normalized[c]);
  }
  apply_gradient(grad, input, layout, norm, storage, training ? &sums : nullptr, layout.per_channel(), grad_input);
}

#define INSTANTIATE(T)                                                                                              \
  template void batch_norm_act<T>(const T*, const ChannelLayout&, const BatchNorm<T>&, T*);                         \
  template GradientSums batch_norm_gradient_sums<T>(const T*, const T*, const ChannelLayout&, const BatchNorm<T>&); \
  template void batch_norm_gradient_input<T>(const T*, const T*, const ChannelLayout&, const BatchNorm<T>&,         \
                                             const GradientSums*, double, T*);                                      \
  template void batch_norm_act_backward<T>(const T*, const T*, const ChannelLayout&, const BatchNorm<T>&, bool, T*, \
                                           T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE
template void batch_norm_statistics(const float*, const ChannelLayout&, float*, float*);
template void batch_norm_statistics(const float*, const ChannelLayout&, double*, double*);
template void batch_norm_statistics(const double*, const ChannelLayout&, double*, double*);

}  // namespace genimg_fast::cpu

#else  // once per instruction set

#include "cpu/vec_activation.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// How a vector of elements finds its channels' coefficients.
struct OneChannel {  // inside a plane
  int64_t channel;
  template <typename T, typename Count>
  GF_INLINE Vec<T> operator()(const T* coefficients, Count) const {
    return broadcast(coefficients[channel]);
  }
};
struct ChannelPerLane {  // inside a row
  int64_t first;
  template <typename T, typename Count>
  GF_INLINE Vec<T> operator()(const T* coefficients, Count count) const {
    return load(coefficients + first, count);
  }
};

// body(offset, count, channel) over runs [first, last): see parallel_for_runs.
template <typename T, typename Body>
GF_INLINE void for_each_in_runs(const ChannelLayout& layout, int64_t first, int64_t last, const Body& body) {
  if (layout.inner == 1) {
    for (int64_t row = first; row < last; ++row)
      for_each_vector<T>(0, layout.channels, [&](int64_t channel, auto count) {
        body(row * layout.channels + channel, count, ChannelPerLane{channel});
      });
  } else {
    for (int64_t plane = first; plane < last; ++plane) {
      const OneChannel channel{plane % layout.channels};
      for_each_vector<T>(plane * layout.inner, (plane + 1) * layout.inner,
                         [&](int64_t i, auto count) { body(i, count, channel); });
    }
  }
}

// As many doubles as Vec<T> has lanes: where lanes fold into before they lose digits.
template <typename T>
struct WideOf;
template <>
struct WideOf<float> {
  typedef double type __attribute__((vector_size(2 * GENIMG_FAST_VECTOR_BYTES)));
};
template <>
struct WideOf<double> {
  typedef double type __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));
};

template <typename T>
GF_INLINE void fold_into(double* sums, const Vec<T>& v, Full) {
  typename WideOf<T>::type wide;
  __builtin_memcpy(&wide, sums, sizeof wide);
  wide += __builtin_convertvector(v, typename WideOf<T>::type);
  __builtin_memcpy(sums, &wide, sizeof wide);
}
template <typename T>
GF_INLINE void fold_into(double* sums, const Vec<T>& v, Tail tail) {
  for (int k = 0; k < tail.count; ++k) sums[k] += v[k];
}

// Adds a slice's two sums to sums[channel] and sums[channels + channel].  term(offset, count, channel, a, b) adds one
// vector of elements to a and b, whose lanes hold a few terms in T before they fold into doubles.
template <typename T, typename Term>
GF_INLINE void reduce_channels(const ChannelLayout& layout, const ChannelSlice& slice, double* sums, const Term& term) {
  const int64_t channels = layout.channels, inner = layout.inner;
  if (inner == 1) {
    const int64_t fold = 8;  // rows read side by side
    for (int64_t first = slice.begin; first < slice.end; first += fold) {
      const int64_t last = first + fold < slice.end ? first + fold : slice.end;
      for_each_vector<T>(slice.first_channel, slice.last_channel, [&](int64_t channel, auto count) {
        Vec<T> a{}, b{};
        for (int64_t row = first; row < last; ++row)
          term(row * channels + channel, count, ChannelPerLane{channel}, a, b);
        fold_into<T>(sums + channel, a, count);
        fold_into<T>(sums + channels + channel, b, count);
      });
    }
    return;
  }
  const int64_t fold = 32 * kLanes<T>;
  for (int64_t channel = slice.first_channel; channel < slice.last_channel; ++channel) {
    double total_a[kLanes<T>] = {}, total_b[kLanes<T>] = {};
    int64_t length;
    for (int64_t e = slice.begin; e < slice.end; e += length) {
      const int64_t offset = e % inner;  // within plane e / inner
      length = inner - offset < slice.end - e ? inner - offset : slice.end - e;
      length = length < fold ? length : fold;
      const int64_t first = (e / inner * channels + channel) * inner + offset;
      Vec<T> a{}, b{};
      for_each_vector<T>(first, first + length,
                         [&](int64_t i, auto count) { term(i, count, OneChannel{channel}, a, b); });
      fold_into<T>(total_a, a, Full{});
      fold_into<T>(total_b, b, Full{});
    }
    for (int k = 0; k < kLanes<T>; ++k) {
      sums[channel] += total_a[k];
      sums[channels + channel] += total_b[k];
    }
  }
}

GF_INLINE Vec<double> load_double(const double* p, Full) { return load(p); }
GF_INLINE Vec<double> load_double(const float* p, Full) {
  typedef float Half __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES / 2)));
  Half half;
  __builtin_memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, Vec<double>);
}
template <typename T>
GF_INLINE Vec<double> load_double(const T* p, Tail tail) {
  Vec<double> v{};
  for (int k = 0; k < tail.count; ++k) v[k] = p[k];
  return v;
}

template <typename T>
void shifted_moments(const T* input, const ChannelLayout& layout, const double* shift, const ChannelSlice& slice,
                     double* sums) {
  reduce_channels<double>(
      layout, slice, sums, [&](int64_t i, auto count, auto channel, Vec<double>& sum, Vec<double>& squares) {
        const Vec<double> d = keep<double>(load_double(input + i, count) - channel(shift, count), count);
        sum += d;
        squares += d * d;
      });
}

template <typename T>
void normalize_act(const T* input, const ChannelLayout& layout, const CenteredAffine<T>& affine, Activation activation,
                   T slope, T* output, int64_t first, int64_t last) {
  with_activation(activation, [&](auto tag) {
    for_each_in_runs<T>(layout, first, last, [&](int64_t i, auto count, auto channel) {
      const Vec<T> centered = load(input + i, count) - channel(affine.mean, count);
      const Vec<T> normalized = centered * channel(affine.scale, count) + channel(affine.bias, count);
      store(output + i, activate<tag.value, T>(normalized, slope), count);
    });
  });
}

// The gradient before activation, from the gradient after it.
template <Activation A, typename T, typename Count, typename Channel>
GF_INLINE Vec<T> activation_input_grad(Vec<T> grad, Vec<T> centered, const CenteredAffine<T>& affine, T slope,
                                       Count count, Channel channel) {
  if constexpr (A == Activation::none) return grad;
  const Vec<T> normalized = centered * channel(affine.scale, count) + channel(affine.bias, count);
  return activate_backward<A, T>(grad, normalized, slope);
}

template <typename T>
void gradient_sums(const T* grad, const T* input, const ChannelLayout& layout, const CenteredAffine<T>& affine,
                   Activation activation, T slope, const ChannelSlice& slice, double* sums) {
  with_activation(activation, [&](auto tag) {
    reduce_channels<T>(layout, slice, sums, [&](int64_t i, auto count, auto channel, Vec<T>& sum, Vec<T>& products) {
      const Vec<T> centered = load(input + i, count) - channel(affine.mean, count);
      const Vec<T> dy =
          activation_input_grad<tag.value, T>(load(grad + i, count), centered, affine, slope, count, channel);
      sum += keep<T>(dy, count);
      products += keep<T>(dy * centered, count);
    });
  });
}

template <typename T>
void gradient_input(const T* grad, const T* input, const ChannelLayout& layout, const CenteredAffine<T>& affine,
                    const ChannelCorrection<T>* correction, Activation activation, T slope, T* grad_input,
                    int64_t first, int64_t last) {
  with_activation(activation, [&](auto tag) {
    for_each_in_runs<T>(layout, first, last, [&](int64_t i, auto count, auto channel) {
      const Vec<T> centered = load(input + i, count) - channel(affine.mean, count);
      Vec<T> dy = activation_input_grad<tag.value, T>(load(grad + i, count), centered, affine, slope, count, channel);
      if (correction) dy -= channel(correction->mean, count) + centered * channel(correction->slope, count);
      store(grad_input + i, dy * channel(affine.scale, count), count);
    });
  });
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

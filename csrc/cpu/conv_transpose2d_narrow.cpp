// SPDX-License-Identifier: MIT
// Transposed convolution with few output channels (the layer that makes an image): all taps are columns of one GEMM.
//
// A vector of one to four output channels is mostly air.  So each input row is multiplied by all taps of all channels
// at once, and the products that meet at an output are added afterwards:
//
//      products [W x columns] = input row [W x Cin] * weights [Cin x columns]     columns = kH x kW x Cout
//
//      output row  = sum over the kernel rows ky that meet it, of products of input row (y + padding - ky) / stride
//
// Along a row, position q stands for the `stride` output columns x with (x + padding) / stride = q.  With the columns
// in the order [ky][tx][x][channel], kx = tx * stride + x, what pixel q - tx gives to position q is a run of stride *
// Cout values that lie side by side in the products and in the output (k4 s2, three channels: runs of 6, columns 48):
//
//      products of pixel 0   [tx=0][tx=1]
//      products of pixel 1         [tx=0][tx=1]
//      position               0     1     2
//
// Whole vectors are added and stored from left to right; what a vector holds beyond its run, the next one overwrites.
// Only the input rows that the current output row sees are kept: products stay in L1.  Bytes: input and output once.
// FLOPs: 2 Cin columns an input pixel, nothing is spent on padding.
#ifndef GENIMG_FAST_ISA

#include <algorithm>
#include <vector>

#include "cpu/conv_transpose2d_variants.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {

struct NarrowPlan {
  int64_t taps_y, taps_x;            // input rows that an output row sees at most, input columns that a column sees
  int64_t positions_y, positions_x;  // groups of `stride` output rows, of columns
  int64_t run;                       // values of one position of one row
  int64_t panels, panel_vectors, columns;

  int64_t pixels(int64_t width) const { return taps_x - 1 + (width > positions_x ? width : positions_x); }
};

// Positions [first, last) of one image: the unit of work.
template <typename T>
struct ImageBand {
  const ConvTranspose2dCall<T>& call;
  const NarrowPlan& plan;
  int64_t image, first, last;
  const T *scale, *shift;            // of each value of an output row
  T* products;                       // [taps_y][pixels][columns], zero where there is no pixel
  T* input_row;                      // [W * Cin] after the prologue
  T* row;                            // [positions_x * run] and a vector
  const T** terms;                   // [taps_y * taps_x]
  T *origin, *sum, *sum_of_squares;  // of each value of an output row over the band's rows, or null
};

}  // namespace genimg_fast::cpu

#define GENIMG_FAST_KERNEL_FILE "cpu/conv_transpose2d_narrow.cpp"
#include "cpu/foreach_isa.h"

namespace genimg_fast::cpu::narrow {
namespace {

template <typename T>
NarrowPlan make_plan(const Deconvolution& conv) {
  const int64_t lanes = vector_bytes(active_isa()) / sizeof(T);
  auto taps = [](const DeconvolutionAxis& axis) { return (axis.kernel + axis.stride - 1) / axis.stride; };
  auto positions = [](const DeconvolutionAxis& axis) { return (axis.output - 1 + axis.padding) / axis.stride + 1; };
  NarrowPlan plan{
      taps(conv.y), taps(conv.x), positions(conv.y), positions(conv.x), conv.x.stride * conv.out_channels, 0, 0, 0};
  const int64_t vectors = (conv.y.kernel * plan.taps_x * plan.run + lanes - 1) / lanes;
  plan.panel_vectors = vectors % 3 == 0 ? 3 : vectors == 1 ? 1 : 2;
  plan.panels = (vectors + plan.panel_vectors - 1) / plan.panel_vectors;
  plan.columns = plan.panels * plan.panel_vectors * lanes;
  return plan;
}

// Sums of each value of a row -> sums of each channel.
template <typename T>
void add_up(const ImageBand<T>& band, int64_t row_values, int64_t channels, int64_t rows, ChannelSums<T>* sums) {
  for (int64_t i = 0; i < row_values; ++i) {
    ChannelSums<T>& s = sums[i % channels];
    s.origin = band.origin[i];
    s.sum += band.sum[i];
    s.sum_of_squares += band.sum_of_squares[i];
    s.count += rows;
  }
}

}  // namespace

bool supports(const Deconvolution& conv) { return conv.y.stride <= conv.y.kernel && conv.x.stride <= conv.x.kernel; }

template <typename T>
int64_t packed_count(const Deconvolution& conv) {
  return conv.in_channels * make_plan<T>(conv).columns;
}

// [Cin, Cout, kH, kW] -> [panel][Cin][column]; columns that stand for no tap are zeros.
template <typename T>
void pack(const Deconvolution& conv, const T* weight, T* packed) {
  const NarrowPlan plan = make_plan<T>(conv);
  const int64_t panel = plan.columns / plan.panels, taps = conv.y.kernel * conv.x.kernel;
  std::vector<int64_t> place(plan.columns, -1);  // of a column in a weight row [Cout, kH, kW]
  for (int64_t ky = 0; ky < conv.y.kernel; ++ky)
    for (int64_t kx = 0; kx < conv.x.kernel; ++kx)
      for (int64_t c = 0; c < conv.out_channels; ++c)
        place[ky * plan.taps_x * plan.run + kx * conv.out_channels + c] = c * taps + ky * conv.x.kernel + kx;
  parallel_for(0, conv.in_channels, 8, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const T* row = weight + k * conv.out_channels * taps;
      for (int64_t p = 0; p < plan.panels; ++p) {
        T* to = packed + (p * conv.in_channels + k) * panel;
        for (int64_t i = 0; i < panel; ++i) to[i] = place[p * panel + i] < 0 ? T(0) : row[place[p * panel + i]];
      }
    }
  });
}

template <typename T>
void run(const ConvTranspose2dCall<T>& call, std::vector<ChannelSums<T>>* sums) {
  const Deconvolution& conv = call.conv;
  if (conv.batch == 0) return;
  const NarrowPlan plan = make_plan<T>(conv);
  const int64_t row_values = conv.x.output * conv.out_channels;
  std::vector<T> scale(row_values), shift(row_values);
  for (int64_t i = 0; i < row_values; ++i) {
    scale[i] = call.epilogue.scale[i % conv.out_channels];
    shift[i] = call.epilogue.shift[i % conv.out_channels];
  }
  // Bands are not a function of the number of threads: statistics add up in their order.
  const int64_t bands = std::clamp<int64_t>(16 / conv.batch, 1, std::max<int64_t>(plan.positions_y / 8, 1));
  if (sums) sums->resize(conv.batch * bands * conv.out_channels);
  parallel_for(0, conv.batch * bands, 1, [&](int64_t begin, int64_t end) {
    const int64_t products = plan.taps_y * plan.pixels(conv.x.input) * plan.columns + 64;
    const auto [buffer, input_row, row, statistics] =
        thread_workspace<T>(products, call.prologue.mean ? conv.x.input * conv.in_channels : 0,
                            plan.positions_x * plan.run + 64, sums ? 3 * row_values : 0);
    std::vector<const T*> terms(plan.taps_y * plan.taps_x);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t part = item % bands;
      std::fill_n(buffer, products, T(0));
      if (sums) std::fill_n(statistics, 3 * row_values, T(0));
      T* statistic = sums ? statistics : nullptr;
      const ImageBand<T> band{call,
                              plan,
                              item / bands,
                              plan.positions_y * part / bands,
                              plan.positions_y * (part + 1) / bands,
                              scale.data(),
                              shift.data(),
                              buffer,
                              input_row,
                              row,
                              terms.data(),
                              statistic,
                              sums ? statistic + row_values : nullptr,
                              sums ? statistic + 2 * row_values : nullptr};
      const int64_t rows = GENIMG_FAST_DISPATCH_ISA(run_band<T>(band));
      if (sums && rows > 0) add_up(band, row_values, conv.out_channels, rows, sums->data() + item * conv.out_channels);
    }
  });
}

#define INSTANTIATE(T)                                       \
  template int64_t packed_count<T>(const Deconvolution&);    \
  template void pack<T>(const Deconvolution&, const T*, T*); \
  template void run<T>(const ConvTranspose2dCall<T>&, std::vector<ChannelSums<T>>*);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace genimg_fast::cpu::narrow

#else  // once per instruction set

#include "cpu/gemm_tile.h"
#include "cpu/vec_activation.h"
#include "cpu/vec_prologue.h"

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// The products of input row y.
template <int Vectors, typename T>
void multiply_row(const ImageBand<T>& band, int64_t y, T* products) {
  constexpr int kRows = Vectors == 3 ? (GENIMG_FAST_VECTOR_BYTES == 64 ? 8 : 4) : kTileRows;
  const Deconvolution& conv = band.call.conv;
  const int64_t width = conv.x.input, depth = conv.in_channels, panel_size = depth * Vectors * kLanes<T>;
  const T* a = band.call.input + (band.image * conv.y.input + y) * width * depth;
  const T* next_row = a + width * depth;
  if (band.call.prologue.mean) {
    apply_prologue(band.call.prologue, a, width, depth, band.input_row, depth);
    a = band.input_row;
  }
  T* c = products + (band.plan.taps_x - 1) * band.plan.columns;
  for (int64_t panel = 0; panel < band.plan.panels; ++panel)
    multiply_panel<T, kRows, Vectors>(width, a, depth, band.call.packed + panel * panel_size, depth,
                                      c + panel * Vectors * kLanes<T>, band.plan.columns, next_row, [](Prefetch&) {});
}

// Adds the runs of terms[0 ... count) at each position of a row.
template <typename T>
void add_runs(const ImageBand<T>& band, int64_t count) {
  const NarrowPlan& plan = band.plan;
  T* to = band.row;
  for (int64_t q = 0; q < plan.positions_x; ++q, to += plan.run)
    for (int64_t i = 0; i < plan.run; i += kLanes<T>) {
      Vec<T> sum{};
      for (int64_t t = 0; t < count; ++t) sum += load(band.terms[t] + q * plan.columns + i);
      store(to + i, sum);
    }
}

// `output` may be band.row: each vector is stored at or before the place that it came from.
template <Activation A, typename T>
void finish_row(const ImageBand<T>& band, T* output) {
  const Deconvolution& conv = band.call.conv;
  const T* row = band.row + conv.x.padding * conv.out_channels;
  for_each_vector<T>(0, conv.x.output * conv.out_channels, [&](int64_t i, auto count) {
    const Vec<T> value = load(row + i) * load(band.scale + i, count) + load(band.shift + i, count);
    store(output + i, activate<A, T>(value, band.call.epilogue.negative_slope), count);
  });
}

// A finished row [W'][Cout] -> the rows of the planes.
template <int Channels, typename T>
void write_planes(const T* row, int64_t width, T* output, int64_t plane) {
  for (int64_t c = 0; c < Channels; ++c)
    for (int64_t x = 0; x < width; ++x) output[c * plane + x] = row[x * Channels + c];
}
template <typename T>
void write_planes(const T* row, int64_t width, int64_t channels, T* output, int64_t plane) {
  if (channels == 3) return write_planes<3>(row, width, output, plane);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < width; ++x) output[c * plane + x] = row[x * channels + c];
}

template <typename T>
void add_statistics(const ImageBand<T>& band, const T* output, bool first) {
  const int64_t channels = band.call.conv.out_channels, values = band.call.conv.x.output * channels;
  if (first)
    for (int64_t i = 0; i < values; ++i) band.origin[i] = output[i % channels];
  for_each_vector<T>(0, values, [&](int64_t i, auto count) {
    const Vec<T> d = load(output + i, count) - load(band.origin + i, count);
    store(band.sum + i, load(band.sum + i, count) + d, count);
    store(band.sum_of_squares + i, load(band.sum_of_squares + i, count) + d * d, count);
  });
}

// Returns the number of output rows made.
template <typename T>
int64_t run_band(const ImageBand<T>& band) {
  const NarrowPlan& plan = band.plan;
  const DeconvolutionAxis &y = band.call.conv.y, &x = band.call.conv.x;
  const int64_t row_values = x.output * band.call.conv.out_channels;
  const int64_t row_products = plan.pixels(x.input) * plan.columns;
  auto products_of = [&](int64_t iy) { return band.products + iy % plan.taps_y * row_products; };
  int64_t rows = 0;
  const int64_t before = band.first - (plan.taps_y - 1);  // input rows that the first position sees, too
  for (int64_t q = before < 0 ? 0 : before; q < band.last; ++q) {
    if (q < y.input) {
      if (plan.panel_vectors == 3)
        multiply_row<3, T>(band, q, products_of(q));
      else if (plan.panel_vectors == 2)
        multiply_row<2, T>(band, q, products_of(q));
      else
        multiply_row<1, T>(band, q, products_of(q));
    }
    if (q < band.first) continue;
    for (int64_t r = 0; r < y.stride; ++r) {
      const int64_t output_row = q * y.stride + r - y.padding;
      if (output_row < 0 || output_row >= y.output) continue;
      int64_t count = 0;
      for (int64_t ty = 0; ty < plan.taps_y; ++ty) {
        const int64_t ky = ty * y.stride + r, iy = q - ty;
        if (ky >= y.kernel || iy < 0 || iy >= y.input) continue;
        for (int64_t tx = 0; tx < plan.taps_x; ++tx)
          band.terms[count++] =
              products_of(iy) + (plan.taps_x - 1 - tx) * plan.columns + (ky * plan.taps_x + tx) * plan.run;
      }
      add_runs(band, count);
      const bool planes = band.call.order == MemoryOrder::nchw;
      T* image = band.call.output + band.image * y.output * row_values;
      T* output = planes ? band.row : image + output_row * row_values;
      with_activation(band.call.epilogue.activation,
                      [&](auto tag) { finish_row<decltype(tag)::value, T>(band, output); });
      if (band.sum) add_statistics(band, output, rows == 0);
      if (planes)
        write_planes(output, x.output, band.call.conv.out_channels, image + output_row * x.output, y.output * x.output);
      ++rows;
    }
  }
  return rows;
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

#endif

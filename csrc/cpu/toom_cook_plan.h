// SPDX-License-Identifier: MIT
// How conv_transpose2d_toom_cook.cpp cuts its work into strips, bands and chunks that fit into L2.
#pragma once
#include <algorithm>
#include <vector>

#include "common/deconvolution.h"
#include "cpu/isa.h"

namespace genimg_fast::cpu {

constexpr int64_t kPhases = 4;

// How a call is cut up.
struct ToomCookPlan {
  int64_t m, points;
  int64_t tiles_y, tiles_x;  // of an image
  int64_t groups;            // vectors of output channels
  int64_t band_rows;         // tile rows of a band
  int64_t chunk_groups;      // groups whose products are held at a time

  int64_t band_tiles() const { return band_rows * tiles_x; }
  int64_t positions() const { return tiles_x * m + 1; }
};

// Fitted on DCGAN's layers, with an L2 of 2 MiB: what a band and a chunk fill shares it with the weights and the output
// that pass through.
constexpr int64_t kEvaluatedBytes = 448 * 1024, kProductsBytes = 448 * 1024;
constexpr int64_t kManyWeights = 16 << 20;  // bytes beyond which a band must be large to pay for reading them
constexpr int64_t kPastCaches = 4 << 20;    // bytes beyond which weights are packed past the caches

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
ToomCookPlan make_plan(const Deconvolution& conv, int64_t m) {
  const int64_t lanes = vector_bytes(active_isa()) / sizeof(T), points = (m + 1) * (m + 1);
  ToomCookPlan plan{
      m, points, divide_up(conv.y.input, m), divide_up(conv.x.input, m), divide_up(conv.out_channels, lanes), 0, 0};
  const int64_t element = sizeof(T);
  const bool many_weights = points * conv.in_channels * plan.groups * kPhases * lanes * element > kManyWeights;
  const int64_t group_bytes = points * kPhases * lanes * element;  // products of a tile
  const int64_t tiles = std::clamp<int64_t>(
      std::min(kEvaluatedBytes / (points * conv.in_channels * element), kProductsBytes / group_bytes),
      many_weights ? 64 : 32, 128);
  plan.band_rows = std::clamp<int64_t>(tiles / plan.tiles_x, 1, conv.batch * plan.tiles_y);
  if (plan.band_rows > plan.tiles_y) {  // whole images, as many in each band
    const int64_t bands = divide_up(conv.batch, plan.band_rows / plan.tiles_y);
    plan.band_rows = divide_up(conv.batch, bands) * plan.tiles_y;
  }
  const int64_t most = std::max<int64_t>(kProductsBytes / (plan.band_tiles() * group_bytes), 2);
  plan.chunk_groups = divide_up(plan.groups, divide_up(plan.groups, most));
  return plan;
}

// Where strips begin, and the end.  A strip is a band of whole images, or an image, or for a few large images a part of
// one.  Not a function of the number of threads: statistics add up in the strips' order.
inline std::vector<int64_t> strip_bounds(const ToomCookPlan& plan, int64_t batch) {
  const int64_t rows = batch * plan.tiles_y;
  int64_t size = std::max(plan.band_rows, plan.tiles_y);
  if (plan.band_rows < plan.tiles_y) {
    const int64_t parts = std::clamp<int64_t>(16 / batch, 1, std::max<int64_t>(plan.tiles_y / (4 * plan.band_rows), 1));
    size = divide_up(plan.tiles_y, parts);
  }
  std::vector<int64_t> bounds;
  if (size >= plan.tiles_y)
    for (int64_t row = 0; row < rows; row += size) bounds.push_back(row);
  else
    for (int64_t n = 0; n < batch; ++n)
      for (int64_t row = 0; row < plan.tiles_y; row += size) bounds.push_back(n * plan.tiles_y + row);
  bounds.push_back(rows);
  return bounds;
}

}  // namespace genimg_fast::cpu

// SPDX-License-Identifier: MIT
// How a weight gradient is cut up and shared out.
//
// It is a product with a large result and a deep sum: at each point [small channels x terms] x [terms x columns], a
// term being a pixel or a tile.  The result is cut into blocks of channels of small and of large whose sums stay in L2,
// and a block is summed band by band:
//
//     band:   small -> a [point][term][small channels]      prologue applied, padding zeros
//             large -> b [point][term][columns]
//             c [point][small channels][columns] += a^T b
//     block:  c -> grad_weight
//
// Nothing else is written to memory.  Small is read once a block of large's channels, large once a block of small's.
// Where blocks are too few to share out, the terms are split too, into parts whose gradients are added in order.
#pragma once
#include <algorithm>
#include <vector>

#include "cpu/aligned_array.h"
#include "cpu/conv_weight_grad_variants.h"
#include "cpu/parallel.h"
#include "cpu/thread_workspace.h"

namespace genimg_fast::cpu {

struct WeightGradPlan {
  int64_t points;
  int64_t terms;
  int64_t small_block, large_block;  // channels
  int64_t columns;                   // of a block at each point, whole vectors
  int64_t band;                      // terms
};

// A range of channels of small and of large over a part of the terms: the unit of work.
struct WeightGradBlock {
  int64_t first_small, small_channels;
  int64_t first_large, large_channels;
  int64_t first_term, last_term;
};

template <typename T>
struct WeightGradJob {
  const WeightGradCall<T>& call;
  const WeightGradPlan& plan;
  T *a, *b, *c;
  const T* zeros;  // [max(small_block, large_block)] and a line: a pixel beyond the edge
  T* grad_weight;
  WeightGradBlock block, next;  // next is what this thread does after this block
  bool large_is_there;          // b holds what this block needs, from the block before

  // Rows are set apart by a line, and so are points.
  static constexpr int64_t kLine = 64 / sizeof(T);
  int64_t lda() const { return (plan.small_block + 2 * kLine - 1) / kLine * kLine; }
  int64_t ldb() const { return (plan.columns + 2 * kLine - 1) / kLine * kLine; }
  int64_t ldc() const { return plan.columns; }
  int64_t a_point() const { return plan.band * lda() + kLine; }
  int64_t b_point() const { return plan.band * ldb() + kLine; }
  int64_t c_point() const { return plan.small_block * ldc() + kLine; }
};

// n things in equal blocks of at most `most`.
inline int64_t even_block(int64_t n, int64_t most) {
  const int64_t blocks = (n + most - 1) / most;
  return (n + blocks - 1) / blocks;
}

// Calls run(job) for all blocks and parts.
template <typename T, typename Run>
void for_each_block(const WeightGradCall<T>& call, const WeightGradPlan& plan, const Run& run) {
  constexpr int64_t kEnoughItems = 16;  // not a function of the number of threads, for the parts add up in order
  const Convolution& conv = call.conv;
  auto count = [](int64_t n, int64_t block) { return (n + block - 1) / block; };
  const int64_t small_blocks = count(conv.out_channels, plan.small_block);
  const int64_t blocks = small_blocks * count(conv.in_channels, plan.large_block);
  const int64_t most_parts = std::max<int64_t>(plan.terms / (4 * plan.band), 1);
  const int64_t parts = std::clamp<int64_t>(count(kEnoughItems, blocks), 1, most_parts);
  const int64_t weights = conv.out_channels * conv.in_channels * conv.taps();
  auto partial = aligned_array<T>(parts > 1 ? parts * weights : 0);

  auto block_of = [&](int64_t item) {
    const int64_t part = item / blocks, small = item % small_blocks * plan.small_block;
    const int64_t large = item % blocks / small_blocks * plan.large_block;
    return WeightGradBlock{small,
                           std::min(plan.small_block, conv.out_channels - small),
                           large,
                           std::min(plan.large_block, conv.in_channels - large),
                           plan.terms * part / parts,
                           plan.terms * (part + 1) / parts};
  };
  parallel_for(0, blocks * parts, 1, [&](int64_t begin, int64_t end) {
    const std::vector<T> zeros(std::max(plan.small_block, plan.large_block) + WeightGradJob<T>::kLine, T(0));
    WeightGradJob<T> job{call, plan, nullptr, nullptr, nullptr, zeros.data(), nullptr, {}, {}, false};
    const auto [a, b, c] =
        thread_workspace<T>(plan.points * job.a_point(), plan.points * job.b_point(), plan.points * job.c_point());
    job.a = a, job.b = b, job.c = c;
    for (int64_t item = begin; item < end; ++item) {
      job.block = block_of(item);
      job.next = block_of(std::min(item + 1, end - 1));
      job.large_is_there =
          item > begin && item % small_blocks > 0 && job.block.last_term - job.block.first_term <= plan.band;
      job.grad_weight = parts > 1 ? partial.get() + item / blocks * weights : call.grad_weight;
      run(job);
    }
  });

  if (parts > 1)
    parallel_for(0, weights, kChunk, [&](int64_t begin, int64_t end) {
      std::copy(partial.get() + begin, partial.get() + end, call.grad_weight + begin);
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = begin; i < end; ++i) call.grad_weight[i] += partial[part * weights + i];
    });
}

}  // namespace genimg_fast::cpu

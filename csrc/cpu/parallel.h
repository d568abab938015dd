// SPDX-License-Identifier: MIT
// The one way a CPU kernel uses threads: torch's own pool, which ops/library.cpp reaches through the stable ABI.
#pragma once
#include <cstdint>
#include <vector>

namespace genimg_fast::cpu {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);
void parallel_for_range(int64_t begin, int64_t end, int64_t grain, RangeFunction function, void* context);
int64_t thread_count();

// Calls body(begin, end) on disjoint ranges that cover [begin, end); a range is at least `grain` long where it can be.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  auto call = [](int64_t b, int64_t e, void* context) { (*static_cast<const Body*>(context))(b, e); };
  parallel_for_range(begin, end, grain, call, const_cast<Body*>(&body));
}

// In how many parts to cut the output channels, where `units` of work alone do not share out evenly over the threads.
// Each part then reads the input for itself; results do not depend on it.
inline int64_t channel_parts(int64_t units, int64_t panels) {
  const int64_t threads = thread_count();
  return units % threads == 0 || units >= 8 * threads ? 1 : panels < threads ? panels : threads;
}

// Elements in one unit of work.  Reductions keep one partial sum per chunk and add the partials in order, so that a
// result does not depend on the number of threads.
constexpr int64_t kChunk = 4096;
// Elements of elementwise work that are worth a thread: some ten microseconds, of which waking it costs a few.
constexpr int64_t kGrain = 8 * kChunk;
inline int64_t chunk_count(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

// Calls body(begin, end) on disjoint ranges that cover [0, numel) and begin at a multiple of kChunk, for bodies of
// which one chunk is worth a thread.
template <typename Body>
void parallel_for_chunks(int64_t numel, const Body& body) {
  parallel_for(0, chunk_count(numel), 1, [&](int64_t first, int64_t last) {
    body(first * kChunk, last * kChunk < numel ? last * kChunk : numel);
  });
}

// The sum of partial(begin, end) over the chunks of [0, numel).
template <typename Partial>
double parallel_sum(int64_t numel, const Partial& partial, int64_t grain = kGrain) {
  std::vector<double> partials(chunk_count(numel));
  parallel_for(0, chunk_count(numel), grain / kChunk, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t first = chunk * kChunk, last = first + kChunk < numel ? first + kChunk : numel;
      partials[chunk] = partial(first, last);
    }
  });
  double total = 0;
  for (double p : partials) total += p;
  return total;
}

}  // namespace genimg_fast::cpu

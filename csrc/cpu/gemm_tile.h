// SPDX-License-Identifier: MIT
// The matrix product that every convolution variant rests on; for files compiled through foreach_isa.h, hence no
// include guard.  One tile of the result stays in registers over the whole depth:
//
//     c [Rows x Vectors] = a [Rows x depth] * b [depth x Vectors]         Vectors counts registers of kLanes values
//
// a is read along its rows one value at a time, b as packed panels, [depth][Vectors * kLanes] without gaps.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

// 26 accumulators of AVX-512's 32 registers, 12 of AVX2's and SSE's 16; the rest hold a row of b and a value of a.  ARM
// multiplies by one lane of a register: 16 accumulators of its 32, and a register for four values of each row of a.
#ifdef __aarch64__
constexpr bool kMultipliesByLane = true;
constexpr int kTileRows = 8;
#else
constexpr bool kMultipliesByLane = false;
constexpr int kTileRows = GENIMG_FAST_VECTOR_BYTES == 64 ? 13 : 6;
#endif
constexpr int kPanelVectors = 2;
template <typename T>
constexpr int kTileColumns = kPanelVectors * kLanes<T>;

// Memory that will be wanted soon.  A tile asks for it while it multiplies, every kDepthStep steps of its depth:
// `lines` cache lines of the panel that comes next, and one of the output, each `output_stride` bytes from the one
// before.
struct Prefetch {
  const void* panel = nullptr;
  const void* output = nullptr;
  int64_t output_stride = 0, lines = 0;
};

constexpr int64_t kDepthStep = 4, kCacheLine = 64;

// A float that sums thousands of products loses as many roundings.  So the sums begin anew every so many steps and are
// folded into c: the error of a long sum is then that of a short one, as with blocked BLAS.
constexpr int64_t kFoldedDepth = 64;

// What tile number `tile` of `tiles` fetches of a panel, if each does its share.
template <typename T, int Vectors = kPanelVectors>
GF_INLINE Prefetch share_of_panel(const T* panel, int64_t depth, int64_t tile, int64_t tiles) {
  const int64_t lines = (kDepthStep * Vectors * GENIMG_FAST_VECTOR_BYTES / kCacheLine + tiles - 1) / tiles;
  return {reinterpret_cast<const char*>(panel) + tile * (depth / kDepthStep) * lines * kCacheLine, nullptr, 0, lines};
}

// One step of the depth.  An address is base + index * (1 or 2): with a base every three rows, all of them stay in
// registers.
template <typename T, int Rows, int Vectors>
GF_INLINE void add_products(const T* (&base)[(Rows + 2) / 3], int64_t lda, const T*& b, Vec<T> (&sum)[Rows][Vectors]) {
  Vec<T> row[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) row[v] = load(b + v * kLanes<T>);
  b += Vectors * kLanes<T>;
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] += base[r / 3][r % 3 * lda] * row[v];
#pragma GCC unroll 8
  for (int i = 0; i < (Rows + 2) / 3; ++i) {
    ++base[i];
    asm("" : "+r"(base[i]));  // else the compiler makes a pointer of every row, and runs out of registers
  }
}

// Values that are multiplied one by one, by one load; GCC would load each by itself.
template <typename T>
GF_INLINE Vec<T> load_whole(const T* p) {
  Vec<T> v = load(p);
#ifdef __aarch64__
  asm("" : "+w"(v));
#endif
  return v;
}

// kDepthStep steps of the depth.
template <typename T, int Rows, int Vectors>
GF_INLINE void add_several_products(const T* (&base)[(Rows + 2) / 3], int64_t lda, const T*& b,
                                    Vec<T> (&sum)[Rows][Vectors]) {
  if constexpr (kMultipliesByLane) {
#pragma GCC unroll 2
    for (int k = 0; k < kDepthStep; k += kLanes<T>) {
      Vec<T> a[Rows];
#pragma GCC unroll 16
      for (int r = 0; r < Rows; ++r) a[r] = load_whole(base[r / 3] + r % 3 * lda + k);
#pragma GCC unroll 4
      for (int lane = 0; lane < kLanes<T>; ++lane) {
        Vec<T> row[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) row[v] = load(b + v * kLanes<T>);
        b += Vectors * kLanes<T>;
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
          for (int v = 0; v < Vectors; ++v) sum[r][v] += a[r][lane] * row[v];
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < (Rows + 2) / 3; ++i) base[i] += kDepthStep;
  } else {
#pragma GCC unroll 4
    for (int k = 0; k < kDepthStep; ++k) add_products<T, Rows, Vectors>(base, lda, b, sum);
  }
}

// c (+)= sum
template <typename T, int Rows, int Vectors>
GF_INLINE void save_sums(const Vec<T> (&sum)[Rows][Vectors], T* c, int64_t ldc, bool add) {
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      T* to = c + r * ldc + v * kLanes<T>;
      store(to, add ? load(to) + sum[r][v] : sum[r][v]);
    }
}

template <typename T, int Rows, int Vectors>
void multiply_tile(const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc, const Prefetch& prefetch,
                   bool add) {
  constexpr int kBases = (Rows + 2) / 3;
  const T* base[kBases];
#pragma GCC unroll 8
  for (int i = 0; i < kBases; ++i) base[i] = a + 3 * i * lda;
  Vec<T> sum[Rows][Vectors];
  const char* panel = static_cast<const char*>(prefetch.panel);
  const char* output = static_cast<const char*>(prefetch.output ? prefetch.output : c);
  do {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = Vec<T>{};
    int64_t steps = depth < kFoldedDepth ? depth : kFoldedDepth;
    depth -= steps;
    for (; steps >= kDepthStep; steps -= kDepthStep) {
      for (int64_t line = 0; line < prefetch.lines; ++line, panel += kCacheLine) __builtin_prefetch(panel, 0, 2);
      __builtin_prefetch(output, 1, 3);
      output += prefetch.output_stride;
      add_several_products<T, Rows, Vectors>(base, lda, b, sum);
    }
    for (; steps > 0; --steps) add_products<T, Rows, Vectors>(base, lda, b, sum);
    save_sums<T, Rows, Vectors>(sum, c, ldc, add);
    add = true;
  } while (depth > 0);
}

// The tile of `rows` <= Rows rows, added to c or not.
template <typename T, int Rows = kTileRows, int Vectors = kPanelVectors>
GF_INLINE void multiply(int64_t rows, const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc,
                        const Prefetch& prefetch, bool add = false) {
  if (rows == Rows) return multiply_tile<T, Rows, Vectors>(a, lda, b, depth, c, ldc, prefetch, add);
  if constexpr (Rows > 1) multiply<T, Rows - 1, Vectors>(rows, a, lda, b, depth, c, ldc, prefetch, add);
}

// A row of a that lies in several places: `count` runs of `length` values, each `stride` values from the one before.
struct Segments {
  int64_t count, length, stride;
};

// multiply_tile for rows in segments of at most kFoldedDepth values.
template <typename T, int Rows, int Vectors>
void multiply_segments_tile(const T* a, int64_t lda, const Segments& segments, const T* b, T* c, int64_t ldc) {
  constexpr int kBases = (Rows + 2) / 3;
  const int64_t jump = segments.stride - segments.length, segments_a_fold = kFoldedDepth / segments.length;
  const T* base[kBases];
#pragma GCC unroll 8
  for (int i = 0; i < kBases; ++i) base[i] = a + 3 * i * lda;
  Vec<T> sum[Rows][Vectors];
  bool folded = false;
  int64_t left = segments.count;
  do {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = Vec<T>{};
    int64_t now = left < segments_a_fold ? left : segments_a_fold;
    left -= now;
    for (; now > 0; --now) {
      int64_t steps = segments.length;
      for (; steps >= kDepthStep; steps -= kDepthStep) add_several_products<T, Rows, Vectors>(base, lda, b, sum);
      for (; steps > 0; --steps) add_products<T, Rows, Vectors>(base, lda, b, sum);
#pragma GCC unroll 8
      for (int i = 0; i < kBases; ++i) base[i] += jump;
    }
    save_sums<T, Rows, Vectors>(sum, c, ldc, folded);
    folded = true;
  } while (left > 0);
}

template <typename T, int Rows = kTileRows, int Vectors = kPanelVectors>
GF_INLINE void multiply_segments(int64_t rows, const T* a, int64_t lda, const Segments& segments, const T* b, T* c,
                                 int64_t ldc) {
  if (rows == Rows) return multiply_segments_tile<T, Rows, Vectors>(a, lda, segments, b, c, ldc);
  if constexpr (Rows > 1) multiply_segments<T, Rows - 1, Vectors>(rows, a, lda, segments, b, c, ldc);
}

// All rows against one panel.  They are split evenly, so that no tile is left with a row or two.  Meanwhile
// `next_panel` is fetched, and what add_output(prefetch) asks for.
template <typename T, int Rows = kTileRows, int Vectors = kPanelVectors, typename AddOutput>
GF_INLINE void multiply_panel(int64_t rows, const T* a, int64_t lda, const T* b, int64_t depth, T* c, int64_t ldc,
                              const T* next_panel, const AddOutput& add_output, bool add = false) {
  const int64_t tiles = (rows + Rows - 1) / Rows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    Prefetch prefetch = share_of_panel<T, Vectors>(next_panel, depth, t, tiles);
    add_output(prefetch);
    multiply<T, Rows, Vectors>(last - first, a + first * lda, lda, b, depth, c + first * ldc, ldc, prefetch, add);
  }
}

// Cache lines that will be wanted soon, `stride` bytes apart: one is asked for every two steps of the depth.
struct Lines {
  const char* first;
  int64_t stride;
};

// The product of two matrices that are summed along their rows: c [Rows x Vectors] (+)= a^T [Rows x depth] * b, where a
// is [depth][lda] and b is [depth][ldb].
template <typename T, int Rows, int Vectors>
void multiply_transposed_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t depth, T* c, int64_t ldc,
                              bool add, Lines wanted) {
  Vec<T> sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      sum[r][v] = Vec<T>{};
      __builtin_prefetch(c + r * ldc + v * kLanes<T>, 1, 3);
    }
  constexpr int kByLane =
      kMultipliesByLane ? Rows / kLanes<T> * kLanes<T> : 0;  // rows whose values are read by one load
  auto add_products = [&]() __attribute__((always_inline)) {
    Vec<T> row[Vectors], several[Rows / kLanes<T> + 1];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) row[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 4
    for (int r = 0; r < kByLane; r += kLanes<T>) several[r / kLanes<T>] = load_whole(a + r);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v)
        sum[r][v] += (r < kByLane ? several[r / kLanes<T>][r % kLanes<T>] : a[r]) * row[v];
    a += lda;
    b += ldb;
  };
  for (; depth >= 2; depth -= 2) {
    __builtin_prefetch(wanted.first, 0, 2);
    wanted.first += wanted.stride;
    add_products();
    add_products();
  }
  if (depth) add_products();
  save_sums<T, Rows, Vectors>(sum, c, ldc, add);
}

template <typename T, int Rows = kTileRows, int Vectors = kPanelVectors>
GF_INLINE void multiply_transposed(int64_t rows, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t depth, T* c,
                                   int64_t ldc, bool add, Lines wanted) {
  if (rows == Rows) return multiply_transposed_tile<T, Rows, Vectors>(a, lda, b, ldb, depth, c, ldc, add, wanted);
  if constexpr (Rows > 1) multiply_transposed<T, Rows - 1, Vectors>(rows, a, lda, b, ldb, depth, c, ldc, add, wanted);
}

// All rows against one panel; next_lines(count) tells what each tile fetches.
template <typename T, int Rows = kTileRows, int Vectors = kPanelVectors, typename NextLines>
GF_INLINE void multiply_transposed_panel(int64_t rows, const T* a, int64_t lda, const T* b, int64_t ldb, int64_t depth,
                                         T* c, int64_t ldc, bool add, const NextLines& next_lines) {
  const int64_t tiles = (rows + Rows - 1) / Rows;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t first = rows * t / tiles, last = rows * (t + 1) / tiles;
    multiply_transposed<T, Rows, Vectors>(last - first, a + first, lda, b, ldb, depth, c + first * ldc, ldc, add,
                                          next_lines(depth / 2));
  }
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

// SPDX-License-Identifier: MIT
// Convolutions and transposed convolutions by Hopper's own tensor-core instructions, epilogue fused: one launch a
// block.  What is computed, phase by phase, is as in convolution_tensor_core_kernel.cu; how differs:
//
//       a tile: images x height x width output positions        its patch: all pixels that they see, for 64 channels
//
//            . . . . . . .     each tap is the patch, shifted: rows of the left operand are read from it by ldmatrix
//            . x x x x x .     at any pixel, where a tile a tap would be loaded four times over (k4 s2: 2 x 2 taps).
//            . x x x x x .     What lies beyond the image TMA fills with zeros.
//            . . . . . . .
//
// Eight warps, two warpgroups, multiply (wgmma): left operand in registers, right one in shared memory.  One thread of
// them loads ahead (TMA) while they do: the patch of the next 64 channels, and the weights of its taps, tap by tap,
// each [kN][64], into rings of shared memory, whose barriers tell what has landed and what has been read.  A
// convolution of stride s is the sum of its taps' s x s classes: taps of the same remainder see every s-th pixel, and
// in a patch of those they lie side by side again.  The host lists the taps; the kernel walks the list.
//
// Why not as usual.  A warp of its own for the loads would be the ninth of a block: with two blocks, the fifth on one
// of the four schedulers, which leaves 96 registers, and 112 are needed.  Fragments that are loaded while others
// multiply make the compiler wait for each wgmma; so a warpgroup loads 16 registers of them, multiplies and waits, and
// it is the three other warpgroups of the multiprocessor that fill the gap.
//
// Plan, DCGAN-64 on an H200, bf16.  Tiles of 128 x 128 or 256 x 64: 64 sums a thread, two blocks a multiprocessor, so
// that one stores while the other multiplies.  A multiprocessor multiplies 64 x 128 x 16 in 64 cycles; shared memory,
// 128 bytes a cycle, is then read for 2 KB of A and 4 KB of B, 75 %, and written with what is loaded, about 33 %: it is
// busier than the tensor cores, and with 64 columns busier still (100 % and 27 %).  A warp issues 80 instructions a tap
// and 64 channels, 16 warps 1,280 in the 1,024 cycles that the tensor cores take, of 4,096 that could be, and at the
// end 284 to map and stage its sums (relu; 154 in training) beside those that store.  From the L2 cache come, a block,
// 200 pixels and 4 x 128 weights a channel (512-256, 4 x 4 images), where a tile a tap has 512 pixels: 6.5 TB/s at 600
// TFLOP/s.  Expected: 75 % of what cuBLAS reaches (790 TFLOP/s), 65 % for 128-64, against 45 % for mma.sync.  Outcome:
// not yet measured.
#include "cuda/convolution_wgmma_kernel.h"

#include <algorithm>
#include <stdexcept>

#include "cuda/convolution_epilogue.cuh"
#include "cuda/ptx_sm90.cuh"

namespace genimg_fast::cuda {
namespace {

constexpr int kChannels = 64;  // of a patch: one row of 128 bytes a pixel
constexpr int kDepth = 16;     // of a wgmma
constexpr int kPatchStages = 2;
constexpr int kMostSharedBytes = 113 * 1024;  // two blocks a multiprocessor
constexpr int kMostBox = 256;                 // of a copy, along an axis

// Eight warps, one below the other: two warpgroups.
template <int kM, int kN>
struct WgmmaTile : GemmTile<kM, kN, 8, 1> {
  static constexpr int kWeightBytes = kN * kSwizzledRow;  // of a tap
  static constexpr int kWeightStages = kN == 128 ? 3 : 4;
};

// One axis of a tile and its patch.
struct TileAxis {
  int positions;  // of the tile
  int pixels;     // of the patch
  int tiles;
};

// A tap of a phase, in the order in which they are multiplied: class after class.
struct Tap {
  int16_t number;  // in the packed weight
  int16_t shift;   // in the patch, in pixels: from a position to what it sees
  int16_t y, x;    // of the patch: its first pixel, from the one that the tile's first position begins at
  uint8_t class_begin, class_end;  // the taps that share the patch
};

struct TilePlan {
  static constexpr int kMostTaps = 64;
  static constexpr int kMostPhases = PhasedConvolution::kMaxPhases * PhasedConvolution::kMaxPhases;

  int images, image_tiles;  // of a tile; that many
  TileAxis y, x;
  uint8_t phase_begin[kMostPhases + 1];  // of `taps`
  Tap taps[kMostTaps];                   // of all phases

  GENIMG_FAST_HOST_DEVICE int64_t tiles() const { return static_cast<int64_t>(image_tiles) * y.tiles * x.tiles; }
  GENIMG_FAST_HOST_DEVICE int patch_pixels() const { return images * y.pixels * x.pixels; }
  // Rounded up, so that the next patch begins where the swizzle does.
  GENIMG_FAST_HOST_DEVICE int patch_bytes() const {
    return (patch_pixels() * kSwizzledRow + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes;
  }
};

// A ring of buffers: what has landed in each, and which warps have read it.
template <int kStages>
struct RingBarriers {
  uint64_t filled[kStages], read[kStages];

  __device__ __forceinline__ void init(int readers) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(filled + i, 1);
      mbarrier_init(read + i, readers);
    }
  }
};

// The use of a ring's buffers, counted.
template <int kStages>
struct RingPlace {
  unsigned use = 0;

  __device__ __forceinline__ int stage() const { return use % kStages; }
  __device__ __forceinline__ unsigned parity() const { return use / kStages & 1; }
};

// Shared memory of a block.
template <typename Tile>
struct Buffers {
  using Patches = RingBarriers<kPatchStages>;
  using Weights = RingBarriers<Tile::kWeightStages>;

  unsigned char *patches, *weights;
  Patches* patch_barriers;
  Weights* weight_barriers;

  __device__ __forceinline__ Buffers(unsigned char* shared, int patch_bytes)
      : patches(shared),
        weights(shared + kPatchStages * patch_bytes),
        patch_barriers(reinterpret_cast<Patches*>(shared + barriers_at(patch_bytes))),
        weight_barriers(reinterpret_cast<Weights*>(patch_barriers + 1)) {}

  // Behind what the epilogue writes, too: the memory of a barrier must not be used for anything else.
  GENIMG_FAST_HOST_DEVICE static int barriers_at(int patch_bytes) {
    constexpr int kEpilogueBytes = EpilogueLayout<__half, Tile>::kBytes;
    static_assert(kEpilogueBytes % sizeof(uint64_t) == 0);
    const int bytes = kPatchStages * patch_bytes + Tile::kWeightStages * Tile::kWeightBytes;
    return bytes > kEpilogueBytes ? bytes : kEpilogueBytes;
  }
  static int bytes(int patch_bytes) {
    return barriers_at(patch_bytes) + static_cast<int>(sizeof(Patches) + sizeof(Weights));
  }
};

// Which tile of which phase a block computes.
struct BlockPlace {
  int phase, column_tile;
  int64_t row_block;  // of all phases
  int image, y, x;    // the first position

  __device__ __forceinline__ BlockPlace(const TilePlan& plan, int phases, int column_tiles)
      : column_tile(static_cast<int>(blockIdx.x % column_tiles)), row_block(blockIdx.x / column_tiles) {
    phase = static_cast<int>(row_block % phases);
    const int tile = static_cast<int>(row_block / phases);
    x = tile % plan.x.tiles * plan.x.positions;
    y = tile / plan.x.tiles % plan.y.tiles * plan.y.positions;
    image = tile / plan.x.tiles / plan.y.tiles * plan.images;
  }
};

// The steps of a tile, one a tap and 64 channels: class after class, in each channels after channels, tap after tap.
template <typename Tile>
struct Cursor {
  const TilePlan& plan;
  int channels, end;  // of the phase's taps
  int tap, channel = 0;
  RingPlace<kPatchStages> patch;
  RingPlace<Tile::kWeightStages> weights;

  __device__ __forceinline__ Cursor(const TilePlan& plan, int phase, int channels)
      : plan(plan), channels(channels), end(plan.phase_begin[phase + 1]), tap(plan.phase_begin[phase]) {}

  __device__ __forceinline__ bool at_end() const { return tap == end; }
  __device__ __forceinline__ bool is_first_of_patch() const { return tap == plan.taps[tap].class_begin; }
  __device__ __forceinline__ bool is_last_of_patch() const { return tap + 1 == plan.taps[tap].class_end; }

  __device__ __forceinline__ void advance() {
    ++weights.use;
    if (is_last_of_patch()) {
      ++patch.use;
      channel += kChannels;
      if (channel < channels) {
        tap = plan.taps[tap].class_begin;
        return;
      }
      channel = 0;
    }
    ++tap;
  }
};

// Begins the loads of one step.  By one thread.  first_x, first_y: the pixel that the tile's first position begins at
template <typename Tile>
__device__ __forceinline__ void load_step(const TensorMap& image, const TensorMap& weight, const BlockPlace& place,
                                          int first_y, int first_x, const Cursor<Tile>& step,
                                          const Buffers<Tile>& buffers) {
  const Tap& tap = step.plan.taps[step.tap];
  if (step.is_first_of_patch()) {
    const int stage = step.patch.stage();
    uint64_t* landed = &buffers.patch_barriers->filled[stage];
    mbarrier_wait(&buffers.patch_barriers->read[stage], step.patch.parity() ^ 1);
    mbarrier_arrive_expect(landed, step.plan.patch_pixels() * kSwizzledRow);
    tma_load(buffers.patches + stage * step.plan.patch_bytes(), image, step.channel, first_x + tap.x, first_y + tap.y,
             place.image, landed);
  }
  const int stage = step.weights.stage();
  uint64_t* landed = &buffers.weight_barriers->filled[stage];
  mbarrier_wait(&buffers.weight_barriers->read[stage], step.weights.parity() ^ 1);
  mbarrier_arrive_expect(landed, Tile::kWeightBytes);
  tma_load(buffers.weights + stage * Tile::kWeightBytes, weight, step.channel, tap.number, place.column_tile * Tile::kN,
           place.phase, landed);
}

// The output position of row `r` of a tile: its image and place in the tile; image -1 for a row beyond the last.  Only
// bodies for sm_90a use it.
[[maybe_unused]] __device__ __forceinline__ GatherRow position_in_tile(const TilePlan& plan, int r) {
  const int row = r / plan.x.positions;
  int image = row / plan.y.positions, y = row % plan.y.positions;
  // ldmatrix reads 8 rows at once, and pixels that are 8 apart lie in the same banks.  Neighbouring rows of an image of
  // 4 x 4 begin 5 pixels apart in its patch of 5 x 5, and so meet; the same rows of images that are 4 apart begin 100
  // pixels apart, and do not.
  if (plan.x.positions == 4 && plan.x.pixels == 5 && plan.y.positions == 4 && plan.y.pixels == 5 &&
      plan.images % 8 == 0) {
    image = r / 128 * 8 + r / 4 % 2 * 4 + r / 32 % 4;
    y = r / 8 % 4;
  }
  return {image < plan.images ? image : -1, y, r % plan.x.positions};
}

// The left operand of as many wgmma as are begun at once: 16 registers.
template <typename Tile>
struct Fragments {
  static constexpr int kDepths = kChannels / kDepth / Tile::kFragmentsM;  // of them in a step

  uint32_t a[kDepths][Tile::kFragmentsM][4];
};

// acc += the product of one part of a step, begun and not waited for.  pixels: the one that the row whose address this
// lane gives to ldmatrix sees.
template <typename T, typename Tile>
__device__ __forceinline__ void multiply_part(int part, const unsigned char* patch,
                                              const int (&pixels)[Tile::kFragmentsM], const unsigned char* weights,
                                              Fragments<Tile>& fragments, typename Tile::Accumulators& acc) {
  constexpr int kDepths = Fragments<Tile>::kDepths;
  const int half = threadIdx.x % 32 / 16;  // of 16 channels: that of the two matrices whose rows this lane gives
#pragma unroll
  for (int m = 0; m < Tile::kFragmentsM; ++m) {
    const int row = swizzled_128(pixels[m], half * 16);
#pragma unroll
    for (int k = 0; k < kDepths; ++k) ldmatrix_x4(fragments.a[k][m], patch + (row ^ (part * kDepths + k) * 2 * 16));
  }
  const uint64_t b = swizzled_descriptor(shared_address(weights)) + 2 * part * kDepths;
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < kDepths; ++k)
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) wgmma<T>(acc[m], fragments.a[k][m], b + 2 * k);
  wgmma_commit();
}

// acc += the sums of the block's tile.  All threads of the block.
template <typename T, typename Tile>
__device__ __forceinline__ void multiply_tile(const TensorMap& image, const TensorMap& weight, const BlockPlace& place,
                                              const TilePlan& plan, const GatherAxis& y_axis, const GatherAxis& x_axis,
                                              int channels, const Buffers<Tile>& buffers,
                                              typename Tile::Accumulators& acc) {
  const int lane = threadIdx.x % 32;
  int first_pixels[Tile::kFragmentsM];  // of the patch, seen by the row whose address this lane gives to ldmatrix
#pragma unroll
  for (int m = 0; m < Tile::kFragmentsM; ++m) {
    const GatherRow row =
        position_in_tile(plan, static_cast<int>(threadIdx.x) / 32 * Tile::kWarpM + m * 16 + lane % 16);
    // Rows beyond the tile's positions multiply some pixel, and are not stored.
    first_pixels[m] = row.image < 0 ? 0 : (static_cast<int>(row.image) * plan.y.pixels + row.y) * plan.x.pixels + row.x;
  }

  Cursor<Tile> step(plan, place.phase, channels), next = step;  // what is multiplied, and what is loaded next
  const int first_y = place.y * y_axis.step + y_axis.origin, first_x = place.x * x_axis.step + x_axis.origin;
  // Into buffers that this warp itself is done with: it may wait until the others are.
  auto load_ahead = [&] {
    if (threadIdx.x >= 32) return;
    while (!next.at_end() && next.weights.use - step.weights.use < Tile::kWeightStages &&
           next.patch.use - step.patch.use < kPatchStages) {
      if (lane == 0) load_step<Tile>(image, weight, place, first_y, first_x, next, buffers);
      next.advance();
    }
    __syncwarp();
  };
  load_ahead();

  Fragments<Tile> fragments;
#pragma unroll 1
  for (; !step.at_end(); step.advance()) {
    const int stage = step.weights.stage(), patch_stage = step.patch.stage();
    if (step.is_first_of_patch()) mbarrier_wait(&buffers.patch_barriers->filled[patch_stage], step.patch.parity());
    mbarrier_wait(&buffers.weight_barriers->filled[stage], step.weights.parity());
    int pixels[Tile::kFragmentsM];
#pragma unroll
    for (int m = 0; m < Tile::kFragmentsM; ++m) pixels[m] = first_pixels[m] + plan.taps[step.tap].shift;
#pragma unroll
    for (int part = 0; part < Tile::kFragmentsM; ++part) {
      if (part > 0) wgmma_wait_all(acc);
      multiply_part<T, Tile>(part, buffers.patches + patch_stage * plan.patch_bytes(), pixels,
                             buffers.weights + stage * Tile::kWeightBytes, fragments, acc);
    }
    load_ahead();
    wgmma_wait_all(acc);
    if (step.is_last_of_patch()) fence_proxy_async();  // ldmatrix has read what TMA writes next
    __syncwarp();
    if (lane == 0) {
      mbarrier_arrive(&buffers.weight_barriers->read[stage]);
      if (step.is_last_of_patch()) mbarrier_arrive(&buffers.patch_barriers->read[patch_stage]);
    }
  }
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    convolution_wgmma_kernel(const GENIMG_FAST_GRID_CONSTANT TensorMap image,
                             const GENIMG_FAST_GRID_CONSTANT TensorMap weight,
                             const GENIMG_FAST_GRID_CONSTANT PhasedConvolution conv,
                             const GENIMG_FAST_GRID_CONSTANT TilePlan plan, Epilogue<T> epilogue) {
#ifdef GENIMG_FAST_SM90A
  GENIMG_FAST_SHARED(unsigned char, unaligned);
  unsigned char* shared = unaligned + (kSwizzleBytes - shared_address(unaligned) % kSwizzleBytes) % kSwizzleBytes;
  const Buffers<Tile> buffers(shared, plan.patch_bytes());
  const int column_tiles = static_cast<int>((conv.out_channels + Tile::kN - 1) / Tile::kN);
  const BlockPlace place(plan, conv.y_phases * conv.x_phases, column_tiles);
  const PhaseAxis &y_axis = conv.y[place.phase / conv.x_phases], &x_axis = conv.x[place.phase % conv.x_phases];
  const int64_t first_channel = place.column_tile * static_cast<int64_t>(Tile::kN);
  const int channels =
      conv.out_channels - first_channel > Tile::kN ? Tile::kN : static_cast<int>(conv.out_channels - first_channel);

  if (threadIdx.x == 0) {
    constexpr int kReaders = Tile::kThreads / 32;  // one lane of each warp
    buffers.patch_barriers->init(kReaders);
    buffers.weight_barriers->init(kReaders);
    mbarrier_publish();
    prefetch_tensor_map(image);
    prefetch_tensor_map(weight);
  }
  await_previous_kernel();
  __syncthreads();

  float acc[Tile::kFragmentsM][Tile::kFragmentsN][4] = {};
  if (place.y < y_axis.gather.positions &&
      place.x < x_axis.gather.positions)  // else the phase has fewer than the first
    multiply_tile<T, Tile>(image, weight, place, plan, y_axis.gather, x_axis.gather, static_cast<int>(conv.in_channels),
                           buffers, acc);
  __syncthreads();  // all have read what the epilogue writes over

  auto pixel = [&](int r) -> int64_t {
    const GatherRow row = position_in_tile(plan, r);
    const int64_t of_batch = place.image + row.image;
    const int y = place.y + row.y, x = place.x + row.x;
    if (row.image < 0 || of_batch >= conv.batch || y >= y_axis.gather.positions || x >= x_axis.gather.positions)
      return -1;
    return (of_batch * conv.y_output + y_axis.first_output + y * y_axis.out_stride) * conv.x_output +
           x_axis.first_output + x * x_axis.out_stride;
  };
  store_tile<T, Tile>(acc, epilogue, shared, conv.out_channels, first_channel, channels, place.row_block, pixel);
#else
  __trap();  // wgmma_is_available() keeps calls from here
#endif
}

// ---- Geometry.

int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Calls body(Tile{}).
template <typename Body>
auto with_tile(WgmmaTileChoice choice, const Body& body) {
  switch (choice) {
    case WgmmaTileChoice::m128n128:
      return body(WgmmaTile<128, 128>{});
    case WgmmaTileChoice::m256n64:
      return body(WgmmaTile<256, 64>{});
    default:
      return body(WgmmaTile<128, 64>{});
  }
}

// The taps of one phase along one axis that have the same remainder by the stride: numbers first, first + step, ...  In
// a patch of every step-th pixel they lie `stride` pixels from one to the next.
struct TapClass {
  int number, taps, stride;

  TapClass(const GatherAxis& axis, int number)
      : number(number),
        taps((axis.taps - number + axis.step - 1) / axis.step),
        stride(axis.step > 1 ? 1 : axis.tap_step) {}
  static int count(const GatherAxis& axis) { return std::min(axis.step, axis.taps); }

  int reach() const { return (taps - 1) * std::abs(stride); }
  int first_pixel() const { return number + std::min(0, (taps - 1) * stride); }  // of the patch
  int shift(int t) const { return stride > 0 ? t * stride : (t - taps + 1) * stride; }
};

TileAxis tile_axis(const PhaseAxis* axes, int phases, int positions) {
  int reach = 0;
  for (int p = 0; p < phases; ++p)
    if (axes[p].gather.taps > 0) reach = std::max(reach, TapClass(axes[p].gather, 0).reach());  // it has most taps
  return {positions, positions + reach, ceil_div(axes[0].gather.positions, positions)};
}

void list_taps(const PhasedConvolution& conv, TilePlan& plan) {
  int listed = 0;
  for (int phase = 0; phase < conv.y_phases * conv.x_phases; ++phase) {
    plan.phase_begin[phase] = static_cast<uint8_t>(listed);
    const GatherAxis &y = conv.y[phase / conv.x_phases].gather, &x = conv.x[phase % conv.x_phases].gather;
    for (int c = 0; c < TapClass::count(y) * TapClass::count(x); ++c) {
      const TapClass y_class(y, c / TapClass::count(x)), x_class(x, c % TapClass::count(x));
      const int begin = listed, taps = y_class.taps * x_class.taps;
      for (int t = 0; t < taps; ++t) {
        const int ty = t / x_class.taps, tx = t % x_class.taps;
        const int number = (y_class.number + ty * y.step) * x.taps + x_class.number + tx * x.step;
        const int shift = y_class.shift(ty) * plan.x.pixels + x_class.shift(tx);
        plan.taps[listed++] = {static_cast<int16_t>(number),
                               static_cast<int16_t>(shift),
                               static_cast<int16_t>(y_class.first_pixel()),
                               static_cast<int16_t>(x_class.first_pixel()),
                               static_cast<uint8_t>(begin),
                               static_cast<uint8_t>(begin + taps)};
      }
    }
  }
  plan.phase_begin[conv.y_phases * conv.x_phases] = static_cast<uint8_t>(listed);
}

// 0 if there is none.
int power_of_two_below(int width) {
  int power = 0;
  for (int next = 1; next < width; next *= 2) power = next;
  return power;
}

// The tiles of at most kM positions, a row or a power of two wide, that cover the outputs with fewest of them; of those
// that do, the widest.  Nothing if no patch fits.  Without the list of taps.
template <typename Tile>
std::optional<TilePlan> plan_tiles(const PhasedConvolution& conv) {
  const int y_all = conv.y[0].gather.positions, x_all = conv.x[0].gather.positions;
  const int y_step = conv.y[0].gather.step, x_step = conv.x[0].gather.step;
  std::optional<TilePlan> best;
  for (int width = std::min(x_all, Tile::kM); width > 0; width = power_of_two_below(width))
    for (int height = std::min(y_all, Tile::kM / width); height > 0; --height) {
      TilePlan plan{1, 0, tile_axis(conv.y, conv.y_phases, height), tile_axis(conv.x, conv.x_phases, width), {}, {}};
      if (width == x_all && height == y_all)
        plan.images = static_cast<int>(std::clamp<int64_t>(conv.batch, 1, Tile::kM / (width * height)));
      auto fits = [&] { return Buffers<Tile>::bytes(plan.patch_bytes()) <= kMostSharedBytes - kSwizzleBytes; };
      while (plan.images > 1 && !fits()) --plan.images;
      plan.image_tiles = ceil_div(conv.batch, plan.images);
      if (plan.y.pixels * y_step > kMostBox || plan.x.pixels * x_step > kMostBox || !fits()) continue;
      if (!best || plan.tiles() < best->tiles()) best = plan;
      break;  // lower ones are more
    }
  return best;
}

int64_t row_blocks(const PhasedConvolution& conv, const TilePlan& plan) {
  return plan.tiles() * conv.y_phases * conv.x_phases;
}

bool is_empty(const PhasedConvolution& conv) {
  return conv.batch == 0 || conv.out_channels == 0 || conv.y[0].gather.positions == 0 ||
         conv.x[0].gather.positions == 0;
}

}  // namespace

const char* why_not_wgmma(DType dtype, const PhasedConvolution& conv) {
  if (dtype == DType::float32) return "float32: the registers of the left operand would have to be rounded to tf32";
  if (conv.in_channels == 0 || conv.in_channels % 8 != 0) return "input pixels that are no multiple of 16 bytes";
  if (conv.batch >= int64_t{1} << 30) return "more than 2^30 images";
  int taps = 0;
  for (int y = 0; y < conv.y_phases; ++y)
    for (int x = 0; x < conv.x_phases; ++x) {
      const GatherAxis &y_axis = conv.y[y].gather, &x_axis = conv.x[x].gather;
      taps += y_axis.taps * x_axis.taps;
      if ((y_axis.step > 1 && y_axis.tap_step != 1) || (x_axis.step > 1 && x_axis.tap_step != 1))
        return "a convolution with both a stride and a dilation";
      if (y_axis.step > 8 || x_axis.step > 8) return "a stride of more than 8";
    }
  if (taps > TilePlan::kMostTaps) return "more than 64 taps";
  if (taps == 0) return "no tap that sees a pixel";
  if (is_empty(conv)) return nullptr;
  return plan_tiles<WgmmaTile<128, 128>>(conv) && plan_tiles<WgmmaTile<256, 64>>(conv)
             ? nullptr
             : "taps that lie too far apart for a patch in shared memory";
}

bool wgmma_is_available() {
#if defined(GENIMG_FAST_CUDA_ON_CPU)
  return true;
#elif defined(GENIMG_FAST_HAS_SM90A)
  return compute_capability_major() == 9;
#else
  return false;
#endif
}

WgmmaTileChoice choose_wgmma_tile(const PhasedConvolution& conv, int multiprocessors) {
  // Multiply-adds of the busiest multiprocessor, by how much of shared memory's bandwidth a tile of its shape takes.
  constexpr double kCostOfShape[] = {1.0, 1.1, 1.2};
  WgmmaTileChoice best = WgmmaTileChoice::m128n64;
  double least = 0;
  if (is_empty(conv)) return best;
  for (int64_t i = 0; i < kWgmmaTileChoices; ++i) {
    const auto choice = static_cast<WgmmaTileChoice>(i);
    with_tile(choice, [&](auto tile) {
      const int64_t blocks = wgmma_statistics_splits(conv, choice) * ceil_div(conv.out_channels, tile.kN);
      const double cost = ceil_div(blocks, multiprocessors) * static_cast<double>(tile.kM * tile.kN) * kCostOfShape[i];
      if (i == 0 || cost < least) least = cost, best = choice;
    });
  }
  return best;
}

WgmmaTileChoice choose_wgmma_tile(const PhasedConvolution& conv) {
  return choose_wgmma_tile(conv, multiprocessor_count());
}

int64_t wgmma_statistics_splits(const PhasedConvolution& conv, WgmmaTileChoice choice) {
  return with_tile(choice, [&](auto tile) { return row_blocks(conv, *plan_tiles<decltype(tile)>(conv)); });
}

void convolution_wgmma(DType dtype, const PhasedConvolution& conv, WgmmaTileChoice choice, const void* input,
                       const void* packed, const ChannelAffine& affine, Activation activation, float negative_slope,
                       void* output, float* moments, Stream stream) {
  if (is_empty(conv)) return;
  const GatherAxis &y = conv.y[0].gather, &x = conv.x[0].gather;
  const int64_t pixel_bytes = conv.in_channels * 2;
  const PackedWeightShape weight = packed_weight_shape(dtype, conv);
  with_tile(choice, [&](auto tile) {
    using Tile = decltype(tile);
    TilePlan plan = *plan_tiles<Tile>(conv);
    list_taps(conv, plan);
    const TensorMap image_map = make_tensor_map(dtype, input,
                                                {{conv.in_channels, x.size, y.size, conv.batch},
                                                 {pixel_bytes, pixel_bytes * x.size, pixel_bytes * x.size * y.size},
                                                 {kChannels, plan.x.pixels, plan.y.pixels, plan.images},
                                                 {1, x.step, y.step, 1}});
    const TensorMap weight_map =
        make_tensor_map(dtype, packed,
                        {{conv.in_channels, weight.taps, conv.out_channels, conv.y_phases * conv.x_phases},
                         {weight.tap_depth * 2, weight.depth * 2, weight.depth * 2 * conv.out_channels},
                         {kChannels, 1, Tile::kN, 1},
                         {1, 1, 1, 1}});
    auto run = [&](auto zero) {
      using T = decltype(zero);
      const int shared_bytes = kSwizzleBytes + Buffers<Tile>::bytes(plan.patch_bytes());
      const int64_t blocks = row_blocks(conv, plan) * ceil_div(conv.out_channels, Tile::kN);
      const auto kernel = convolution_wgmma_kernel<T, Tile>;
      prefer_shared_memory(kernel);
      launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Tile::kThreads), shared_bytes, stream, image_map,
             weight_map, conv, plan,
             Epilogue<T>{affine, activation, negative_slope, static_cast<T*>(output),
                         reinterpret_cast<Moments<float>*>(moments)});
    };
    dtype == DType::float16 ? run(__half{}) : run(__nv_bfloat16{});
  });
}

}  // namespace genimg_fast::cuda

// SPDX-License-Identifier: MIT
// The part of <cuda.h> that makes tensor maps, under its own names.  A map is not the hardware's: it keeps what it was
// made of.  The function throws where the documentation of cuTensorMapEncodeTiled asks for something else.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;

enum CUresult { CUDA_SUCCESS = 0 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

// Of the size and alignment that <cuda.h> gives it, so that parameters of kernels lie where nvcc lays them.
struct alignas(128) CUtensorMap {
  uint64_t magic;
  void* base;
  cuuint64_t sizes[4], strides[3];  // in bytes, of the last three
  cuuint32_t box[4], steps[4];
  int16_t type, swizzle;

  static constexpr uint64_t kMagic = 0x70616d20726f736e;

  // Elements of the box along a dimension.  The first has no step: it is ignored.
  int count(int d) const { return static_cast<int>(d == 0 ? box[0] : (box[d] + steps[d] - 1) / steps[d]); }
  int64_t bytes() const { return int64_t{2} * count(0) * count(1) * count(2) * count(3); }
};
static_assert(sizeof(CUtensorMap) == 128);

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                       const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                                       const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                       CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  auto require = [](bool met, const std::string& what) {
    if (!met) throw std::runtime_error("tensor map: " + what);
  };
  require(reinterpret_cast<uintptr_t>(map) % 64 == 0, "the map is not 64-byte aligned");
  require(reinterpret_cast<uintptr_t>(base) % 16 == 0, "base is not 16-byte aligned");
  require(rank == 4, "of another rank than 4");
  for (cuuint32_t d = 0; d < rank; ++d) {
    bool met = sizes[d] >= 1 && sizes[d] <= uint64_t{1} << 32 && box[d] >= 1 && box[d] <= 256 && steps[d] >= 1 &&
               steps[d] <= 8;
    if (d == 0) {  // elements of two bytes; an inner box is no larger than the swizzle
      met = met && box[0] * 2 % 16 == 0 && steps[0] == 1;
      if (swizzle == CU_TENSOR_MAP_SWIZZLE_128B) met = met && box[0] * 2 <= 128;
    } else {
      // A stride includes that of the dimension before.
      met = met && strides[d - 1] % 16 == 0 && strides[d - 1] < uint64_t{1} << 40 &&
            strides[d - 1] >= (d == 1 ? sizes[0] * 2 : strides[d - 2] * sizes[d - 1]);
    }
    require(met, "dimension " + std::to_string(d) + " is none that the hardware takes");
  }
  map->magic = CUtensorMap::kMagic;
  map->base = base;
  std::memcpy(map->sizes, sizes, sizeof(map->sizes));
  std::memcpy(map->strides, strides, sizeof(map->strides));
  std::memcpy(map->box, box, sizeof(map->box));
  std::memcpy(map->steps, steps, sizeof(map->steps));
  map->type = static_cast<int16_t>(type);
  map->swizzle = static_cast<int16_t>(swizzle);
  return CUDA_SUCCESS;
}

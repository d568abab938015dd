// SPDX-License-Identifier: MIT
// Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011), and normal numbers from its words (Box and Muller 1958), for host
// and device.  cpu/vec_philox.h is the same on vectors, genimg_fast/reference/philox.py the same in PyTorch.
//
// Element i of a tensor is word i % 4 of the block with counter i / 4 and the seed as key.  So a value depends on the
// seed and its index alone: it is the same on every device, instruction set and number of threads, and is drawn again
// rather than stored.  The integers agree to the bit; the floats to a few ulp, as log is the platform's own.
#pragma once
#include "common/activation.h"

namespace genimg_fast {

struct Philox {
  static constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
  static constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;
  static constexpr int kRounds = 10;
};

// Turns counter[4] into four random words.
GENIMG_FAST_HOST_DEVICE void philox4x32(uint32_t* counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < Philox::kRounds; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(counter[0]) * Philox::kMultiplier0;
    const uint64_t product1 = static_cast<uint64_t>(counter[2]) * Philox::kMultiplier1;
    counter[0] = static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0;
    counter[1] = static_cast<uint32_t>(product1);
    counter[2] = static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1;
    counter[3] = static_cast<uint32_t>(product0);
    key0 += Philox::kKeyStep0;
    key1 += Philox::kKeyStep1;
  }
}

struct BoxMuller {
  // The 24 high bits of a word make a float exactly.  Uniform numbers are (bits + 1) * kUniformStep, in (0, 1].
  static constexpr float kUniformStep = 1.0f / 16777216.0f;
  static constexpr float kAngleStep = 1.57079632679489662f / 4194304.0f;  // a quarter turn in 2^22 steps
  // Polynomials in x^2 on |x| <= pi / 4: sin(x) = x + x^3 S, cos(x) = 1 - x^2 / 2 + x^4 C.
  static constexpr float kSin0 = -0.1666666466f, kSin1 = 0.008332748271f, kSin2 = -0.0001958789088f;
  static constexpr float kCos0 = 0.04166666466f, kCos1 = -0.001388830304f, kCos2 = 2.454794209e-5f;
};

// Two independent normal numbers from two words.
GENIMG_FAST_HOST_DEVICE void box_muller(uint32_t word0, uint32_t word1, float* z0, float* z1) {
  using B = BoxMuller;
  const float uniform = static_cast<float>((word0 >> 8) + 1) * B::kUniformStep;
  const float radius = sqrtf(0.0f - 2.0f * logf(uniform));
  // The nearest quarter turn, and the angle from there: exact in integers.
  const int32_t turn = static_cast<int32_t>(word1 >> 8), quadrant = (turn + (1 << 21)) >> 22;
  const float x = static_cast<float>(turn - (quadrant << 22)) * B::kAngleStep, x2 = x * x;
  const float sine = x + x * x2 * (B::kSin0 + x2 * (B::kSin1 + x2 * B::kSin2));
  const float cosine = 1.0f - 0.5f * x2 + x2 * x2 * (B::kCos0 + x2 * (B::kCos1 + x2 * B::kCos2));
  const float c = quadrant & 1 ? sine : cosine, s = quadrant & 1 ? cosine : sine;
  *z0 = (quadrant + 1) & 2 ? -(radius * c) : radius * c;
  *z1 = quadrant & 2 ? -(radius * s) : radius * s;
}

// The normal numbers of elements 4 * block to 4 * block + 3.
GENIMG_FAST_HOST_DEVICE void philox_normal4(uint64_t seed, uint64_t block, float* z) {
  uint32_t words[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0, 0};
  philox4x32(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  box_muller(words[0], words[1], z, z + 1);
  box_muller(words[2], words[3], z + 2, z + 3);
}

}  // namespace genimg_fast

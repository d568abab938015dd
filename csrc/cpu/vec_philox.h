// SPDX-License-Identifier: MIT
// common/philox.h on vectors, kBlocks blocks of four numbers side by side; for files compiled through foreach_isa.h,
// hence no include guard.  Such a file includes <immintrin.h> on x86 and common/philox.h in its ordinary pass.

namespace genimg_fast::cpu::GENIMG_FAST_ISA {

typedef uint32_t Words __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));
typedef uint64_t WidePairs __attribute__((vector_size(GENIMG_FAST_VECTOR_BYTES)));
constexpr int kBlocks = kLanes<float>;

// The low halves of the 64-bit lanes, multiplied.  The vector notation has only the full product, three times slower.
GF_INLINE WidePairs multiply_low_halves(WidePairs a, WidePairs b) {
#if !defined(__x86_64__)
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#elif GENIMG_FAST_VECTOR_BYTES == 64
  // maskz: GCC 12 warns about the plain form, whose undefined operand it takes for ours
  return reinterpret_cast<WidePairs>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif GENIMG_FAST_VECTOR_BYTES == 32
  return reinterpret_cast<WidePairs>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return reinterpret_cast<WidePairs>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#endif
}

GF_INLINE void multiply_wide(Words a, uint32_t b, Words* high, Words* low) {
  const WidePairs pairs = reinterpret_cast<WidePairs>(a), factor = b - WidePairs{};
  const WidePairs even = multiply_low_halves(pairs, factor), odd = multiply_low_halves(pairs >> 32, factor);
  const uint64_t low_half = 0xffffffffu;
  *high = reinterpret_cast<Words>((even >> 32) | (odd & ~low_half));
  *low = reinterpret_cast<Words>((even & low_half) | (odd << 32));
}

GF_INLINE void philox4x32(Words* counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < Philox::kRounds; ++round) {
    Words high0, low0, high1, low1;
    multiply_wide(counter[0], Philox::kMultiplier0, &high0, &low0);
    multiply_wide(counter[2], Philox::kMultiplier1, &high1, &low1);
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = low0;
    key0 += Philox::kKeyStep0;
    key1 += Philox::kKeyStep1;
  }
}

// sqrt(x), x >= 0 and finite: 1 / sqrt(x) from its bits by Newton's iteration, and one correction of the root itself.
GF_INLINE Vec<float> sqrt_positive(Vec<float> x) {
  Mask<float> bits;
  __builtin_memcpy(&bits, &x, sizeof x);
  bits = 0x5f375a86 - (bits >> 1);
  Vec<float> y;
  __builtin_memcpy(&y, &bits, sizeof y);
  for (int i = 0; i < 3; ++i) y = y * (1.5f - (0.5f * x * y) * y);  // in this order 0 stays 0
  const Vec<float> root = x * y;
  return root + 0.5f * y * (x - root * root);
}

GF_INLINE void box_muller(Words word0, Words word1, Vec<float>* z0, Vec<float>* z1) {
  using B = BoxMuller;
  const Mask<float> bits = reinterpret_cast<Mask<float>>(word0 >> 8) + 1;
  const Vec<float> uniform = __builtin_convertvector(bits, Vec<float>) * B::kUniformStep;
  const Vec<float> radius = sqrt_positive(0.0f - 2.0f * log_of_normal(uniform));
  const Mask<float> turn = reinterpret_cast<Mask<float>>(word1 >> 8), quadrant = (turn + (1 << 21)) >> 22;
  const Vec<float> x = __builtin_convertvector(turn - (quadrant << 22), Vec<float>) * B::kAngleStep, x2 = x * x;
  const Vec<float> sine = x + x * x2 * (B::kSin0 + x2 * (B::kSin1 + x2 * B::kSin2));
  const Vec<float> cosine = 1.0f - 0.5f * x2 + x2 * x2 * (B::kCos0 + x2 * (B::kCos1 + x2 * B::kCos2));
  const Mask<float> odd = (quadrant & 1) != 0;
  const Vec<float> c = radius * (odd ? sine : cosine), s = radius * (odd ? cosine : sine);
  *z0 = ((quadrant + 1) & 2) != 0 ? -c : c;
  *z1 = (quadrant & 2) != 0 ? -s : s;
}

// The normal numbers of 4 * kBlocks elements in order, from element 4 * block on.  `block` is a multiple of kBlocks, so
// that the low words do not carry.
GF_INLINE void philox_normal(uint64_t seed, uint64_t block, Vec<float>* z) {
  Words words[4] = {};
  for (int lane = 0; lane < kBlocks; ++lane) words[0][lane] = lane;
  words[0] += static_cast<uint32_t>(block);
  words[1] += static_cast<uint32_t>(block >> 32);
  philox4x32(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  Vec<float> z0, z1, z2, z3;
  box_muller(words[0], words[1], &z0, &z1);
  box_muller(words[2], words[3], &z2, &z3);
  const Vec<float> low02 = shuffle<float, InterleaveLow>(z0, z2), low13 = shuffle<float, InterleaveLow>(z1, z3);
  const Vec<float> high02 = shuffle<float, InterleaveHigh>(z0, z2), high13 = shuffle<float, InterleaveHigh>(z1, z3);
  z[0] = shuffle<float, InterleaveLow>(low02, low13);
  z[1] = shuffle<float, InterleaveHigh>(low02, low13);
  z[2] = shuffle<float, InterleaveLow>(high02, high13);
  z[3] = shuffle<float, InterleaveHigh>(high02, high13);
}

}  // namespace genimg_fast::cpu::GENIMG_FAST_ISA

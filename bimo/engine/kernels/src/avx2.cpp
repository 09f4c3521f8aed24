// AVX2 with FMA and F16C: 8 lanes. Every x86 CPU of the last ten years has it.
#include "types.h"
#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace bimo {
namespace {

using F = __m256;
using I = __m256i;
constexpr int W = 8;
constexpr int FLOAT_M = 3, FLOAT_N = 4;  // tile of the float product: 12 accumulators of 16 registers
constexpr int BLOCK_M = 4;               // rows of a tile of the block product
constexpr int ATTEND_R = 4, ATTEND_SUMS = 12, ATTEND_SUMS_I8 = 8;  // queries of a tile of attention, its sums

inline F zero() { return _mm256_setzero_ps(); }
inline F set1(float x) { return _mm256_set1_ps(x); }
inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x); }
inline F load_half(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline void store_half(void* p, F x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline F load_bf16(const void* p) {
  const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline F load_i8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F load_u8(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_i8(int8_t* p, F x) {
  const I wide = _mm256_cvtps_epi32(x);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
using Words = __m256i;  // 16 bits each
inline void store_words(int16_t* p, F x) {
  const I wide = _mm256_cvtps_epi32(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}
inline Words widen(const uint8_t* p) {  // signed bytes
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Words two_words(const int16_t* p) {  // over and over
  int32_t both;
  __builtin_memcpy(&both, p, 4);
  return _mm256_set1_epi32(both);
}
inline I add_products(I total, Words a, Words b) {  // of two neighbours each
  return _mm256_add_epi32(total, _mm256_madd_epi16(a, b));
}
inline F add(F a, F b) { return _mm256_add_ps(a, b); }
inline F sub(F a, F b) { return _mm256_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm256_mul_ps(a, b); }
inline F div(F a, F b) { return _mm256_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F power_of_two(F n) {  // 2^n of a whole n
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// Lanes below `first` or from `end` on become `other`.
inline F keep(F x, int first, int end, float other) {
  const I lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const I inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                       _mm256_cmpgt_epi32(_mm256_set1_epi32(end), lane));
  return _mm256_blendv_ps(set1(other), x, _mm256_castsi256_ps(inside));
}
inline F where_above(F x, float limit, F y) {  // y, and 0 where x is not above the limit
  return _mm256_and_ps(_mm256_cmp_ps(x, set1(limit), _CMP_GT_OQ), y);
}
inline float sum(F x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline float largest(F x) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}

inline F to_float(I x) { return _mm256_cvtepi32_ps(x); }

// Weights of a group as bytes: 8 vectors, each of four consecutive inputs of 8 outputs; signed ones stay signed.
struct Bytes {
  I v[8];
};
inline I bytes_at(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
inline void load_bytes(const uint8_t* p, Bytes& w) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) w.v[i] = bytes_at(p + 32 * i);
}
inline void load_nibbles(const uint8_t* p, Bytes& w) {
  const I low = _mm256_set1_epi8(15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const I both = bytes_at(p + 32 * i);
    w.v[i] = _mm256_and_si256(both, low);
    w.v[i + 4] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
  }
}
inline void add_high_bits(const uint8_t* p, Bytes& w) {
  const I two = _mm256_set1_epi8(0x30);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const I bits = bytes_at(p + 32 * i);
    w.v[4 * i] = _mm256_or_si256(w.v[4 * i], _mm256_and_si256(_mm256_slli_epi16(bits, 4), two));
    w.v[4 * i + 1] = _mm256_or_si256(w.v[4 * i + 1], _mm256_and_si256(_mm256_slli_epi16(bits, 2), two));
    w.v[4 * i + 2] = _mm256_or_si256(w.v[4 * i + 2], _mm256_and_si256(bits, two));
    w.v[4 * i + 3] = _mm256_or_si256(w.v[4 * i + 3], _mm256_and_si256(_mm256_srli_epi16(bits, 2), two));
  }
}
// sum over vectors from … to-1 of (weight - offset) x activation: exact integers.
//
// maddubs adds two products in 16 bits: as many of these as cannot overflow are added before they are widened. Bytes of
// full range (`most` = 255) do not fit at all: they are signed here, and their sign is moved to the activation.
template <int from, int to, int most, int offset>
inline I dot(const Bytes& w, const int8_t* q, int q_sum) {
  const I one = _mm256_set1_epi16(1);
  I total = most == 255 ? _mm256_setzero_si256() : _mm256_set1_epi32(-offset * q_sum);
  constexpr int room = most == 255 ? 1 : 32767 / (2 * most * 127);
#pragma GCC unroll 8
  for (int i = from; i < to; i += room) {
    I part = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = i; j < i + room && j < to; j++) {
      int32_t four;
      __builtin_memcpy(&four, q + 4 * j, 4);
      const I x = _mm256_set1_epi32(four);
      const I product = most == 255 ? _mm256_maddubs_epi16(_mm256_abs_epi8(w.v[j]), _mm256_sign_epi8(x, w.v[j]))
                                    : _mm256_maddubs_epi16(w.v[j], x);
      part = j == i ? product : _mm256_add_epi16(part, product);
    }
    total = _mm256_add_epi32(total, _mm256_madd_epi16(part, one));
  }
  return total;
}

#include "kernels.inc"

}  // namespace
}  // namespace bimo
#pragma GCC pop_options

namespace bimo {

// Behind the pragma: a machine that does not have these instructions asks, too, and must not meet one.
const Kernels* avx2_kernels() {
  static const bool here =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!here) return nullptr;
  static const Kernels table = make_table("AVX2");
  return &table;
}

}  // namespace bimo
#else
namespace bimo {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace bimo
#endif

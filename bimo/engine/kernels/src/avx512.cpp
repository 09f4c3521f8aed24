// AVX-512 with VNNI: 16 lanes.
#include "types.h"
#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")

namespace bimo {
namespace {

using F = __m512;
using I = __m512i;
constexpr int W = 16;
constexpr int FLOAT_M = 6, FLOAT_N = 4;  // tile of the float product: 24 accumulators of 32 registers
constexpr int BLOCK_M = 12;              // rows of a tile of the block product
constexpr int ATTEND_R = 6, ATTEND_SUMS = 24, ATTEND_SUMS_I8 = 12;  // queries of a tile of attention, its sums

inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline F load_half(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline void store_half(void* p, F x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline F load_bf16(const void* p) {
  const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline F load_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F load_u8(const uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store_i8(int8_t* p, F x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}
using Words = __m512i;  // 16 bits each
inline void store_words(int16_t* p, F x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}
inline Words widen(const uint8_t* p) {  // signed bytes
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Words two_words(const int16_t* p) {  // over and over
  int32_t both;
  __builtin_memcpy(&both, p, 4);
  return _mm512_set1_epi32(both);
}
inline I add_products(I total, Words a, Words b) {  // of two neighbours each
  return _mm512_dpwssd_epi32(total, a, b);
}
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F power_of_two(F n) {  // 2^n of a whole n
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
// Lanes below `first` or from `end` on become `other`.
inline F keep(F x, int first, int end, float other) {
  const uint32_t below = end >= W ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1;
  const uint32_t above = first <= 0 ? 0xffffu : first >= W ? 0u : 0xffffu << first;
  return _mm512_mask_blend_ps(__mmask16(below & above), set1(other), x);
}
inline F where_above(F x, float limit, F y) {  // y, and 0 where x is not above the limit
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(limit), _CMP_GT_OQ), y);
}
inline float sum(F x) { return _mm512_reduce_add_ps(x); }
inline float largest(F x) { return _mm512_reduce_max_ps(x); }

inline F to_float(I x) { return _mm512_cvtepi32_ps(x); }

// Weights of a group as unsigned bytes: 8 vectors, each of four consecutive inputs of 16 outputs.
struct Bytes {
  I v[8];
};
inline I bytes_at(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void load_bytes(const uint8_t* p, Bytes& w) {
  const I flip = _mm512_set1_epi8(char(0x80));
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) w.v[i] = _mm512_xor_si512(bytes_at(p + 64 * i), flip);
}
inline void load_nibbles(const uint8_t* p, Bytes& w) {
  const I low = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const I both = bytes_at(p + 64 * i);
    w.v[i] = _mm512_and_si512(both, low);
    w.v[i + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
  }
}
inline void add_high_bits(const uint8_t* p, Bytes& w) {
  const I two = _mm512_set1_epi8(0x30);
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const I bits = bytes_at(p + 64 * i);
    w.v[4 * i] = _mm512_or_si512(w.v[4 * i], _mm512_and_si512(_mm512_slli_epi16(bits, 4), two));
    w.v[4 * i + 1] = _mm512_or_si512(w.v[4 * i + 1], _mm512_and_si512(_mm512_slli_epi16(bits, 2), two));
    w.v[4 * i + 2] = _mm512_or_si512(w.v[4 * i + 2], _mm512_and_si512(bits, two));
    w.v[4 * i + 3] = _mm512_or_si512(w.v[4 * i + 3], _mm512_and_si512(_mm512_srli_epi16(bits, 2), two));
  }
}
// sum over vectors from … to-1 of (weight - offset) x activation: exact integers. `most`: largest weight, unused here.
template <int from, int to, int most, int offset>
inline I dot(const Bytes& w, const int8_t* q, int q_sum) {
  I total = _mm512_set1_epi32(-offset * q_sum);
#pragma GCC unroll 8
  for (int i = from; i < to; i++) {
    int32_t four;
    __builtin_memcpy(&four, q + 4 * i, 4);
    total = _mm512_dpbusd_epi32(total, w.v[i], _mm512_set1_epi32(four));
  }
  return total;
}

#include "kernels.inc"

}  // namespace
}  // namespace bimo
#pragma GCC pop_options

namespace bimo {

// Behind the pragma: a machine that does not have these instructions asks, too, and must not meet one.
const Kernels* avx512_kernels() {
  static const bool here = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!here) return nullptr;
  static const Kernels table = make_table("AVX-512 VNNI");
  return &table;
}

}  // namespace bimo
#else
namespace bimo {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace bimo
#endif

// Any CPU: 8 lanes as the compiler's vectors, which it maps to what there is (SSE2, NEON); integer products by NEON's
// dot instruction where the compiler was told that it exists, else in plain loops.
#include "types.h"
#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace bimo {
namespace {

typedef float F __attribute__((vector_size(32), aligned(4)));
typedef int32_t I __attribute__((vector_size(32), aligned(4)));
constexpr int W = 8;
constexpr int FLOAT_M = 2, FLOAT_N = 3;
constexpr int BLOCK_M = 4;
constexpr int ATTEND_R = 3, ATTEND_SUMS = 6, ATTEND_SUMS_I8 = 6;  // queries of a tile of attention, its sums

inline F set1(float x) { return F{x, x, x, x, x, x, x, x}; }
inline F zero() { return set1(0.0f); }
inline F load(const float* p) {
  F x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }
template <class T, class Read>
inline F each(const T* p, Read read) {
  F x;
  for (int i = 0; i < W; i++) x[i] = read(p[i]);
  return x;
}
inline uint16_t word(const void* p, int i) {
  uint16_t bits;
  __builtin_memcpy(&bits, static_cast<const char*>(p) + 2 * i, 2);
  return bits;
}
inline F load_half(const void* p) {
  F x;
  for (int i = 0; i < W; i++) x[i] = half_to_float(word(p, i));
  return x;
}
inline void store_half(void* p, F x) {
  for (int i = 0; i < W; i++) {
    const uint16_t bits = float_to_half(x[i]);
    __builtin_memcpy(static_cast<char*>(p) + 2 * i, &bits, 2);
  }
}
inline F load_bf16(const void* p) {
  F x;
  for (int i = 0; i < W; i++) x[i] = from_bits(uint32_t(word(p, i)) << 16);
  return x;
}
inline F load_i8(const int8_t* p) {
  return each(p, [](int8_t b) { return float(b); });
}
inline F load_u8(const uint8_t* p) {
  return each(p, [](uint8_t b) { return float(b); });
}
inline void store_i8(int8_t* p, F x) {
  for (int i = 0; i < W; i++) p[i] = x[i] == x[i] ? int8_t(__builtin_rintf(x[i])) : int8_t(0);
}
struct Words {  // 16 bits each
  int16_t v[2 * W];
};
inline void store_words(int16_t* p, F x) {
  for (int i = 0; i < W; i++) p[i] = x[i] == x[i] ? int16_t(__builtin_rintf(x[i])) : int16_t(0);
}
inline Words widen(const uint8_t* p) {  // signed bytes
  Words w;
  for (int i = 0; i < 2 * W; i++) w.v[i] = int8_t(p[i]);
  return w;
}
inline Words two_words(const int16_t* p) {  // over and over
  Words w;
  for (int i = 0; i < 2 * W; i++) w.v[i] = p[i % 2];
  return w;
}
inline I add_products(I total, const Words& a, const Words& b) {  // of two neighbours each
  for (int i = 0; i < W; i++) total[i] += a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1];
  return total;
}
inline F add(F a, F b) { return a + b; }
inline F sub(F a, F b) { return a - b; }
inline F mul(F a, F b) { return a * b; }
inline F div(F a, F b) { return a / b; }
inline F fma(F a, F b, F c) { return a * b + c; }
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }
inline F abs(F a) { return a < 0.0f ? -a : a; }
inline F round(F a) {
  for (int i = 0; i < W; i++) a[i] = __builtin_rintf(a[i]);
  return a;
}
inline F power_of_two(F n) {  // 2^n of a whole n
  return F((__builtin_convertvector(n, I) + 127) << 23);  // the same bits
}
// Lanes below `first` or from `end` on become `other`.
inline F keep(F x, int first, int end, float other) {
  for (int i = 0; i < W; i++)
    if (i < first || i >= end) x[i] = other;
  return x;
}
inline F where_above(F x, float limit, F y) {  // y, and 0 where x is not above the limit
  for (int i = 0; i < W; i++)
    if (!(x[i] > limit)) y[i] = 0.0f;
  return y;
}
inline float sum(F x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }
inline float largest(F x) {
  float most = x[0];
  for (int i = 1; i < W; i++) most = x[i] > most ? x[i] : most;
  return most;
}
inline F to_float(I x) { return __builtin_convertvector(x, F); }

// Weights of a group as bytes: 8 vectors, each of four consecutive inputs of 8 outputs; signed ones stay signed.
struct Bytes {
  int8_t v[8][32];
};
inline void load_bytes(const uint8_t* p, Bytes& w) { __builtin_memcpy(w.v, p, 256); }
inline void load_nibbles(const uint8_t* p, Bytes& w) {
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 32; j++) {
      w.v[i][j] = int8_t(p[32 * i + j] & 15);
      w.v[i + 4][j] = int8_t(p[32 * i + j] >> 4);
    }
}
inline void add_high_bits(const uint8_t* p, Bytes& w) {
  for (int i = 0; i < 8; i++)
    for (int j = 0; j < 32; j++) w.v[i][j] = int8_t(w.v[i][j] | (p[32 * (i / 4) + j] >> (2 * (i % 4)) & 3) << 4);
}
// sum over vectors from … to-1 of (weight - offset) x activation: exact integers. All bytes fit signed ones here.
template <int from, int to, int most, int offset>
inline I dot(const Bytes& w, const int8_t* q, int q_sum) {
  const int start = most == 255 ? 0 : -offset * q_sum;
#if defined(__ARM_FEATURE_DOTPROD)
  int32x4_t low = vdupq_n_s32(start), high = low;
  for (int i = from; i < to; i++) {
    int32_t four;
    __builtin_memcpy(&four, q + 4 * i, 4);
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four));
    low = vdotq_s32(low, vld1q_s8(w.v[i]), x);
    high = vdotq_s32(high, vld1q_s8(w.v[i] + 16), x);
  }
  I total;
  vst1q_s32(reinterpret_cast<int32_t*>(&total), low);
  vst1q_s32(reinterpret_cast<int32_t*>(&total) + 4, high);
  return total;
#else
  int32_t total[W];
  for (int n = 0; n < W; n++) total[n] = start;
  for (int i = from; i < to; i++)
    for (int n = 0; n < W; n++)
      for (int j = 0; j < 4; j++) total[n] += w.v[i][4 * n + j] * q[4 * i + j];
  I result;
  __builtin_memcpy(&result, total, sizeof result);
  return result;
#endif
}

#include "kernels.inc"

}  // namespace

const Kernels* generic_kernels() {
#if defined(__ARM_FEATURE_DOTPROD)
  static const Kernels table = make_table("NEON with dot products");
#elif defined(__aarch64__)
  static const Kernels table = make_table("NEON");
#else
  static const Kernels table = make_table("plain C++");
#endif
  return &table;
}

}  // namespace bimo

// What the kernels share: how matrices, activations and the paged cache lie in memory, and the table of functions that
// each instruction set fills. Plain structures only, so that Python can fill them through ctypes.
#pragma once
#include <cstddef>
#include <cstdint>

namespace bimo {

// Formats of a matrix. The float formats are rows as torch holds them, read in place. The block formats hold the
// numbers of GGUF's blocks bit for bit, in another order: panels of `width` rows (the vector width of the instruction
// set), so that one vector of weights meets one broadcast activation; see pack.cpp.
enum Format : int32_t { F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K, N_FORMATS };

constexpr int GROUP = 32;  // numbers that share a scale, in weights and in activations
constexpr int SUPER = 8;   // groups in a block of the K formats
constexpr int MAX_WIDTH = 16;

struct Matrix {
  int32_t format;
  int32_t rows;      // outputs
  int32_t columns;   // inputs
  const void* data;  // null: there is none
  const float* bias; // (rows), or null
};

// Rows of activations, as float32 and, for block formats, as 8-bit integers with a scale for each group of 32.
struct Activations {
  const float* x;      // (M, k)
  const int8_t* q;     // (M, k): round(x / scale), -127 … 127
  const float* scale;  // (M, k / 32)
  const int32_t* sum;  // (M, k / 16): sums of q over half groups
  int32_t k;
};

enum CacheType : int32_t { CACHE_F32, CACHE_F16, CACHE_I8 };

// Keys and values. A block has all layers side by side, so that only blocks in use take memory. Of a layer it holds, for
// each key/value head, its tokens in tiles of `width`:
// keys transposed, (head_dim, width), values as (width, head_dim). int8 has a float scale per token beside each, and pairs
// lie together that one instruction multiplies and adds: keys as (head_dim / 2, width, 2), where an odd last row stays
// (1, width), values as (width / 2, head_dim, 2).
struct Cache {
  int32_t type, block_size, n_blocks, n_layers, n_kv_heads, head_dim;
  uint8_t* data;
};

// Queries of one key/value head that look at the same sequence: `n_tokens` tokens x `group` heads.
struct AttentionTask {
  const Cache* cache;
  const int32_t* table;  // block table of the sequence
  int32_t layer, kv_head, group, n_tokens;
  int32_t position;      // of the first token
  int32_t window;        // 0: all
  int32_t from, to;      // keys that this task reads: a split of the context
  float scale, softcap;
  const float* q;        // first token's first head; head h of token t at q + t * q_stride + h * head_dim
  int32_t q_stride;
  float* partial;        // (n_tokens * group, head_dim + 2): largest score, sum, unnormalised values
};

enum Activation : int32_t { SILU, GELU_TANH, GELU_ERF, RELU };

struct Kernels {
  const char* name;
  int32_t width;
  // y[m, n] (+)= sum_k x[m, k] w[n, k] + bias[n] for the panels begin … end-1 of `width` outputs.
  void (*matmul)(const Matrix&, int begin, int end, const Activations&, int M, float* y, int ldy, bool add);
  void (*quantize)(const float* x, int k, int8_t* q, float* scale, int32_t* sum);
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n, float* out);
  void (*rotate)(float* x, const float* cosine, const float* sine, int pairs);
  // gate = activation(gate) * up; without up: activation(gate).
  void (*activate)(int activation, float* gate, const float* up, int n);
  void (*attend)(const AttentionTask&);
  void (*store)(const Cache&, int layer, int block, int head, int offset, const float* k, const float* v);
  void (*weigh)(const float* scores, int n, float largest, float inverse_temperature, float* weights);
  float (*most)(const float* x, int n);
};

const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* generic_kernels();

inline float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

inline float half_to_float(uint16_t h) {
  const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return from_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent) return from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float x = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24: subnormal
  return sign ? -x : x;
}

inline uint16_t float_to_half(float x) {  // to nearest, ties to even
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits >= 0x47800000) return uint16_t(sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00));
  if (bits < 0x38800000) {  // subnormal: let the float adder round
    float magnitude = from_bits(bits) + 0.5f;
    uint32_t rounded;
    __builtin_memcpy(&rounded, &magnitude, 4);
    return uint16_t(sign | (rounded - 0x3f000000));
  }
  bits += 0xc8000fff + ((bits >> 13) & 1);
  return uint16_t(sign | bits >> 13);
}

// Bytes of one panel (`width` rows) of a block format; 0 for the float formats.
size_t panel_bytes(int format, int columns, int width);
// A row of a matrix as float32.
void dequantize_row(const Matrix&, int row, int width, float* out);
// Rows begin … end-1 of GGUF blocks as panels; begin is a multiple of width. Missing rows of the last panel are zeros.
void pack_panels(int format, const uint8_t* source, int rows, int columns, int width, int begin, int end, uint8_t* out);

// Where the keys and values of a token lie.
struct CachePlace {
  uint8_t *k, *v;            // tile of the token: (head_dim, width) and (width, head_dim)
  float *k_scale, *v_scale;  // (width) each, for int8
};

inline size_t cache_head_bytes(const Cache& c) {
  const size_t numbers = size_t(2) * c.block_size * c.head_dim;
  if (c.type == CACHE_I8) return numbers + size_t(2) * c.block_size * sizeof(float);
  return numbers * (c.type == CACHE_F32 ? 4 : 2);
}

inline size_t cache_block_bytes(const Cache& c) { return cache_head_bytes(c) * c.n_kv_heads; }

inline CachePlace cache_tile(const Cache& c, int layer, int block, int head, int tile, int width) {
  const size_t size = c.type == CACHE_F32 ? 4 : c.type == CACHE_F16 ? 2 : 1;
  const size_t numbers = size_t(c.block_size) * c.head_dim, tile_bytes = size_t(width) * c.head_dim * size;
  uint8_t* base = c.data + (size_t(block) * c.n_layers + layer) * cache_block_bytes(c) + head * cache_head_bytes(c);
  float* scales = reinterpret_cast<float*>(base + 2 * numbers * size);
  return {base + tile * tile_bytes, base + numbers * size + tile * tile_bytes, scales + tile * width,
          scales + c.block_size + tile * width};
}

}  // namespace bimo

// A whole model in every format, run in steps by several threads: built with sanitizers by test_sanitizers.py.
//
// Memory is allocated to the byte, so that a read beyond an end is seen. With an argument, the program makes the mistake
// of that name, which the sanitizer must see.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "model.h"
#include "pool.h"
#include "step.h"

using namespace bimo;

namespace {

std::mt19937 rng(1);
std::vector<std::unique_ptr<char[]>> kept;

void* memory(size_t bytes) {
  kept.emplace_back(new char[bytes]);
  return kept.back().get();
}

const float* numbers(size_t n, float size = 0.2f) {
  std::normal_distribution<float> normal(0.0f, size);
  float* x = static_cast<float*>(memory(n * sizeof(float)));
  for (size_t i = 0; i < n; i++) x[i] = normal(rng);
  return x;
}

int block_numbers(int format) { return format == Q4_K || format == Q6_K ? 256 : format > BF16 ? 32 : 1; }

Matrix matrix(int format, int rows, int columns, int width, Pool& pool) {
  const float* bias = numbers(rows);
  if (format == F32) return {format, rows, columns, numbers(size_t(rows) * columns), bias};
  if (format == F16 || format == BF16) {
    uint16_t* w = static_cast<uint16_t*>(memory(size_t(rows) * columns * 2));
    for (int i = 0; i < rows * columns; i++) w[i] = format == F16 ? float_to_half(0.01f * (i % 7)) : uint16_t(0x3c00 + i % 9);
    return {format, rows, columns, w, bias};
  }
  const int sizes[] = {34, 18, 20, 144, 210};
  const size_t bytes = size_t(rows) * columns / block_numbers(format) * sizes[format - Q8_0];
  uint8_t* source = static_cast<uint8_t*>(memory(bytes));
  for (size_t i = 0; i < bytes; i++) source[i] = uint8_t(rng() & 0x2f);  // small scales
  uint8_t* panels = static_cast<uint8_t*>(memory((rows + width - 1) / width * panel_bytes(format, columns, width)));
  struct Job {
    int format, rows, columns, width;
    const uint8_t* source;
    uint8_t* out;
    Pool* pool;
  } job{format, rows, columns, width, source, panels, &pool};
  pool.run(
      [](void* context, int) {
        Job& j = *static_cast<Job*>(context);
        int begin, end;
        while (j.pool->take(j.rows, 2 * MAX_WIDTH, begin, end))
          pack_panels(j.format, j.source, j.rows, j.columns, j.width, begin, end, j.out);
      },
      &job);
  return {format, rows, columns, panels, bias};
}

void run(const Kernels& kernels, int format, int cache_type, int threads, const std::string& mistake) {
  Pool pool(threads);
  Workspace space;
  const int W = kernels.width, D = 24, H = 6, K = 2, C = format >= Q4_K ? 256 : 96, FF = format >= Q4_K ? 256 : 160, V = 101;
  const int n_layers = 2, pairs = 10, n_blocks = 12, positions = 128;
  std::vector<Layer> layers(n_layers);
  for (Layer& l : layers) {
    l = {};
    l.matrices[Q] = matrix(format, H * D, C, W, pool);
    l.matrices[Place::K] = matrix(format, K * D, C, W, pool);
    l.matrices[Place::V] = matrix(format, K * D, C, W, pool);
    l.matrices[O] = matrix(block_numbers(format) > 1 ? F32 : format, C, H * D, W, pool);
    l.matrices[GATE] = matrix(format, FF, C, W, pool);
    l.matrices[UP] = matrix(format, FF, C, W, pool);
    l.matrices[DOWN] = matrix(format, C, FF, W, pool);
    l.norms[0] = l.norms[2] = {numbers(C), nullptr};
    l.q_norm = l.k_norm = {numbers(D), nullptr};
    l.cosine = numbers(positions * pairs);
    l.sine = numbers(positions * pairs);
    l.window = 40;
  }
  Model m{};
  m.n_layers = n_layers, m.d_model = C, m.n_heads = H, m.n_kv_heads = K, m.head_dim = D, m.d_ff = FF, m.vocab_size = V;
  m.norm_kind = RMS, m.head_norm = EACH_HEAD, m.activation = SILU, m.pairs = pairs;
  m.norm_eps = 1e-6f, m.attention_scale = 0.2f, m.embedding_scale = 1.0f;
  m.layers = layers.data();
  m.embeddings = matrix(format, V, C, W, pool);
  m.head = m.embeddings;
  m.norm = {numbers(C), nullptr};
  m.cache = {cache_type, 16, n_blocks, n_layers, K, D, nullptr};
  const size_t cache_bytes = cache_block_bytes(m.cache) * n_blocks * n_layers;
  m.cache.data = static_cast<uint8_t*>(memory(mistake == "overrun" ? cache_bytes - 8 : cache_bytes));
  std::memset(m.cache.data, 255, mistake == "overrun" ? cache_bytes - 8 : cache_bytes);

  const int32_t tables[] = {3, 11, 5, 7, 0, 1, 2}, starts[] = {0, 3, 6}, adapters[] = {0, 0, 0};
  int done[] = {0, 0, 0};
  const int pieces[][3] = {{37, 1, 9}, {1, 30, 1}, {5, 1, 1}, {1, 1, 1}};
  for (const auto& piece : pieces) {
    std::vector<int32_t> tokens, places, ends, outputs;
    for (int chunk = 0; chunk < 3; chunk++) {
      for (int i = 0; i < piece[chunk]; i++) {
        tokens.push_back(int(rng() % V));
        places.push_back(done[chunk] + i);
      }
      done[chunk] += piece[chunk];
      ends.push_back(int(tokens.size()));
      outputs.push_back(int(tokens.size()) - 1);
    }
    float* out = static_cast<float*>(memory(3 * V * sizeof(float)));
    Step step{int(tokens.size()), 3, 3, 0, tokens.data(), places.data(), ends.data(), tables, starts, adapters,
              outputs.data(), out};
    run_step(m, step, kernels, pool, space);
    for (int i = 0; i < 3 * V; i++)
      if (!std::isfinite(out[i])) {
        std::fprintf(stderr, "%s, format %d: a logit is not finite\n", kernels.name, format);
        std::exit(3);
      }
  }
}

int shared_count = 0;

}  // namespace

int main(int argc, char** argv) {
  const std::string mistake = argc > 1 ? argv[1] : "";
  if (mistake == "race") {  // threads that count without an atomic
    Pool pool(4);
    pool.run([](void*, int) { for (int i = 0; i < 1000; i++) shared_count++; }, nullptr);
    return 0;
  }
  for (const Kernels* kernels : {avx512_kernels(), avx2_kernels(), generic_kernels()}) {
    if (!kernels) continue;
    for (int format = 0; format < N_FORMATS; format++) run(*kernels, format, format % 3, 1 + format % 4, mistake);
  }
  std::puts("sound");
}

// What Python calls, through ctypes: plain C, no exceptions across the border.
#include <cstring>
#include <mutex>
#include <new>

#include "model.h"
#include "pool.h"
#include "sample.h"
#include "step.h"

#define API extern "C" __attribute__((visibility("default")))

using namespace bimo;

namespace {

// One step at a time uses a pool's threads, whatever Python threads call.
struct Machine {
  explicit Machine(int threads) : pool(threads) {}
  Pool pool;
  Workspace space;
  std::mutex busy;
};

struct PackJob {
  int32_t format, rows, columns, width;
  const uint8_t* source;
  uint8_t* out;
  Pool* pool;
};

void pack_work(void* context, int) {
  PackJob& job = *static_cast<PackJob*>(context);
  int begin, end;
  while (job.pool->take(job.rows, 16 * MAX_WIDTH, begin, end))
    pack_panels(job.format, job.source, job.rows, job.columns, job.width, begin, end, job.out);
}

const Kernels* const* tables(int* count) {
  static const Kernels* found[3];
  static int n = 0;
  if (!n)
    for (const Kernels* table : {avx512_kernels(), avx2_kernels(), generic_kernels()})
      if (table) found[n++] = table;
  *count = n;
  return found;
}

}  // namespace

// Instruction sets that this machine has, the fastest first.
API int bimo_kernels_count() {
  int count;
  tables(&count);
  return count;
}
API const void* bimo_kernels(int i) {
  int count;
  const Kernels* const* all = tables(&count);
  return i >= 0 && i < count ? all[i] : nullptr;
}
API const char* bimo_kernels_name(const void* kernels) { return static_cast<const Kernels*>(kernels)->name; }
API int bimo_kernels_width(const void* kernels) { return static_cast<const Kernels*>(kernels)->width; }

API void* bimo_machine_new(int threads) {
  try {
    return new Machine(threads);
  } catch (...) {  // no memory or no threads: Python says so
    return nullptr;
  }
}
API void bimo_machine_free(void* machine) { delete static_cast<Machine*>(machine); }

API size_t bimo_panel_bytes(int format, int columns, int width) { return panel_bytes(format, columns, width); }
API size_t bimo_cache_bytes(const Cache* cache) { return cache_block_bytes(*cache) * cache->n_blocks * cache->n_layers; }

API void bimo_pack(void* machine, int format, const void* source, int rows, int columns, int width, void* out) {
  Machine& m = *static_cast<Machine*>(machine);
  std::lock_guard<std::mutex> lock(m.busy);
  PackJob job{format, rows, columns, width, static_cast<const uint8_t*>(source), static_cast<uint8_t*>(out), &m.pool};
  m.pool.run(pack_work, &job);
}

// 0: done; 1: no memory.
API int bimo_step(void* machine, const void* kernels, const Model* model, const Step* step) {
  Machine& m = *static_cast<Machine*>(machine);
  std::lock_guard<std::mutex> lock(m.busy);
  try {
    run_step(*model, *step, *static_cast<const Kernels*>(kernels), m.pool, m.space);
  } catch (...) {  // nothing else is thrown
    return 1;
  }
  return 0;
}

API void bimo_copy_block(const Cache* cache, int source, int target) {
  const size_t size = cache_block_bytes(*cache) * cache->n_layers;
  std::memcpy(cache->data + target * size, cache->data + source * size, size);
}

// Takes what was recorded since the last call, at most `room` marks, and goes on recording while `on`; how many.
API int bimo_trace(void* machine, int on, Mark* marks, int room) {
  Machine& m = *static_cast<Machine*>(machine);
  std::lock_guard<std::mutex> lock(m.busy);
  const int count = int(m.space.marks.size()) < room ? int(m.space.marks.size()) : room;
  if (count) std::memcpy(marks, m.space.marks.data(), count * sizeof(Mark));
  m.space.marks.clear();
  m.space.tracing = on != 0;
  return count;
}

API int bimo_draw(const void* kernels, const Draw* rules, const float* scores, int n) {
  try {
    return draw(*static_cast<const Kernels*>(kernels), *rules, scores, n);
  } catch (...) {
    return -2;
  }
}

// Single kernels, for their tests.
API void bimo_matmul(const void* kernels, const Matrix* w, const Activations* a, int M, float* y, int ldy, int add) {
  const Kernels& k = *static_cast<const Kernels*>(kernels);
  k.matmul(*w, 0, (w->rows + k.width - 1) / k.width, *a, M, y, ldy, add != 0);
}
API void bimo_quantize(const void* kernels, const float* x, int k, int8_t* q, float* scale, int32_t* sum) {
  static_cast<const Kernels*>(kernels)->quantize(x, k, q, scale, sum);
}
API void bimo_dequantize_row(const void* kernels, const Matrix* w, int row, float* out) {
  dequantize_row(*w, row, static_cast<const Kernels*>(kernels)->width, out);
}
API void bimo_rms_norm(const void* kernels, const float* x, const float* weight, float eps, int n, float* out) {
  static_cast<const Kernels*>(kernels)->rms_norm(x, weight, eps, n, out);
}
API void bimo_layer_norm(const void* kernels, const float* x, const float* weight, const float* bias, float eps, int n,
                         float* out) {
  static_cast<const Kernels*>(kernels)->layer_norm(x, weight, bias, eps, n, out);
}
API void bimo_rotate(const void* kernels, float* x, const float* cosine, const float* sine, int pairs) {
  static_cast<const Kernels*>(kernels)->rotate(x, cosine, sine, pairs);
}
API void bimo_activate(const void* kernels, int activation, float* gate, const float* up, int n) {
  static_cast<const Kernels*>(kernels)->activate(activation, gate, up, n);
}
API void bimo_attend(const void* kernels, const AttentionTask* task) { static_cast<const Kernels*>(kernels)->attend(*task); }
API void bimo_store(const void* kernels, const Cache* cache, int layer, int block, int head, int offset, const float* k,
                    const float* v) {
  static_cast<const Kernels*>(kernels)->store(*cache, layer, block, head, offset, k, v);
}

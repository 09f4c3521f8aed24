// A step of the whole model in one call: every thread walks through the stages together and takes pieces of each.
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "model.h"
#include "step.h"

namespace bimo {

namespace {

constexpr int SPLIT = 256;        // keys of one task of attention: always the same, so that results are
constexpr int FEW_ROWS = 4;       // up to here every thread prepares all activations itself, which saves a barrier
constexpr int QUERIES = 24;       // rows of queries in a task: its keys stay in the first cache
constexpr size_t MOST_MARKS = 1 << 16;  // that wait to be fetched
constexpr int PIECES = 6;         // pieces of a stage per thread: a slow thread takes fewer
constexpr size_t PARTIAL = 16 << 20;  // partial results of attention that are kept at once, 64 MB: long contexts take turns

struct Tile {  // of queries: some tokens of one chunk
  int32_t chunk, first_row, n_tokens, n_splits;
  size_t partial;  // where its first split's partial results begin, for key/value head 0
};

struct Task {
  int32_t tile, split;
};

template <class T>
struct Buffer {
  std::unique_ptr<T[]> data;
  size_t size = 0;
  T* need(size_t n) {
    if (n > size) {
      data.reset(new T[n]);
      size = n;
    }
    return data.get();
  }
};

template <class T>
struct Lent {  // a part of a buffer
  struct {
    T* at = nullptr;
    T* get() const { return at; }
  } data;
  T* take(T* from, size_t n) {
    data.at = from;
    return from + n;
  }
};

struct Scratch {  // of the rows of activations of one input
  Buffer<float> x, scale;
  Buffer<int8_t> q;
  Buffer<int32_t> sum;
};

}  // namespace

struct Workspace::Parts {
  std::vector<Tile> tiles;
  std::vector<Task> tasks;
  std::vector<int> turns;  // tasks behind the last one of each turn of attention
  std::vector<int32_t> chunk_of;
  std::unique_ptr<std::atomic<int>[]> finished;
  size_t n_finished = 0;
  Buffer<float> x, inner, branch, partial, gathered;
  Lent<float> q, k, v, rotated, attended, gate, up;  // of `inner`
  Scratch shared;
  std::vector<Scratch> own;
};

Workspace::Workspace() : parts(new Parts) {}
Workspace::~Workspace() { delete parts; }

namespace {

class Run {
 public:
  Run(const Model& model, const Step& step, const Kernels& kernels, Pool& pool, Workspace& space)
      : m_(model), s_(step), k_(kernels), pool_(pool), w_(*space.parts), rows_(step.n_rows) {
    if (space.tracing && space.marks.size() < MOST_MARKS) marks_.resize(pool.size());
    plan();
  }

  void work(int thread) {
    timed(EMBED, thread, [&] { embed(); });
    for (int layer = 0; layer < m_.n_layers; layer++) {
      const Layer& l = m_.layers[layer];
      timed(QKV, thread, [&] { attention_inputs(l, layer, thread); });
      if (m_.parallel_blocks) timed(GATE_UP, thread, [&] { feedforward_inputs(l, layer, thread); });
      timed(PLACE_KEYS, thread, [&] { place_keys(l, layer); });
      timed(ATTEND, thread, [&] { attend(l, layer); });
      timed(ATTENTION_OUT, thread, [&] {
        project(l, layer, O, w_.attended.data.get(), m_.n_heads * m_.head_dim, l.norms[1], thread);
      });
      if (!m_.parallel_blocks) timed(GATE_UP, thread, [&] { feedforward_inputs(l, layer, thread); });
      timed(FEEDFORWARD_OUT, thread, [&] { project(l, layer, DOWN, w_.gate.data.get(), m_.d_ff, l.norms[3], thread); });
    }
    timed(OUTPUT, thread, [&] { finish(thread); });
  }

  void collect(std::vector<Mark>& marks) const {
    for (const auto& own : marks_) marks.insert(marks.end(), own.begin(), own.end());
  }

 private:
  template <class Body>
  void timed(Stage stage, int thread, Body body) {
    if (marks_.empty()) return body();
    const int64_t start = now();
    body();
    marks_[thread].push_back({stage, thread, start, now()});
  }

  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }

  int group() const { return m_.n_heads / m_.n_kv_heads; }
  int heads_width() const { return m_.n_heads * m_.head_dim; }
  int kv_width() const { return m_.n_kv_heads * m_.head_dim; }

  void plan() {
    const size_t rows = rows_;
    w_.x.need(rows * m_.d_model);
    w_.branch.need(rows * m_.d_model);
    lend(rows);
    w_.gathered.need(size_t(s_.n_outputs) * m_.d_model);
    w_.own.resize(pool_.size());
    for (Scratch& own : w_.own) reserve(own, FEW_ROWS);
    if (rows_ > FEW_ROWS) reserve(w_.shared, rows);
    w_.tiles.clear();
    w_.tasks.clear();
    w_.turns.clear();
    w_.chunk_of.resize(rows);
    const int most = QUERIES / group() > 1 ? QUERIES / group() : 1;
    size_t partial = 0, most_partial = 0;
    int row = 0;
    for (int chunk = 0; chunk < s_.n_chunks; chunk++) {
      any_adapter_ |= s_.adapters[chunk] > 0;
      for (; row < s_.chunk_ends[chunk];) {
        const int n = s_.chunk_ends[chunk] - row < most ? s_.chunk_ends[chunk] - row : most;
        const int n_splits = s_.positions[row + n - 1] / SPLIT + 1;
        const size_t wanted = size_t(n_splits) * n * m_.n_heads * (m_.head_dim + 2);
        if (partial && partial + wanted > PARTIAL) {
          w_.turns.push_back(int(w_.tasks.size()));
          partial = 0;
        }
        for (int split = 0; split < n_splits; split++) w_.tasks.push_back({int32_t(w_.tiles.size()), split});
        w_.tiles.push_back({chunk, row, n, n_splits, partial});
        partial += wanted;
        most_partial = partial > most_partial ? partial : most_partial;
        for (int end = row + n; row < end; row++) w_.chunk_of[row] = chunk;
      }
    }
    w_.turns.push_back(int(w_.tasks.size()));
    w_.partial.need(most_partial);
    const size_t counters = w_.tiles.size() * m_.n_kv_heads;
    if (counters > w_.n_finished) {
      w_.finished.reset(new std::atomic<int>[counters]);
      w_.n_finished = counters;
    }
    for (size_t i = 0; i < counters; i++) w_.finished[i].store(0, std::memory_order_relaxed);
  }

  // What attention holds is done with when the feed-forward part begins: one piece of memory serves both, unless they
  // run side by side.
  void lend(size_t rows) {
    const size_t heads = rows * heads_width(), kv = rows * kv_width(), wide = rows * m_.d_ff;
    const size_t attention = 3 * heads + 2 * kv, feedforward = 2 * wide;
    const bool apart = m_.parallel_blocks;
    float* first = w_.inner.need(apart ? attention + feedforward : attention > feedforward ? attention : feedforward);
    float* next = w_.q.take(first, heads);
    next = w_.rotated.take(next, heads);
    next = w_.attended.take(next, heads);
    next = w_.k.take(next, kv);
    next = w_.v.take(next, kv);
    w_.up.take(w_.gate.take(apart ? next : first, wide), wide);
  }

  // All memory is there before the threads begin: an error in one of them could not be told.
  void reserve(Scratch& s, size_t rows) const {
    size_t widest = m_.d_model;
    for (int width : {heads_width(), m_.d_ff}) widest = size_t(width) > widest ? width : widest;
    bool blocks = is_block(m_.head);
    for (int layer = 0; layer < m_.n_layers; layer++)
      for (const Matrix& w : m_.layers[layer].matrices) blocks |= is_block(w);
    s.x.need(rows * m_.d_model);
    if (!blocks) return;
    s.q.need(rows * widest);
    s.scale.need(rows * (widest / GROUP));
    s.sum.need(rows * 2 * (widest / GROUP));
  }

  // Every thread calls body(begin, end) for pieces of 0 … count-1.
  template <class Body>
  void share(int count, Body body, int least = 1) {
    int step = count / (pool_.size() * PIECES), begin, end;
    if (step < least) step = least;
    while (pool_.take(count, step, begin, end)) body(begin, end);
  }

  int panels(const Matrix& w) const { return (w.rows + k_.width - 1) / k_.width; }
  bool is_block(const Matrix& w) const { return w.format > BF16; }

  void embed() {
    share(rows_, [&](int begin, int end) {
      for (int row = begin; row < end; row++) {
        float* x = w_.x.data.get() + size_t(row) * m_.d_model;
        dequantize_row(m_.embeddings, s_.tokens[row], k_.width, x);
        if (m_.embedding_scale != 1.0f)
          for (int i = 0; i < m_.d_model; i++) x[i] *= m_.embedding_scale;
        if (m_.learned_positions) {
          const float* place = m_.learned_positions + size_t(s_.positions[row]) * m_.d_model;
          for (int i = 0; i < m_.d_model; i++) x[i] += place[i];
        }
      }
    });
    pool_.barrier();
  }

  void normalise(const Norm& norm, const float* x, int n, float* out) const {
    if (!norm.weight)
      std::memcpy(out, x, n * sizeof(float));
    else if (m_.norm_kind == RMS)
      k_.rms_norm(x, norm.weight, m_.norm_eps, n, out);
    else
      k_.layer_norm(x, norm.weight, norm.bias, m_.norm_eps, n, out);
  }

  void prepare_row(Scratch& s, int row, const float* x, int width, const Norm& norm, bool blocks) {
    const float* prepared = x;
    if (norm.weight) {
      normalise(norm, x, width, s.x.data.get() + size_t(row) * width);
      prepared = s.x.data.get() + size_t(row) * width;
    }
    const size_t groups = width / GROUP;
    if (blocks)
      k_.quantize(prepared, width, s.q.data.get() + row * groups * GROUP, s.scale.data.get() + row * groups,
                  s.sum.data.get() + row * 2 * groups);
  }

  // Rows normalised and, where a matrix has blocks, as 8-bit integers.
  Activations prepare(const float* x, int rows, int width, const Norm& norm, bool blocks, int thread) {
    const bool few = rows <= FEW_ROWS;
    Scratch& s = few ? w_.own[thread] : w_.shared;
    if (few) {
      for (int row = 0; row < rows; row++) prepare_row(s, row, x + size_t(row) * width, width, norm, blocks);
    } else if (norm.weight || blocks) {
      share(rows, [&](int begin, int end) {
        for (int row = begin; row < end; row++) prepare_row(s, row, x + size_t(row) * width, width, norm, blocks);
      });
      pool_.barrier();
    }
    return {norm.weight ? s.x.data.get() : x, s.q.data.get(), s.scale.data.get(), s.sum.data.get(), width};
  }

  void attention_inputs(const Layer& l, int layer, int thread) {
    const Matrix *q = &l.matrices[Q], *k = &l.matrices[K], *v = &l.matrices[V];
    const bool blocks = is_block(*q) || is_block(*k) || is_block(*v);
    const Activations a = prepare(w_.x.data.get(), rows_, m_.d_model, l.norms[0], blocks, thread);
    const int n_q = panels(*q), n_k = panels(*k), n_v = panels(*v);
    share(n_q + n_k + n_v, [&](int begin, int end) {
      part(*q, begin, end, 0, n_q, a, w_.q.data.get(), heads_width());
      part(*k, begin, end, n_q, n_k, a, w_.k.data.get(), kv_width());
      part(*v, begin, end, n_q + n_k, n_v, a, w_.v.data.get(), kv_width());
    });
    pool_.barrier();
    if (!any_adapter_) return;
    adapt(layer, Q, a.x, m_.d_model, w_.q.data.get(), heads_width());
    adapt(layer, K, a.x, m_.d_model, w_.k.data.get(), kv_width());
    adapt(layer, V, a.x, m_.d_model, w_.v.data.get(), kv_width());
    pool_.barrier();
  }

  // The panels of one matrix among those of several that were joined.
  void part(const Matrix& w, int begin, int end, int first, int count, const Activations& a, float* y, int ldy) {
    begin = begin > first ? begin - first : 0;
    end = end - first < count ? end - first : count;
    if (begin < end) k_.matmul(w, begin, end, a, rows_, y, ldy, false);
  }

  void adapt(int layer, Place place, const float* x, int n_in, float* y, int n_out) {
    share(rows_, [&](int begin, int end) {
      std::vector<float> low;
      for (int row = begin; row < end; row++) {
        const int adapter = s_.adapters[w_.chunk_of[row]];
        if (!adapter) continue;
        const LowRank& change = m_.adapters[(size_t(adapter - 1) * m_.n_layers + layer) * N_PLACES + place];
        if (!change.a) continue;
        low.assign(change.rank, 0.0f);
        const Activations in{x + size_t(row) * n_in, nullptr, nullptr, nullptr, n_in};
        const Matrix a{F32, change.rank, n_in, change.a, nullptr}, b{F32, n_out, change.rank, change.b, nullptr};
        k_.matmul(a, 0, panels(a), in, 1, low.data(), change.rank, false);
        for (float& u : low) u *= change.scale;
        const Activations middle{low.data(), nullptr, nullptr, nullptr, change.rank};
        k_.matmul(b, 0, panels(b), middle, 1, y + size_t(row) * n_out, n_out, true);
      }
    });
    pool_.barrier();
  }

  // Queries and keys normalised and turned; keys and values into the cache.
  void place_keys(const Layer& l, int layer) {
    share(rows_ * m_.n_kv_heads, [&](int begin, int end) {
      std::vector<float> key(m_.head_dim);
      for (int unit = begin; unit < end; unit++) place_head(l, layer, unit / m_.n_kv_heads, unit % m_.n_kv_heads, key.data());
    });
    pool_.barrier();
  }

  void place_head(const Layer& l, int layer, int row, int head, float* key) {
    const int D = m_.head_dim, position = s_.positions[row], chunk = w_.chunk_of[row];
    const float* q = w_.q.data.get() + size_t(row) * heads_width();
    const float* k = w_.k.data.get() + size_t(row) * kv_width();
    for (int h = head * group(); h < (head + 1) * group(); h++) {
      float* out = w_.rotated.data.get() + size_t(row) * heads_width() + h * D;
      one_head(l, l.q_norm, q, heads_width(), h, position, out);
    }
    one_head(l, l.k_norm, k, kv_width(), head, position, key);
    const int32_t* table = s_.tables + s_.table_starts[chunk];
    k_.store(m_.cache, layer, table[position / m_.cache.block_size], head, position % m_.cache.block_size, key,
             w_.v.data.get() + size_t(row) * kv_width() + head * D);
  }

  void one_head(const Layer& l, const Norm& norm, const float* row, int width, int head, int position, float* out) {
    const int D = m_.head_dim;
    if (m_.head_norm == ACROSS_HEADS && norm.weight) {
      std::vector<float> normed(width);
      normalise(norm, row, width, normed.data());
      std::memcpy(out, normed.data() + head * D, D * sizeof(float));
    } else if (m_.head_norm == EACH_HEAD) {
      normalise(norm, row + head * D, D, out);
    } else {
      std::memcpy(out, row + head * D, D * sizeof(float));
    }
    if (l.cosine) k_.rotate(out, l.cosine + size_t(position) * m_.pairs, l.sine + size_t(position) * m_.pairs, m_.pairs);
  }

  void attend(const Layer& l, int layer) {
    int first = 0;
    for (int last : w_.turns) {
      attend_tasks(l, layer, first, last);
      first = last;
    }
  }

  void attend_tasks(const Layer& l, int layer, int first, int last) {
    const int K = m_.n_kv_heads, G = group(), D = m_.head_dim;
    share((last - first) * K, [&](int begin, int end) {
      for (int unit = begin; unit < end; unit++) {
        const Task& task = w_.tasks[first + unit / K];
        const Tile& tile = w_.tiles[task.tile];
        const int head = unit % K;
        const size_t split_size = size_t(tile.n_tokens) * G * (D + 2);
        float* partial = w_.partial.data.get() + tile.partial + size_t(head) * tile.n_splits * split_size;
        const float* q = w_.rotated.data.get() + size_t(tile.first_row) * heads_width() + head * G * D;
        k_.attend({&m_.cache, s_.tables + s_.table_starts[tile.chunk], layer, head, G, tile.n_tokens,
                   s_.positions[tile.first_row], l.window, task.split * SPLIT, (task.split + 1) * SPLIT,
                   m_.attention_scale, m_.attention_softcap, q, heads_width(), partial + task.split * split_size});
        auto& finished = w_.finished[size_t(task.tile) * K + head];
        if ((finished.fetch_add(1, std::memory_order_acq_rel) + 1) % tile.n_splits == 0) join(tile, head, partial, split_size);
      }
    });
    pool_.barrier();
  }

  // The splits of a context become one: weighted by how large their largest scores were.
  void join(const Tile& tile, int head, const float* partial, size_t split_size) {
    const int G = group(), D = m_.head_dim;
    for (int row = 0; row < tile.n_tokens * G; row++) {
      const float* first = partial + size_t(row) * (D + 2);
      float* out = w_.attended.data.get() + size_t(tile.first_row + row / G) * heads_width() + (head * G + row % G) * D;
      float most = first[0], total = 0.0f;
      for (int split = 1; split < tile.n_splits; split++) most = std::fmax(most, first[split * split_size]);
      std::memset(out, 0, D * sizeof(float));
      for (int split = 0; split < tile.n_splits; split++) {
        const float* part = first + split * split_size;
        if (part[1] == 0.0f) continue;  // all masked, for this query
        const float weight = std::exp(part[0] - most);
        total += part[1] * weight;
        for (int d = 0; d < D; d++) out[d] += part[2 + d] * weight;
      }
      const float inverse = 1.0f / total;
      for (int d = 0; d < D; d++) out[d] *= inverse;
    }
  }

  void feedforward_inputs(const Layer& l, int layer, int thread) {
    const Matrix &gate = l.matrices[GATE], &up = l.matrices[UP];
    const bool gated = gate.data != nullptr, blocks = is_block(up) || (gated && is_block(gate));
    const Activations a = prepare(w_.x.data.get(), rows_, m_.d_model, l.norms[2], blocks, thread);
    float *first = w_.gate.data.get(), *second = w_.up.data.get();
    share(panels(up), [&](int begin, int end) {
      if (gated) k_.matmul(gate, begin, end, a, rows_, first, m_.d_ff, false);
      k_.matmul(up, begin, end, a, rows_, gated ? second : first, m_.d_ff, false);
      if (!any_adapter_) activate(gated, 0, rows_, begin * k_.width, end * k_.width);
    });
    pool_.barrier();
    if (!any_adapter_) return;
    if (gated) adapt(layer, GATE, a.x, m_.d_model, first, m_.d_ff);
    adapt(layer, UP, a.x, m_.d_model, gated ? second : first, m_.d_ff);
    share(rows_, [&](int begin, int end) { activate(gated, begin, end, 0, m_.d_ff); });
    pool_.barrier();
  }

  void activate(bool gated, int from_row, int to_row, int begin, int end) {
    end = end < m_.d_ff ? end : m_.d_ff;
    for (int row = from_row; row < to_row; row++) {
      const size_t place = size_t(row) * m_.d_ff + begin;
      k_.activate(m_.activation, w_.gate.data.get() + place, gated ? w_.up.data.get() + place : nullptr, end - begin);
    }
  }

  // A branch's last product, added to the residual stream, after a norm where there is one.
  void project(const Layer& l, int layer, Place place, const float* x, int width, const Norm& after, int thread) {
    const Matrix& w = l.matrices[place];
    const Activations a = prepare(x, rows_, width, {nullptr, nullptr}, is_block(w), thread);
    float* y = after.weight ? w_.branch.data.get() : w_.x.data.get();
    share(panels(w), [&](int begin, int end) { k_.matmul(w, begin, end, a, rows_, y, m_.d_model, !after.weight); });
    pool_.barrier();
    if (any_adapter_) adapt(layer, place, a.x, width, y, m_.d_model);
    if (!after.weight) return;
    share(rows_, [&](int begin, int end) {
      std::vector<float> normed(m_.d_model);
      for (int row = begin; row < end; row++) {
        normalise(after, y + size_t(row) * m_.d_model, m_.d_model, normed.data());
        float* target = w_.x.data.get() + size_t(row) * m_.d_model;
        for (int i = 0; i < m_.d_model; i++) target[i] += normed[i];
      }
    });
    pool_.barrier();
  }

  void finish(int thread) {
    if (!s_.n_outputs) return;
    const int C = m_.d_model;
    if (thread == 0)
      for (int i = 0; i < s_.n_outputs; i++)
        std::memcpy(w_.gathered.data.get() + size_t(i) * C, w_.x.data.get() + size_t(s_.outputs[i]) * C, C * sizeof(float));
    pool_.barrier();
    if (s_.want_hidden) {
      share(s_.n_outputs, [&](int begin, int end) {
        for (int i = begin; i < end; i++)
          normalise(m_.norm, w_.gathered.data.get() + size_t(i) * C, C, s_.out + size_t(i) * C);
      });
      return;
    }
    const Activations a = prepare(w_.gathered.data.get(), s_.n_outputs, C, m_.norm, is_block(m_.head), thread);
    share(panels(m_.head), [&](int begin, int end) {
      k_.matmul(m_.head, begin, end, a, s_.n_outputs, s_.out, m_.vocab_size, false);
      cap(begin * k_.width, end * k_.width);
    });
  }

  void cap(int begin, int end) {
    const float c = m_.logit_softcap;
    if (c == 0.0f) return;
    end = end < m_.vocab_size ? end : m_.vocab_size;
    for (int i = 0; i < s_.n_outputs; i++)
      for (int n = begin; n < end; n++) {
        float& logit = s_.out[size_t(i) * m_.vocab_size + n];
        logit = c * std::tanh(logit / c);
      }
  }

  const Model& m_;
  const Step& s_;
  const Kernels& k_;
  Pool& pool_;
  Workspace::Parts& w_;
  const int rows_;
  bool any_adapter_ = false;
  std::vector<std::vector<Mark>> marks_;  // of each thread; empty: nobody asks
};

void work(void* run, int thread) { static_cast<Run*>(run)->work(thread); }

}  // namespace

void run_step(const Model& model, const Step& step, const Kernels& kernels, Pool& pool, Workspace& space) {
  Run run(model, step, kernels, pool, space);
  pool.run(work, &run);
  run.collect(space.marks);
}

}  // namespace bimo

// A model as the step sees it, and what a step reads. Filled by Python through ctypes: `layout.py` mirrors these structs.
#pragma once
#include "types.h"

namespace bimo {

struct Norm {
  const float* weight;  // null: no norm here
  const float* bias;    // of LayerNorm, or null
};

// A low-rank change of one matrix: y += scale B A x.
struct LowRank {
  const float *a, *b;  // (rank, inputs), (outputs, rank); null: none
  float scale;
  int32_t rank;
};

enum Place { Q, K, V, O, GATE, UP, DOWN, N_PLACES };

struct Layer {
  Matrix matrices[N_PLACES];  // without GATE: a plain feed-forward part
  Norm norms[4];              // before and after attention, before and after the feed-forward part
  Norm q_norm, k_norm;
  const float *cosine, *sine; // (positions, pairs); null: not rotated
  int32_t window;
};

enum NormKind : int32_t { RMS, LAYER };
enum HeadNorm : int32_t { NO_HEAD_NORM, EACH_HEAD, ACROSS_HEADS };

struct Model {
  int32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, vocab_size;
  int32_t norm_kind, head_norm, activation, pairs, parallel_blocks;
  float norm_eps, attention_scale, attention_softcap, embedding_scale, logit_softcap;
  const Layer* layers;
  Matrix embeddings, head;
  Norm norm;
  const float* learned_positions;  // (positions, d_model), or null
  Cache cache;
  const LowRank* adapters;  // (adapters, layers, N_PLACES)
};

struct Step {
  int32_t n_rows, n_chunks, n_outputs, want_hidden;
  const int32_t *tokens, *positions;  // (rows)
  const int32_t *chunk_ends;          // (chunks): row behind each chunk's last
  const int32_t *tables;              // block tables one behind the other
  const int32_t *table_starts;        // (chunks)
  const int32_t *adapters;            // (chunks), counted from 1; 0: none
  const int32_t *outputs;             // (outputs): rows whose output is wanted
  float* out;                         // (outputs, V), or (outputs, C) with want_hidden
};

}  // namespace bimo

// Runs one step of a model; see step.cpp.
#pragma once
#include <cstdint>
#include <vector>

#include "model.h"
#include "pool.h"

namespace bimo {

enum Stage : int32_t { EMBED, QKV, PLACE_KEYS, ATTEND, ATTENTION_OUT, GATE_UP, FEEDFORWARD_OUT, OUTPUT, N_STAGES };

// What a thread did, the wait for the others included; nanoseconds of the steady clock.
struct Mark {
  int32_t stage, thread;
  int64_t start, end;
};

// Memory of a step that the next one uses again.
struct Workspace {
  struct Parts;
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  Parts* parts;
  bool tracing = false;
  std::vector<Mark> marks;
};

void run_step(const Model&, const Step&, const Kernels&, Pool&, Workspace&);

}  // namespace bimo

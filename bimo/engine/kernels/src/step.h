// Runs one step of a model; see step.cpp.
#pragma once
#include "model.h"
#include "pool.h"

namespace bimo {

// Memory of a step that the next one uses again.
struct Workspace {
  struct Parts;
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  Parts* parts;
};

void run_step(const Model&, const Step&, const Kernels&, Pool&, Workspace&);

}  // namespace bimo

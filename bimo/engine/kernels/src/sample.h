// From scores to a token; see sample.cpp.
#pragma once
#include "types.h"

namespace bimo {

struct Draw {
  double top_p, u;  // u: the random number, in 0 … 1
  float temperature, min_p;
  int32_t top_k;
};

// The token at which the cumulated weights pass the share u; -1 when no score is finite.
int32_t draw(const Kernels&, const Draw&, const float* scores, int n);

}  // namespace bimo

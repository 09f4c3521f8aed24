// The draw of a token, by the same rules in the same order as `bimo/engine/sampling.py`, which is its reference.
#include "sample.h"

#include <algorithm>
#include <vector>

namespace bimo {

namespace {

// Weight 0 for what lies outside the smallest set of tokens that has the share top_p.
void keep_nucleus(std::vector<float>& weights, double top_p) {
  double total = 0.0;
  for (float w : weights) total += w;
  const double share = top_p * total;
  // All tokens below this weight together have less than 1 - top_p: only the others need to be sorted.
  const double least = (1.0 - top_p) * share / top_p / double(weights.size());
  std::vector<int32_t> ids;
  for (size_t i = 0; i < weights.size(); i++)
    if (weights[i] >= least) ids.push_back(int32_t(i));
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return weights[a] != weights[b] ? weights[a] > weights[b] : a < b;
  });
  std::vector<float> kept(weights.size(), 0.0f);
  double likelier = 0.0;
  for (int32_t id : ids) {
    if (likelier >= share) break;
    kept[id] = weights[id];
    likelier += weights[id];
  }
  weights.swap(kept);
}

}  // namespace

int32_t draw(const Kernels& kernels, const Draw& rules, const float* scores, int n) {
  const float largest = kernels.most(scores, n);
  if (!(largest > -__builtin_inff()) || !(largest < __builtin_inff())) return -1;
  std::vector<float> weights(n);
  kernels.weigh(scores, n, largest, 1.0f / rules.temperature, weights.data());
  if (rules.top_k > 0 && rules.top_k < n) {
    std::vector<float> ordered(scores, scores + n);
    std::nth_element(ordered.begin(), ordered.begin() + rules.top_k - 1, ordered.end(), std::greater<float>());
    const float least = ordered[rules.top_k - 1];
    for (int i = 0; i < n; i++)
      if (scores[i] < least) weights[i] = 0.0f;
  }
  if (rules.top_p < 1.0) keep_nucleus(weights, rules.top_p);
  double total = 0.0;
  for (float& w : weights) {
    if (w < rules.min_p) w = 0.0f;
    total += w;
  }
  const double target = rules.u * total;
  double sum = 0.0;
  int32_t last = -1;
  for (int i = 0; i < n; i++) {
    if (weights[i] == 0.0f) continue;
    sum += weights[i];
    last = i;
    if (sum > target) break;
  }
  return last;
}

}  // namespace bimo

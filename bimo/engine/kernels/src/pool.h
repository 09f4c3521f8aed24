// Threads that are kept, and the barrier at which they meet within a step.
//
// Waiting threads spin for a moment, then yield their core: a barrier that only spins falls to a fraction of its speed
// when another program wants the cores. Between steps they soon sleep.
#pragma once
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace bimo {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return int(workers_.size()) + 1; }
  // Calls work(context, thread) in every thread, the caller's being number 0; returns when all have ended.
  void run(void (*work)(void*, int), void* context);
  // All threads meet; the counter of `take` starts again from 0.
  void barrier();
  // The next piece of 0 … count-1 in steps; false when all are taken. Who computes a piece does not matter to its result.
  bool take(int count, int step, int& begin, int& end) {
    begin = next_.fetch_add(step, std::memory_order_relaxed);
    if (begin >= count) return false;
    end = begin + step < count ? begin + step : count;
    return true;
  }

 private:
  void serve(int thread);
  void end();
  void meet();

  std::vector<std::thread> workers_;
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
  alignas(64) std::atomic<unsigned> job_{0};
  void (*work_)(void*, int) = nullptr;
  void* context_ = nullptr;
  bool ending_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace bimo

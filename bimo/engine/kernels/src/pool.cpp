#include "pool.h"

#include <sched.h>

namespace bimo {

namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int SPINS = 200;     // some 5 to 10 µs
constexpr int YIELDS = 2000;   // some 1 ms until a thread without work sleeps

}  // namespace

Pool::Pool(int threads) {
  try {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { serve(i); });
  } catch (...) {  // the system gives no more threads: those that run would end the program
    end();
    throw;
  }
}

Pool::~Pool() { end(); }

void Pool::end() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    ending_ = true;
    job_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Pool::run(void (*work)(void*, int), void* context) {
  next_.store(0, std::memory_order_relaxed);
  work_ = work;
  context_ = context;
  if (!workers_.empty()) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }
  work(context, 0);
  meet();
}

void Pool::serve(int thread) {
  unsigned seen = 0;
  for (;;) {
    for (int i = 0; i < SPINS + YIELDS && job_.load(std::memory_order_acquire) == seen; i++)
      if (i < SPINS)
        pause_briefly();
      else
        sched_yield();
    if (job_.load(std::memory_order_acquire) == seen) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return job_.load(std::memory_order_acquire) != seen; });
    }
    seen++;
    if (ending_) return;
    work_(context_, thread);
    meet();
  }
}

void Pool::barrier() { meet(); }

void Pool::meet() {
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int i = 0; phase_.load(std::memory_order_acquire) == phase; i++)
    if (i < SPINS)
      pause_briefly();
    else
      sched_yield();
}

}  // namespace bimo

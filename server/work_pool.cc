#include "server/work_pool.h"

#include <pthread.h>

#include <utility>

namespace denoised {

WorkPool::WorkPool(int threads, size_t max_tasks, size_t max_bytes)
    : max_tasks_(max_tasks), max_bytes_(max_bytes) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

WorkPool::~WorkPool() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool WorkPool::Post(size_t bytes, std::function<void()> task) {
  return Post(bytes, [task = std::move(task)](const Room&) { task(); });
}

bool WorkPool::Post(size_t bytes, std::function<void(Room)> task) {
  const auto taken =
      std::make_shared<size_t>(0);  // nothing yet: whatever fails below gives nothing
  Room room(nullptr, [this, taken](void*) {
    if (*taken == 0) return;
    std::lock_guard lock(mutex_);
    bytes_ -= *taken;
  });
  {
    std::lock_guard lock(mutex_);
    // A message that alone is over the budget still gets its turn when there is nothing else.
    if (tasks_.size() >= max_tasks_ || (bytes_ > 0 && bytes_ + bytes > max_bytes_)) return false;
    tasks_.push_back({std::move(room), std::move(task)});
    *taken = bytes;
    bytes_ += bytes;
  }
  changed_.notify_one();
  return true;
}

void WorkPool::Run() {
  pthread_setname_np(pthread_self(), "work");
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task.run(std::move(task.room));
    task.run = nullptr;  // what it holds goes before the lock is taken again
    lock.lock();
  }
}

}  // namespace denoised

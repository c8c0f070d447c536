// Circuit breakers of one model's backends: one that throws again and again is not chosen for a
// while. Torch-free.
#ifndef DENOISED_RUNTIME_ATTENTION_BREAKERS_H_
#define DENOISED_RUNTIME_ATTENTION_BREAKERS_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backends/attention_spec.h"
#include "runtime/attention_guard.h"

namespace denoised {

// Calls that are alike to a kernel: role, dtype, head size, lengths up to the next power of two,
// mask. "self bfloat16 head 128 queries 4096 keys 512".
std::string ShapeClass(const AttentionSpec& spec);

// One for each backend and class: closed; after kFailures units in a row that it threw in, open;
// kOpenFor later half open, which one asker may probe. A probe that goes well closes it, one that
// throws opens it again. Any thread; only the engine's runs anything, so only it claims a probe.
class Breakers {
 public:
  using Clock = std::function<std::chrono::steady_clock::time_point()>;
  using Asker = const void*;  // whoever would run the call; null: nobody, it is only asked
  static constexpr int64_t kFailures = 3;
  static constexpr std::chrono::seconds kOpenFor{60};

  explicit Breakers(Clock clock = std::chrono::steady_clock::now) : clock_(std::move(clock)) {}

  // Why the backend may not be chosen for the spec now; nothing where it may. Who only asks is told
  // for how long: what runs keeps the sentence on its receipt.
  std::optional<std::string> WhyNot(AttnBackend backend, const AttentionSpec& spec,
                                    Asker asker = nullptr) const;
  // It was chosen, and will run: where the breaker is half open, that is the probe.
  void Claim(AttnBackend backend, const AttentionSpec& spec, Asker asker);
  // Gives back the asker's probes, all or that of one class, which came to nothing.
  void Leave(Asker asker);
  void Leave(Asker asker, const AttentionSpec& spec);

  // A unit of the asker's has ended: the backend did all its calls, or threw in one.
  void Succeeded(AttnBackend backend, const AttentionSpec& spec, Asker asker);
  void Failed(AttnBackend backend, const AttentionSpec& spec, const std::string& error);

  // One that opened, again or for the first time, or closed.
  struct Change {
    AttnBackend backend;
    std::string shape;
    BreakerState from, to;
    int64_t failures;  // in a row, before it
    std::string last_error;
  };
  // Those since this was asked last.
  std::vector<Change> TakeChanges();

  // Those that are not closed. The model's name is the caller's to fill in.
  std::vector<BreakerInfo> List() const;

  // Grows whenever an answer of WhyNot may have changed; that an open one's time is over counts
  // from the moment it is. Cheap where all are closed.
  uint64_t version() const;

 private:
  struct Breaker {
    AttnBackend backend;
    std::string shape;
    int64_t failures = 0;
    std::string last_error = {};
    std::optional<std::chrono::steady_clock::time_point> open_until = std::nullopt;  // tripped
    Asker probe = nullptr;
  };

  void Leave(Asker asker, const std::optional<std::string>& shape);

  // All under mutex_.
  Breaker* Find(AttnBackend backend, const AttentionSpec& spec) const;
  BreakerState StateOf(const Breaker& breaker) const;
  std::chrono::milliseconds Remaining(const Breaker& breaker) const;
  void Note(const Breaker& breaker, BreakerState from, BreakerState to);
  void Changed() const;

  const Clock clock_;
  std::atomic<bool> any_ = false;  // whether breakers_ has any
  mutable std::atomic<uint64_t> version_ = 0;
  // When the first of them will be half open.
  mutable std::atomic<int64_t> next_due_ns_ = INT64_MAX;
  mutable std::mutex mutex_;  // guards all below
  mutable std::vector<Breaker> breakers_;
  std::vector<Change> changes_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ATTENTION_BREAKERS_H_

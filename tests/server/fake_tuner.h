// A Tuner without an engine.
#ifndef DENOISED_TESTS_SERVER_FAKE_TUNER_H_
#define DENOISED_TESTS_SERVER_FAKE_TUNER_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "runtime/engine.h"

namespace denoised {

// Tells of three measurements and ends, unless it is held; keeps what it is given.
class FakeTuner : public Tuner {
 public:
  void Tune(TuneQuery query, std::shared_ptr<CancelToken> cancel,
            std::function<void(const TuneProgress&)> progress,
            std::function<void(std::optional<Error>)> done) override {
    std::unique_lock lock(mutex_);
    query_ = query;
    if (query.model == "missing") {
      return done(Error(StatusCode::kNotFound, "model: none", "model", "MODEL_NOT_FOUND"));
    }
    for (int64_t i = 1; i <= 3; ++i) {
      TuneProgress said{"a kind", AttnBackend::kFlashAttn, 0.5, 0.25, "", i, 3};
      if (i == 3) said = {"a kind", AttnBackend::kSageAttn, {}, {}, "cannot", i, 3};
      progress(said);
    }
    if (!hold) return done(std::nullopt);
    cancel_ = std::move(cancel);
    done_ = std::move(done);
    changed_.notify_all();
  }
  std::string Export() const override {
    const std::lock_guard lock(mutex_);
    return json_;
  }
  ImportedMeasurements Import(const std::string& json, const std::string& who) override {
    if (json.empty()) throw InvalidField("json", "not JSON");
    const std::lock_guard lock(mutex_);
    json_ = json;
    query_.who = who;
    return {3, 1, "one is ignored"};
  }

  // ---- for tests

  std::atomic<bool> hold{false};
  TuneQuery query() const {
    const std::lock_guard lock(mutex_);
    return query_;
  }
  bool WaitForCancel() {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < end) {
      {
        const std::lock_guard lock(mutex_);
        if (cancel_ && cancel_->cancelled) return true;
      }
      std::this_thread::yield();
    }
    return false;
  }
  void End(std::optional<Error> error) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [this] { return done_ != nullptr; });
    std::exchange(done_, nullptr)(std::move(error));
  }

 private:
  mutable std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  TuneQuery query_;
  std::string json_ = "{}";
  std::shared_ptr<CancelToken> cancel_;
  std::function<void(std::optional<Error>)> done_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_SERVER_FAKE_TUNER_H_

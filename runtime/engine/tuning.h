// Measurements of backends: a call at a time on the engine's thread, between the units of jobs.
#ifndef DENOISED_RUNTIME_ENGINE_TUNING_H_
#define DENOISED_RUNTIME_ENGINE_TUNING_H_

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/audit.h"
#include "runtime/control_store.h"
#include "runtime/engine.h"
#include "runtime/engine/models.h"
#include "runtime/pipelines/measure.h"

namespace denoised {

// Any thread, but for what says otherwise. What it borrows outlives it.
class Tuning : public Tuner {
 public:
  struct Options {
    std::optional<double> auto_error;
    bool when_idle = false;  // measures what jobs were given the registry's order for
  };
  // What it needs of the engine.
  struct With {
    ControlStore* store;  // the table outlives the process where it does
    Audit* audit;
    Logger* logger;
    std::function<void()> wake;              // there is something to do for the engine's thread
    std::function<int64_t()> bytes_at_hand;  // for tensors; engine thread
  };
  // Opens the measurements of `models`.
  Tuning(const Models& models, const Options& options, With with);
  ~Tuning() override;

  void Tune(TuneQuery query, std::shared_ptr<CancelToken> cancel,
            std::function<void(const TuneProgress&)> progress,
            std::function<void(std::optional<Error>)> done) override;
  std::string Export() const override;
  ImportedMeasurements Import(const std::string& json, const std::string& who) override;

  // Whether a measured call may be made now; `idle`: there is no other work. What nobody asked for
  // waits until it has been quiet for a second. Engine thread.
  bool Due(bool idle) const;
  // Whether something that nobody asked for waits for that. Engine thread.
  bool HasOwn() const;
  // Makes a call, where one is due: other work waits for no more than that. True where a kind of
  // call is done. Throws DEVICE_LOST and nothing else. Engine thread.
  bool RunDue(bool idle);
  // Other work is served: it has the memory. Engine thread.
  void MakeWay();
  // Ends all of it, at the next stop point of a call that is being made. Idempotent.
  void Stop();

 private:
  struct Run;  // what one Tune, or the engine by itself, wants measured
  using RunPtr = std::shared_ptr<Run>;

  std::vector<MeasureShape> WantedBy(const TuneQuery& query) const;
  RunPtr Current();
  RunPtr NewOwn();
  std::vector<RunPtr> Runs() const;
  void Advance(const RunPtr& run);
  std::optional<Error> WhyStop(const Run& run) const;
  void Step(Run* run);
  std::optional<Measured> MeasureOn(Run* run, AttnBackend backend);
  void BeginGroup(Run* run);
  void EndGroup(Run* run);
  void Keep(const Run& run, MeasuredGroup group, const std::string& why);
  void End(const RunPtr& run, const std::optional<Error>& error);
  void KeepTable();
  std::string FirstFor(const MeasuredKey& key) const;
  Measurements& measurements() const { return *measurements_; }

  const Models& models_;
  // The same for every model of the process.
  const BackendRegistry& registry_;
  const DeviceInfo device_;
  const std::shared_ptr<Measurements> measurements_;
  const Options options_;
  const With with_;

  mutable std::mutex mutex_;  // guards runs_
  // The first is under way; the engine's own comes last.
  std::deque<RunPtr> runs_;
  std::mutex keep_mutex_;  // held while the table is kept: never an older one after a newer one
  std::atomic<bool> stopped_{false};  // set under mutex_
  // Engine thread. After a call other work has the device for four times as long.
  std::chrono::steady_clock::time_point rests_until_, quiet_since_;
};

}  // namespace denoised

#endif  // DENOISED_RUNTIME_ENGINE_TUNING_H_

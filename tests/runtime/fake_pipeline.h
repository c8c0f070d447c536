// A model without weights or tensors: its units pass one by one, as a test lets them.
#ifndef DENOISED_TESTS_RUNTIME_FAKE_PIPELINE_H_
#define DENOISED_TESTS_RUNTIME_FAKE_PIPELINE_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/pipelines/pipeline.h"
#include "tests/backends/fake_backends.h"

namespace denoised {

class StoreHooks;

// How long a test waits for what must happen before it calls it lost.
inline constexpr std::chrono::seconds kPatience(60);

// Holds the engine thread at a point until the test lets it go on.
class Gate {
 public:
  explicit Gate(bool open) : allowed_(open ? INT64_MAX : 0) {}

  // Engine thread: one pass.
  void Pass();
  // Test thread.
  void Allow(int64_t passes);
  void Open();
  void Close() { SetAllowed(0); }  // what arrives from now on waits
  // True once somebody has arrived for the n-th time (counted from 1, ever).
  bool AwaitArrival(int64_t n);
  int64_t arrivals() const;

 private:
  void SetAllowed(int64_t passes);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  int64_t allowed_, arrivals_ = 0;
};

// Keeps the requests that its builders got, and refuses the parameters "bad".
class BuildingBackend : public FakeBackend {
 public:
  explicit BuildingBackend(AttnBackend id) : FakeBackend(id) {}
  std::unique_ptr<AttentionMetadataBuilder> MakeBuilder() const override;
  std::vector<MetadataRequest> built() const;

 private:
  // Shared with the builders; a caller's thread builds too, when a request is checked.
  struct Record {
    std::mutex mutex;
    std::vector<MetadataRequest> requests;
  };
  class Builder;
  const std::shared_ptr<Record> record_ = std::make_shared<Record>();
};

// Backends that exist only here. In automatic order: CUDNN_ATTN (not in this build), FLASH_ATTN
// (head sizes up to 64), TORCH_SDPA (until told to refuse), REFERENCE; only by name and with
// metadata: SAGE_ATTN, SLIDING_TILE_ATTN.
struct InventedBackends {
  InventedBackends();

  FakeBackend flash, sdpa, reference;
  BuildingBackend sage, sliding;
  std::atomic<bool> sdpa_refuses{false};
  BackendRegistry registry;
};

AttentionSpec SelfSpec();   // lists all but CUDNN_ATTN
AttentionSpec CrossSpec();  // lists TORCH_SDPA and REFERENCE

// What happens in a fake model; the test keeps it and looks at it. A run is one prompt, the steps
// of its parameters, one chunk of frames; jobs of one size are of one group, calls of one dtype.
struct FakeModel {
  std::string name = "fake";
  std::string weights;  // in its digests: models of one name may differ
  int64_t weight_bytes = 0;
  double flow_shift = 3;  // its default
  Gate steps{true};       // each forward with a job in it passes here after its plans are made
  Gate denoise{true};     // and each of Denoise calls alone here
  Gate finish{true};      // and each chunk of frames
  // Engine thread, after the gate; may throw. What on_step throws concerns its run alone, or is a
  // stop point's.
  std::function<void(const RunRequest&)> on_begin;
  std::function<void(const RunRequest&, int64_t step)> on_step;
  std::function<void(const RunRequest&)> on_finish;
  std::function<void()> on_denoise;
  // Of each attention slot of a forward, after its gate; what it throws, its backend throws.
  std::function<void(AttnBackend)> on_attention;
  // What a step gave, of each run; what it throws concerns that alone.
  std::function<void(const AttentionPlan&, const AttentionPlanner&)> on_result;
  // Of each unit, before its gate; `rows` of a forward are all of its runs'.
  std::function<void(const Unit&, int64_t rows)> on_unit;
  std::vector<AttentionSpec> specs = {SelfSpec(), CrossSpec()};
  int64_t num_layers = 2;  // when the engine is made, as
  DeviceInfo::Type device = DeviceInfo::Type::kCpu;
  InventedBackends backends;
  WorkEstimate estimate;  // of every job and call, but for the units
  std::atomic<int64_t> made_bytes = 0;
  LatentColours colours;                 // of latents with one channel; none: no previews
  std::function<void()> on_colours;      // engine thread, when they are asked for; may throw
  std::function<void()> on_new_run;      // may throw
  std::function<void()> on_free;         // any thread, as its last pipeline goes
  std::function<void()> on_read;         // each time that latents are read; may throw
  std::function<std::string()> on_save;  // what a run keeps beside its step and prompt
  StoreHooks* store_hooks = nullptr;     // of the engine's durable store, when that is opened
  std::function<void()> on_kept_bytes;   // of its recording store, likewise
  // What its units are timed on, when the engine is made.
  std::function<std::chrono::steady_clock::time_point()> unit_clock =
      std::chrono::steady_clock::now;

  std::atomic<int64_t> steps_run{0}, denoise_calls{0}, live_runs{0}, live_pipelines{0};
  std::vector<std::string> began() const;  // prompts of the jobs that began, in order
  void NoteBegin(const std::string& prompt);
  // The prompts of each forward's jobs ("" of a Denoise call), in order.
  std::vector<std::vector<std::string>> forwards() const;
  void NoteForward(std::vector<std::string> prompts);

 private:
  mutable std::mutex mutex_;
  std::vector<std::string> began_;
  std::vector<std::vector<std::string>> forwards_;
};

class FakePipeline : public Pipeline {
 public:
  ~FakePipeline() override {
    --model_->live_pipelines;
    if (model_->on_free) model_->on_free();
  }
  FakePipeline(FakeModel* model, const SelectionPolicy* policy,
               Breakers::Clock clock = std::chrono::steady_clock::now);

  const ModelInfo& info() const override { return info_; }
  const GeometryRules& rules() const override { return rules_; }
  const PlannerSetting& planner_setting() const override { return setting_; }
  std::vector<AttentionSpec> DenoiseSpecs(const ResolvedParameters&) const override {
    return model_->specs;
  }
  void CheckRun(const GenerationRequest& request, const ResolvedParameters&) const override;
  void CheckDenoise(const DenoiseRequest& request) const override;
  void CheckSession(const SessionRequest& request,
                    const ResolvedParameters& parameters) const override;
  void CheckLatents(const HostTensor& latents, const ResolvedParameters&) const override;
  std::vector<int64_t> LatentShape(const ResolvedParameters&) const override {
    return {1, 1, 1, 1, 1};
  }
  WorkEstimate EstimateRun(const GenerationRequest& request, const ResolvedParameters& parameters,
                           int64_t, const CostOfAttention&) const override;
  WorkEstimate EstimateDenoise(const DenoiseRequest& request,
                               const CostOfAttention&) const override;
  int64_t MadeBytes() const override { return model_->made_bytes; }
  const LatentColours& Colours() override {
    if (model_->on_colours) model_->on_colours();
    return model_->colours;
  }
  std::unique_ptr<GenerationRun> NewRun(RunRequest request) override;
  std::unique_ptr<DenoiseRun> NewDenoiseRun(const DenoiseRequest& request, const Unit& step,
                                            AttentionPlanner* planner, Observer*) override;
  std::vector<std::optional<Error>> Step(const std::vector<Run*>& runs) override;

 private:
  FakeModel* const model_;
  ModelInfo info_;
  GeometryRules rules_;
  PlannerSetting setting_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_RUNTIME_FAKE_PIPELINE_H_

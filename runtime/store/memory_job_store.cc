#include <utility>

#include "runtime/caught.h"
#include "runtime/job_store.h"
#include "runtime/store/control_book.h"
#include "runtime/store/feed.h"
#include "runtime/store/memory_artifact.h"
#include "runtime/store/request_row.h"

namespace denoised {
namespace {

constexpr size_t kFinishedInMemory = 256;

class MemoryJobStore : public JobStore {
 public:
  MemoryJobStore(size_t max_finished, size_t max_artifact_bytes)
      : feed_({max_finished == 0 ? kFinishedInMemory : max_finished, max_artifact_bytes}) {}

  bool durable() const override { return false; }
  void Accept(const JobSnapshot& job, const GenerationRequest& request,
              std::function<void(Added)> done) override {
    JobRow row;
    auto place = Feed::Place::kMadeBefore;
    const auto refused = Caught([&] {
      row = NewRow(job, request);
      place = feed_.Reserve(&row);
    });
    if (refused) return done(*refused);
    if (place == Feed::Place::kMadeBefore) return done(std::pair(std::move(row.job), false));
    if (place == Feed::Place::kTaken) return feed_.Publish(job.id, Made(done));
    feed_.OnceSettled(row.key, [this, job, request, done] { Accept(job, request, done); });
  }
  std::optional<JobSnapshot> MadeBefore(const GenerationRequest& request) const override {
    if (request.idempotency_key.empty()) return std::nullopt;
    return feed_.MadeBefore(request.idempotency_key, RequestDigest(request));
  }
  std::vector<AcceptedJob> Recover() override { return {}; }
  std::vector<Started> StartAll(const std::vector<std::string>& ids) override {
    return feed_.StartAll(ids, {});
  }
  void NoteStop() override {}
  void NoteBlame(const std::optional<std::vector<std::string>>&) override {}
  void Interrupt(const std::string& id) override { feed_.Interrupt(id, {}); }
  void Checkpoint(const std::string&, int64_t, std::string) override {}
  std::optional<std::pair<int64_t, std::string>> ReadCheckpoint(const std::string&) override {
    return std::nullopt;
  }

  std::optional<JobSnapshot> Get(const std::string& id) const override { return feed_.Get(id); }
  JobPage List(std::optional<JobState> state, size_t page_size,
               const std::string& page_token) const override {
    return feed_.List(state, page_size, page_token);
  }
  std::optional<JobSnapshot> Update(const std::string& id,
                                    const std::function<void(JobSnapshot&)>& change) override {
    auto after = feed_.Update(id, change, {});
    feed_.TakeForgotten();
    return after;
  }

  void PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) override {
    info = Completed(std::move(info), bytes);
    auto artifact = std::make_shared<MemoryArtifact>(info, std::move(bytes));
    feed_.AddResult(id, info, std::move(artifact));
  }
  std::shared_ptr<const Artifact> GetArtifact(const std::string& id,
                                              ArtifactFormat format) const override {
    const auto result = feed_.FindResult(id, format);
    return result ? WhileRead(result->artifact, result->reading) : nullptr;
  }
  void Delete(const std::string& id) override {
    feed_.RequireEnded(id);
    feed_.Forget(id);
  }

  void MarkFetched(const std::string& id) override { feed_.MarkFetched(id); }
  int64_t CountUnfetched(std::chrono::steady_clock::duration age) const override {
    return feed_.CountUnfetched(age);
  }
  size_t kept_bytes() const override { return feed_.result_bytes(); }
  size_t forgettable_bytes() const override { return feed_.forgettable_bytes(); }
  void MakeRoom(size_t bytes) override {
    feed_.MakeRoom(bytes);
    feed_.TakeForgotten();
  }

  std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake) override {
    return feed_.Watch(id, std::move(wake));
  }
  std::vector<std::string> WatchedWaiting(const std::string& after, size_t most) const override {
    return feed_.WatchedWaiting(after, most);
  }
  uint64_t Touch(const std::string& id) override { return feed_.Touch(id); }
  std::optional<JobSnapshot> After(const std::string& id, uint64_t sequence) const override {
    return feed_.After(id, sequence);
  }
  ControlStore& control() override { return control_; }
  std::optional<std::string> WhyNotReady() const override { return std::nullopt; }

 private:
  Feed feed_;
  ControlBook control_{nullptr, nullptr};
};

}  // namespace

std::unique_ptr<JobStore> MakeMemoryJobStore(size_t max_finished, size_t max_artifact_bytes) {
  return std::make_unique<MemoryJobStore>(max_finished, max_artifact_bytes);
}

}  // namespace denoised

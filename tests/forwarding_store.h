// A job store that hands every verb on to another one: tests override what they watch or play.
#ifndef DENOISED_TESTS_FORWARDING_STORE_H_
#define DENOISED_TESTS_FORWARDING_STORE_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/job_store.h"

namespace denoised {

// All states of a job after `sequence` that the store still knows, oldest first.
inline std::vector<JobSnapshot> Replay(const JobStore& store, const std::string& id,
                                       uint64_t sequence) {
  std::vector<JobSnapshot> states;
  while (auto state = store.After(id, sequence)) {
    sequence = state->sequence;
    states.push_back(*std::move(state));
  }
  return states;
}

class ForwardingStore : public JobStore {
 public:
  explicit ForwardingStore(std::unique_ptr<JobStore> inner) : inner_(std::move(inner)) {}

  bool durable() const override { return inner_->durable(); }
  void Accept(const JobSnapshot& job, const GenerationRequest& request,
              std::function<void(Added)> done) override {
    inner_->Accept(job, request, std::move(done));
  }
  std::optional<JobSnapshot> MadeBefore(const GenerationRequest& request) const override {
    return inner_->MadeBefore(request);
  }
  std::vector<AcceptedJob> Recover() override { return inner_->Recover(); }
  std::vector<Started> StartAll(const std::vector<std::string>& ids) override {
    return inner_->StartAll(ids);
  }
  void Interrupt(const std::string& id) override { inner_->Interrupt(id); }
  void NoteStop() override { inner_->NoteStop(); }
  void NoteBlame(const std::optional<std::vector<std::string>>& ids) override {
    inner_->NoteBlame(ids);
  }
  void Checkpoint(const std::string& id, int64_t step, std::string bytes) override {
    inner_->Checkpoint(id, step, std::move(bytes));
  }
  std::optional<std::pair<int64_t, std::string>> ReadCheckpoint(const std::string& id) override {
    return inner_->ReadCheckpoint(id);
  }
  std::optional<JobSnapshot> Get(const std::string& id) const override { return inner_->Get(id); }
  JobPage List(std::optional<JobState> state, size_t page_size,
               const std::string& page_token) const override {
    return inner_->List(state, page_size, page_token);
  }
  std::optional<JobSnapshot> Update(const std::string& id,
                                    const std::function<void(JobSnapshot&)>& change) override {
    return inner_->Update(id, change);
  }
  void PutArtifact(const std::string& id, ArtifactInfo info, std::string bytes) override {
    inner_->PutArtifact(id, std::move(info), std::move(bytes));
  }
  void Delete(const std::string& id) override { inner_->Delete(id); }
  std::shared_ptr<const Artifact> GetArtifact(const std::string& id,
                                              ArtifactFormat format) const override {
    return inner_->GetArtifact(id, format);
  }
  void MarkFetched(const std::string& id) override { inner_->MarkFetched(id); }
  int64_t CountUnfetched(std::chrono::steady_clock::duration age) const override {
    return inner_->CountUnfetched(age);
  }
  size_t kept_bytes() const override { return inner_->kept_bytes(); }
  size_t forgettable_bytes() const override { return inner_->forgettable_bytes(); }
  void MakeRoom(size_t bytes) override { inner_->MakeRoom(bytes); }
  std::shared_ptr<void> Watch(const std::string& id, std::function<void()> wake) override {
    return inner_->Watch(id, std::move(wake));
  }
  std::vector<std::string> WatchedWaiting(const std::string& after, size_t most) const override {
    return inner_->WatchedWaiting(after, most);
  }
  uint64_t Touch(const std::string& id) override { return inner_->Touch(id); }
  std::optional<JobSnapshot> After(const std::string& id, uint64_t sequence) const override {
    return inner_->After(id, sequence);
  }
  ControlStore& control() override { return inner_->control(); }
  std::optional<std::string> WhyNotReady() const override { return inner_->WhyNotReady(); }

 protected:
  JobStore& inner() { return *inner_; }

 private:
  const std::unique_ptr<JobStore> inner_;
};

}  // namespace denoised

#endif  // DENOISED_TESTS_FORWARDING_STORE_H_

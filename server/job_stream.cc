#include "server/job_stream.h"

#include <algorithm>
#include <utility>

namespace denoised {
namespace {

grpc::Status Cancelled() {
  return grpc::Status(grpc::StatusCode::CANCELLED, "the client left or its deadline passed");
}

}  // namespace

// ---- PulledStream

void PulledStream::Open(const std::function<void()>& prepare) {
  const grpc::Status status = StatusOf(prepare);
  if (!status.ok()) return End(status);
  {
    std::lock_guard lock(mutex_);
    busy_ = false;
  }
  Pump();
}

void PulledStream::Pump() {
  {
    std::lock_guard lock(mutex_);
    wanted_ = true;
    if (busy_ || ended_ || dropping_) return;
    busy_ = true;
  }
  // `busy_` keeps others out from here on; gRPC may call back at once, so no lock is held below.
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (!wanted_ && !cancelled_) {
        busy_ = false;
        return;
      }
      wanted_ = false;
      if (cancelled_ || leave_) break;
    }
    Action action;
    const grpc::Status status = StatusOf([&] { action = Next(); });
    if (!status.ok()) return End(status);
    if (action.message) {
      message_ = std::move(*action.message);
      {
        std::lock_guard lock(mutex_);
        writing_ = true;
      }
      return StartWrite(&message_);
    }
    if (action.end) return End(*action.end);
  }
  End(WhyLeave());
}

std::function<void()> PulledStream::Waker(TaskThread* dispatcher) {
  return [weak = weak_from_this(), dispatcher] {
    dispatcher->Post([weak] {
      if (const auto stream = weak.lock()) stream->Pump();
    });
  };
}

grpc::Status PulledStream::WhyLeave() {
  const std::lock_guard lock(mutex_);
  return cancelled_ ? Cancelled() : *leave_;
}

bool PulledStream::Leave(const grpc::Status& status) {
  bool first = false, drops = false;
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return false;
    first = !leave_;
    drops = dropping_ = !first && writing_;
    leave_ = status;
  }
  if (drops) Drop();
  Pump();
  return first;
}

// The call lives as long as it has not ended, and it does not while `dropping_`.
void PulledStream::Drop() {
  timer_.Cancel();
  const std::lock_guard lock(mutex_);
  dropping_ = false;
}

void PulledStream::End(const grpc::Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
  }
  timer_.Done(status);
  Finish(status);
}

void PulledStream::OnWriteDone(bool ok) {
  {
    std::lock_guard lock(mutex_);
    message_.Clear();
    busy_ = writing_ = false;
    if (!ok) cancelled_ = true;
  }
  Pump();
}

void PulledStream::OnCancel() {
  OnClientGone();
  {
    std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  Pump();
}

void PulledStream::OnDone() { self_.reset(); }

// ---- ChunkSource

void ChunkSource::Add(std::shared_ptr<const Artifact> artifact, uint64_t offset) {
  items_.push_back(Item{std::move(artifact), offset});
}

std::optional<v1::ArtifactChunk> ChunkSource::Next() {
  if (items_.empty()) return std::nullopt;
  Item& item = items_.front();
  const Artifact& artifact = *item.artifact;
  v1::ArtifactChunk chunk;
  if (!item.begun) *chunk.mutable_info() = ToProto(artifact.info());
  item.begun = true;
  chunk.set_offset(item.offset);
  std::string* const data = chunk.mutable_data();
  data->resize(std::min<uint64_t>(kChunkBytes, artifact.size() - item.offset));
  data->resize(artifact.ReadAt(item.offset, data->data(), data->size()));
  item.offset += data->size();
  if (item.offset >= artifact.size()) items_.pop_front();
  return chunk;
}

// ---- WatchStream

namespace {

JobError LeftForTheNextStart() {
  return {StatusCode::kUnavailable,
          "the server is draining; the job is kept, and goes on when it starts again", "",
          "DRAINING", std::chrono::seconds(10)};
}

}  // namespace

void WatchStream::Follow(const std::string& job_id, uint64_t after_sequence) {
  job_id_ = job_id;
  last_sequence_ = after_sequence;
  // Who comes back is told what it missed; who comes first needs only what is.
  if (after_sequence > 0) {
    if (const auto now = engine_->jobs().Get(job_id)) missed_until_ = now->sequence;
  }
  watch_ = watches_->Follow(engine_->jobs(), job_id_, weak_from_this());
}

PulledStream::Action WatchStream::Next() {
  if (final_) return AfterEnd(*final_);
  const auto job = last_sequence_ < missed_until_ ? engine_->JobAfter(job_id_, last_sequence_)
                                                  : engine_->Job(job_id_);
  if (!job) {
    throw Error(StatusCode::kNotFound, "job '" + job_id_ + "' was forgotten", "job_id",
                "JOB_NOT_FOUND");
  }
  if (IsTerminal(job->state)) {
    final_ = job;  // the store may forget it from now on
    Collect(*job);
  }
  if (job->sequence > last_sequence_) return Tell(*job);
  if (final_) return AfterEnd(*final_);
  const bool left = engine_->leaves_waiting() && job->state != JobState::kRunning;
  return left ? Action{.message = std::nullopt, .end = ToStatus(LeftForTheNextStart())} : Action{};
}

// A preview goes out once.
PulledStream::Action WatchStream::Tell(const JobSnapshot& job) {
  last_sequence_ = job.sequence;
  v1::Job message = ToProto(job);
  if (job.preview && job.preview != told_preview_.lock()) {
    *message.mutable_preview() = ToProto(*job.preview);
    told_preview_ = job.preview;
  }
  return {.message = Wrap(std::move(message)), .end = std::nullopt};
}

grpc::ByteBuffer WatchStream::Wrap(v1::Job job) const { return SerializeMessage(job); }

PulledStream::Action WatchStream::AfterEnd(const JobSnapshot&) {
  return {.message = std::nullopt, .end = grpc::Status::OK};
}

// ---- GenerateStream

Error ResultsAreGone(const std::string& job_id) {
  return Error(StatusCode::kNotFound,
               "the results of job '" + job_id +
                   "' are no longer kept: newer ones needed the room (--max_artifact_mib)",
               "job_id", "ARTIFACT_NOT_FOUND");
}

void GenerateStream::Own(const std::string& job_id) {
  Follow(job_id, /*after_sequence=*/0);
  std::lock_guard lock(owner_mutex_);
  owned_ = job_id;
  if (client_gone_) engine_->Cancel(job_id);
}

void GenerateStream::OnClientGone() {
  std::lock_guard lock(owner_mutex_);
  client_gone_ = true;
  if (!owned_.empty()) engine_->Cancel(owned_);
}

grpc::ByteBuffer GenerateStream::Wrap(v1::Job job) const {
  v1::GenerateEvent event;
  *event.mutable_job() = std::move(job);
  return SerializeMessage(event);
}

void GenerateStream::Collect(const JobSnapshot& job) {
  for (const ArtifactInfo& info : job.artifacts) {
    if (auto artifact = engine_->jobs().GetArtifact(job_id_, info.format)) {
      chunks_.Add(std::move(artifact), 0);
    }
  }
}

PulledStream::Action GenerateStream::AfterEnd(const JobSnapshot& job) {
  if (job.state == JobState::kCancelled) {
    return {.message = std::nullopt,
            .end = ToStatus(job.error.value_or(
                JobError{StatusCode::kCancelled, "the job was cancelled", "", "JOB_CANCELLED"}))};
  }
  if (job.error) return {.message = std::nullopt, .end = ToStatus(*job.error)};
  if (job.artifacts.empty()) throw ResultsAreGone(job.id);
  auto chunk = chunks_.Next();
  if (!chunk) {
    engine_->jobs().MarkFetched(job.id);
    return {.message = std::nullopt, .end = grpc::Status::OK};
  }
  v1::GenerateEvent event;
  *event.mutable_chunk() = std::move(*chunk);
  return {.message = SerializeMessage(event), .end = std::nullopt};
}

// ---- FetchStream

void FetchStream::Send(const std::string& job_id, std::shared_ptr<const Artifact> artifact,
                       uint64_t offset) {
  job_id_ = job_id;
  chunks_.Add(std::move(artifact), offset);
}

PulledStream::Action FetchStream::Next() {
  const auto chunk = chunks_.Next();
  if (chunk) return {.message = SerializeMessage(*chunk), .end = std::nullopt};
  engine_->jobs().MarkFetched(job_id_);
  return {.message = std::nullopt, .end = grpc::Status::OK};
}

}  // namespace denoised

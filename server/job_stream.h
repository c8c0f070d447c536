// The streams that follow a job: WatchJob and Generate, and FetchArtifact's chunks.
#ifndef DENOISED_SERVER_JOB_STREAM_H_
#define DENOISED_SERVER_JOB_STREAM_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/engine.h"
#include "runtime/task_thread.h"
#include "server/call.h"
#include "server/convert.h"
#include "server/job_watches.h"
#include "server/open_calls.h"

namespace denoised {

// A server stream whose next message is asked for whenever the last one has left. One write is in
// flight at most; a slow client therefore skips what became stale meanwhile. A stream holds one
// message while that is in flight, and none between.
//
// Owns itself until gRPC is done with it. Next() is called from gRPC and dispatcher threads, never
// two at a time.
class PulledStream : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                     public std::enable_shared_from_this<PulledStream> {
 public:
  // What to do next: write, end, or (both empty) wait for Pump().
  struct Action {
    std::optional<grpc::ByteBuffer> message;
    std::optional<grpc::Status> end;
  };

  explicit PulledStream(CallTimer timer) : timer_(timer) {}

  // Keeps the stream alive until gRPC is done with it. First, and on the thread of the call.
  void Hold() { self_ = shared_from_this(); }
  // Runs `prepare` and takes the first message; what it throws ends the stream. Once, any thread.
  void Open(const std::function<void()>& prepare);
  // Looks for something to do. Any thread.
  void Pump();
  // Has that done on the dispatcher, where the stream is still there. Any thread.
  std::function<void()> Waker(TaskThread* dispatcher);
  // Kept for as long as the stream.
  void Keep(std::shared_ptr<void> ticket) { tickets_.push_back(std::move(ticket)); }
  // Ends the stream with this as soon as no message is on its way. Where that was said before and
  // the client still has not taken its message, without a word. True the first time, where it
  // had not ended. Any thread, one at a time.
  bool Leave(const grpc::Status& status);

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 protected:
  virtual Action Next() = 0;
  // The client left or the deadline passed. May run beside Next().
  virtual void OnClientGone() {}

 private:
  void End(const grpc::Status& status);
  grpc::Status WhyLeave();
  void Drop();

  const CallTimer timer_;
  std::vector<std::shared_ptr<void>> tickets_;
  std::shared_ptr<PulledStream> self_;
  std::mutex mutex_;
  bool busy_ = true;        // guarded by mutex_: Open(), a Next() or a write is under way
  bool writing_ = false;    // guarded by mutex_: it is a write
  bool dropping_ = false;   // guarded by mutex_: the call is being cancelled, and may not end yet
  bool wanted_ = false;     // guarded by mutex_: Pump() came meanwhile
  bool cancelled_ = false;  // guarded by mutex_
  bool ended_ = false;      // guarded by mutex_
  std::optional<grpc::Status> leave_;  // guarded by mutex_: end with this
  grpc::ByteBuffer message_;           // in flight
};

// Chunks of results, one after the other.
class ChunkSource {
 public:
  static constexpr uint64_t kChunkBytes = 1 << 20;

  void Add(std::shared_ptr<const Artifact> artifact, uint64_t offset);
  // Empty at the end.
  std::optional<v1::ArtifactChunk> Next();

 private:
  struct Item {
    std::shared_ptr<const Artifact> artifact;
    uint64_t offset;
    bool begun = false;
  };
  std::deque<Item> items_;
};

// Follows one job. `engine` and `watches` are borrowed and outlive the stream.
class WatchStream : public PulledStream {
 public:
  WatchStream(CallTimer timer, Engine* engine, JobWatches* watches)
      : PulledStream(timer), engine_(engine), watches_(watches) {}
  // Which job, and after which of its states. For Open().
  void Follow(const std::string& job_id, uint64_t after_sequence);

 protected:
  Action Next() override;
  // How a state goes on the wire.
  virtual grpc::ByteBuffer Wrap(v1::Job job) const;
  // The terminal state was read: take what the store may forget. Once.
  virtual void Collect(const JobSnapshot& job) {}
  // What follows the terminal state.
  virtual Action AfterEnd(const JobSnapshot& job);

  Engine* const engine_;
  std::string job_id_;

 private:
  Action Tell(const JobSnapshot& job);

  JobWatches* const watches_;
  std::weak_ptr<const JobPreview> told_preview_;
  uint64_t missed_until_ = 0;  // the last state of before the stream; those up to it are told too
  uint64_t last_sequence_ = 0;
  std::optional<JobSnapshot> final_;
  std::shared_ptr<void> watch_;
};

// Of a job that succeeded and lists no results: they had to make room for others'.
Error ResultsAreGone(const std::string& job_id);

// The same, with the results' bytes; the job ends with the stream.
class GenerateStream : public WatchStream {
 public:
  using WatchStream::WatchStream;
  // Follows a job that was submitted for this stream. For Open().
  void Own(const std::string& job_id);

 protected:
  grpc::ByteBuffer Wrap(v1::Job job) const override;
  void Collect(const JobSnapshot& job) override;
  Action AfterEnd(const JobSnapshot& job) override;
  void OnClientGone() override;

 private:
  ChunkSource chunks_;
  std::mutex owner_mutex_;
  std::string owned_;         // guarded by owner_mutex_; the job, once there is one
  bool client_gone_ = false;  // guarded by owner_mutex_
};

class FetchStream : public PulledStream {
 public:
  FetchStream(CallTimer timer, Engine* engine) : PulledStream(timer), engine_(engine) {}
  // What to send. For Open().
  void Send(const std::string& job_id, std::shared_ptr<const Artifact> artifact, uint64_t offset);

 protected:
  Action Next() override;

 private:
  Engine* const engine_;
  std::string job_id_;
  ChunkSource chunks_;
};

}  // namespace denoised

#endif  // DENOISED_SERVER_JOB_STREAM_H_

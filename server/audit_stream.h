// The stream behind WatchAudit.
#ifndef DENOISED_SERVER_AUDIT_STREAM_H_
#define DENOISED_SERVER_AUDIT_STREAM_H_

#include <cstdint>
#include <deque>
#include <memory>

#include "denoised/v1/admin.pb.h"
#include "runtime/audit.h"
#include "runtime/task_thread.h"
#include "server/call_context.h"
#include "server/job_stream.h"

namespace denoised {

v1::AuditEvent ToProto(const AuditEntry& entry);

// Entries of the audit, then, where it follows, each as it comes. A slow reader costs a page of
// entries and a write in flight, and misses what the store has let go meanwhile: the numbers tell.
class AuditStream : public PulledStream {
 public:
  // Borrowed; both outlive the stream.
  AuditStream(CallTimer timer, Audit* audit, TaskThread* dispatcher)
      : PulledStream(timer), audit_(audit), dispatcher_(dispatcher) {}
  // What to send. For Open().
  void Read(const v1::WatchAuditRequest& request);

 protected:
  Action Next() override;

 private:
  Audit* const audit_;
  TaskThread* const dispatcher_;
  std::deque<AuditEntry> page_;  // read, and still to be sent
  uint64_t after_ = 0;           // the last that was sent
  bool follows_ = false;
  std::shared_ptr<void> watch_;
};

// The call itself.
grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchAudit(const CallContext& with,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in);

}  // namespace denoised

#endif  // DENOISED_SERVER_AUDIT_STREAM_H_

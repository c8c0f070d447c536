#include "server/hold_stream.h"

#include <utility>

#include "server/convert_lease.h"

namespace denoised {

SelectionPolicy::OnEnd HoldStream::Ender() {
  return [weak = weak_from_this()](const Lease&) {
    if (const auto stream = weak.lock()) stream->End(grpc::Status::OK);
  };
}

void HoldStream::Start(const Lease& force) {
  force_ = force;
  message_ = SerializeMessage(ToProto(force));
  StartWrite(&message_);
}

void HoldStream::Fail(const grpc::Status& status) {
  timer_.Done(status);
  Finish(status);
}

// The force went first or goes with it.
void HoldStream::End(const grpc::Status& status) {
  {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    if (writing_) {  // Finish has to wait for the write
      pending_ = status;
      return;
    }
  }
  Leave(status);
}

void HoldStream::OnWriteDone(bool ok) {
  std::optional<grpc::Status> pending;
  {
    std::lock_guard lock(mutex_);
    writing_ = false;
    pending = std::exchange(pending_, std::nullopt);
  }
  if (pending) return Leave(*pending);
  if (!ok) OnCancel();
}

void HoldStream::Leave(const grpc::Status& status) {
  policy_->End(force_.id, LeaseEnd::kHolderLeft, "its holder left", force_.holder);
  timer_.Done(status);
  Finish(status);
}

}  // namespace denoised

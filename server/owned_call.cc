#include "server/owned_call.h"

namespace denoised {

void OwnedCall::End(const grpc::Status& status, grpc::ByteBuffer answer) {
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    ended_ = true;
    *out_ = std::move(answer);
  }
  timer_.Done(status);
  Finish(status);
}

}  // namespace denoised

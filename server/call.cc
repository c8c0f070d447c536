#include "server/call.h"

#include <grpcpp/support/proto_buffer_reader.h>

#include <utility>

#include "server/convert.h"
#include "server/wire_budget.h"

namespace denoised {

void ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ByteBuffer copy = bytes;  // shares the slices; the reader wants to own a handle
  {
    grpc::ProtoBufferReader walked(&copy);
    if (walked.status().ok()) CheckWireBudget(&walked, *message->GetDescriptor());
  }
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok() || !message->ParseFromZeroCopyStream(&reader)) {
    throw Error(StatusCode::kInvalidArgument,
                "the request is not a well-formed " + message->GetTypeName() + " of " +
                    std::to_string(bytes.Length()) + " bytes (is all text UTF-8?)",
                "", "MALFORMED_MESSAGE");
  }
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  grpc::Slice slice(message.ByteSizeLong());
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

grpc::Status StatusOf(const std::function<void()>& body) {
  try {
    body();
    return grpc::Status::OK;
  } catch (const Error& error) {
    return ToStatus(error);
  } catch (const std::exception& error) {
    return ToStatus(Error(StatusCode::kInternal, error.what(), "", "INTERNAL"));
  }
}

Error TooBusy() {
  return Error(StatusCode::kResourceExhausted, "too many requests wait to be checked", "",
               "QUEUE_FULL")
      .RetryAfter(std::chrono::seconds(1));
}

void CallTimer::Done(const grpc::Status& status) const {
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
  if (const auto delay = RetryDelayOf(status)) {
    context_->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(delay->count()));
  }
  metrics_->OnRpc(method_, StatusCodeName(status.error_code()), seconds.count());
}

void PooledCall::Run(WorkPool* pool, size_t bytes, std::function<void(End end)> body) {
  const bool posted = pool->Post(bytes, [this, body = std::move(body)](WorkPool::Room room) {
    room_ = std::move(room);
    // Whoever left meanwhile wants nothing done.
    if (cancelled_) return Finished(grpc::Status(grpc::StatusCode::CANCELLED, "the client left"));
    const grpc::Status begun = StatusOf(
        [&] { body([this](const std::function<void()>& write) { Finished(StatusOf(write)); }); });
    if (!begun.ok()) Finished(begun);
  });
  if (!posted) Finished(ToStatus(TooBusy()));
}

void PooledCall::Finished(const grpc::Status& status) {
  timer_.Done(status);
  room_.reset();
  Finish(status);
}

}  // namespace denoised

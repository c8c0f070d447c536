#include "server/audit_stream.h"

#include <google/protobuf/util/time_util.h>

#include <chrono>
#include <utility>

namespace denoised {
namespace {

using google::protobuf::util::TimeUtil;

constexpr size_t kPage = 64;

google::protobuf::Timestamp ToTimestamp(std::chrono::system_clock::time_point moment) {
  const auto since =
      std::chrono::duration_cast<std::chrono::microseconds>(moment.time_since_epoch());
  return TimeUtil::MicrosecondsToTimestamp(since.count());
}

}  // namespace

v1::AuditEvent ToProto(const AuditEntry& entry) {
  v1::AuditEvent event;
  event.set_number(entry.number);
  *event.mutable_time() = ToTimestamp(entry.time);
  event.set_who(entry.who);
  event.set_what(entry.what);
  event.set_subject(entry.subject);
  event.set_old(entry.old_value);
  event.set_new_(entry.new_value);
  event.set_reason(entry.reason);
  if (entry.ends_at) *event.mutable_ends_at() = ToTimestamp(*entry.ends_at);
  return event;
}

void AuditStream::Read(const v1::WatchAuditRequest& request) {
  after_ = request.after();
  follows_ = request.follow();
  if (!follows_) return;
  watch_ = audit_->Watch(Waker(dispatcher_));
}

PulledStream::Action AuditStream::Next() {
  if (page_.empty()) {
    for (AuditEntry& entry : audit_->ReadAfter(after_, kPage)) page_.push_back(std::move(entry));
  }
  if (!page_.empty()) {
    const AuditEntry entry = std::move(page_.front());
    page_.pop_front();
    after_ = entry.number;
    return {.message = SerializeMessage(ToProto(entry)), .end = std::nullopt};
  }
  return follows_ ? Action{} : Action{.message = std::nullopt, .end = grpc::Status::OK};
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* WatchAudit(const CallContext& with,
                                                       grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* in) {
  const CallTimer timer(context, with.metrics, "WatchAudit");
  return StartStream(timer, [&] {
    Audit& audit = with.gate->Require().audit();
    const auto stream = std::make_shared<AuditStream>(timer, &audit, with.dispatcher);
    stream->Hold();
    stream->Open([&] {
      v1::WatchAuditRequest request;
      ParseMessage(*in, &request);
      stream->Keep(with.open_calls->Enter(context->peer()));
      stream->Read(request);
    });
    return stream.get();
  });
}

}  // namespace denoised

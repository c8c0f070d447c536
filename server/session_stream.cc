#include "server/session_stream.h"

#include <utility>

#include "runtime/caught.h"
#include "server/convert.h"
#include "server/session_convert.h"

namespace denoised {
namespace {

constexpr int kMaxUnderWay = 16;

SessionReply RefusedReply(const Error& error) {
  SessionReply reply;
  reply.error = error;
  return reply;
}

}  // namespace

void SessionStream::Start(Engine* engine, OpenCalls::Ticket ticket) {
  engine_ = engine;
  ticket_ = std::move(ticket);
  owner_->ended = [weak = weak_from_this()](const Error& why) {
    if (const auto stream = weak.lock()) stream->EndWith(ToStatus(why));
  };
  Advance();
}

void SessionStream::Refuse(const grpc::Status& status) { EndWith(status); }

// ---- requests ----------------------------------------------------------------------------------

void SessionStream::OnReadDone(bool ok) {
  if (!ok) {
    {
      const std::lock_guard lock(mutex_);
      half_closed_ = true;
      reading_ = false;
    }
    return Advance();
  }
  grpc::ByteBuffer bytes;
  bytes.Swap(&in_);
  {
    const std::lock_guard lock(mutex_);
    ++under_way_;  // whatever ends the stream meanwhile: it is answered
  }
  const auto handle = [stream = shared_from_this(), bytes] { stream->Handle(bytes, false); };
  // Where there is no room, the answer still says to which request it belongs.
  if (!pool_->Post(bytes.Length(), handle)) Handle(bytes, true);
}

void SessionStream::Handle(const grpc::ByteBuffer& bytes, bool too_busy) {
  Request request;
  v1::SessionRequest message;
  const auto refused = Caught([&] {
    ParseMessage(bytes, &message);
    request = {message.session_id(), message.tag(), message.verb_case(), IsLarge(message)};
    if (too_busy) throw TooBusy();
  });
  {
    const std::lock_guard lock(mutex_);
    large_ = request.large;
    reading_ = false;
  }
  if (refused) {
    Done(request, RefusedReply(*refused));
  } else {
    Dispatch(request, std::move(message));
  }
  Advance();
}

// Its answer comes exactly once.
void SessionStream::Dispatch(const Request& request, v1::SessionRequest&& message) {
  const auto done = [stream = shared_from_this(), request](SessionReply reply) {
    stream->Done(request, std::move(reply));
  };
  SessionRequest opened;
  SessionVerb verb;
  const auto refused = Caught([&] {
    if (request.verb != v1::SessionRequest::kOpen) {
      verb = FromProto(std::move(message));
    } else if (!request.session_id.empty()) {
      throw InvalidField("session_id", "must be empty beside open");
    } else {
      opened = FromProto(std::move(*message.mutable_open()));
    }
  });
  if (refused) return Done(request, RefusedReply(*refused));
  if (request.verb == v1::SessionRequest::kOpen) {
    engine_->OpenSession(owner_, std::move(opened), done);
  } else {
    engine_->AskSession(owner_, IdOf(request), std::move(verb), done);
  }
}

std::string SessionStream::IdOf(const Request& request) const {
  const std::lock_guard lock(mutex_);
  return request.session_id.empty() ? first_id_ : request.session_id;
}

// ---- answers -----------------------------------------------------------------------------------

void SessionStream::Done(const Request& request, SessionReply reply) {
  const bool none_left = Count(request, reply);
  if (none_left && reply.error) {  // an open that left the stream without a session
    {
      const std::lock_guard lock(mutex_);
      --under_way_;
    }
    return EndWith(ToStatus(*reply.error));
  }
  const std::string parent = IdOf(request);
  if (reply.state.id.empty()) reply.state.id = request.session_id;
  v1::SessionResponse response = ToProto(std::move(reply), request.verb, parent);
  response.set_tag(request.tag);
  Answer answer{SerializeMessage(response), request.large};
  {
    const std::lock_guard lock(mutex_);
    out_.push_back(std::move(answer));
  }
  none_left ? EndWith(grpc::Status::OK) : Advance();
}

// Whether this open or close leaves the stream without a session.
bool SessionStream::Count(const Request& request, const SessionReply& reply) {
  const bool opens = request.verb == v1::SessionRequest::kOpen;
  const bool closes = request.verb == v1::SessionRequest::kClose;
  const std::lock_guard lock(mutex_);
  if (!reply.error && (opens || request.verb == v1::SessionRequest::kFork)) ++sessions_;
  if (!reply.error && closes) --sessions_;
  if (!reply.error && opens && first_id_.empty()) first_id_ = reply.state.id;
  const bool changed = opens || (closes && !reply.error);
  return changed && sessions_ == 0;
}

void SessionStream::EndWith(const grpc::Status& status) {
  {
    const std::lock_guard lock(mutex_);
    if (!end_) end_ = status;
  }
  Advance();
}

void SessionStream::OnWriteDone(bool ok) {
  {
    const std::lock_guard lock(mutex_);
    if (out_.front().large) large_ = false;
    out_.pop_front();
    writing_ = false;
    --under_way_;
    cancelled_ = cancelled_ || !ok;
  }
  Advance();
}

void SessionStream::OnCancel() {
  {
    const std::lock_guard lock(mutex_);
    cancelled_ = true;
  }
  if (engine_ != nullptr) engine_->LeaveSessions(owner_);
  Advance();
}

void SessionStream::OnDone() {
  ticket_.reset();
  self_.reset();
}

// ---- what is next ------------------------------------------------------------------------------

bool SessionStream::MayRead() const {
  return !reading_ && !half_closed_ && !end_ && !large_ && under_way_ < kMaxUnderWay;
}

std::optional<grpc::Status> SessionStream::WhyFinish() const {
  if (writing_) return std::nullopt;
  if (cancelled_) {
    return grpc::Status(grpc::StatusCode::CANCELLED, "the client left or its deadline passed");
  }
  if (under_way_ > 0) return std::nullopt;
  if (end_) return end_;
  return half_closed_ ? std::optional(grpc::Status::OK) : std::nullopt;
}

void SessionStream::Advance() {
  std::optional<grpc::Status> finish;
  grpc::ByteBuffer* write = nullptr;
  bool read = false;
  {
    const std::lock_guard lock(mutex_);
    if (finished_) return;
    finish = WhyFinish();
    finished_ = finish.has_value();
    if (!finished_ && !writing_ && !out_.empty()) write = &out_.front().message;
    writing_ = writing_ || write != nullptr;
    read = !finished_ && MayRead();
    reading_ = reading_ || read;
  }
  if (write != nullptr) StartWrite(write);
  if (read) StartRead(&in_);
  if (!finish) return;
  if (engine_ != nullptr) engine_->LeaveSessions(owner_);
  timer_.Done(*finish);
  Finish(*finish);
}

}  // namespace denoised

#include "server/admin_service.h"

#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "server/call.h"
#include "server/convert.h"

namespace denoised {

// A force that lives as long as its stream. Owns itself until gRPC is done with it. It is there
// before its force, whose end callback ends it, so that no release comes too early to be heard.
class HoldStream : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                   public std::enable_shared_from_this<HoldStream> {
 public:
  HoldStream(const CallTimer& timer, SelectionPolicy* policy, OpenCalls::Ticket ticket)
      : timer_(timer), policy_(policy), ticket_(std::move(ticket)) {}

  // What ends the stream with its force; before there is one.
  SelectionPolicy::OnEnd Ender() {
    return [weak = weak_from_this()](const Lease&) {
      if (const auto stream = weak.lock()) stream->End(grpc::Status::OK);
    };
  }

  // Stays alive until gRPC is done with it. First, and on the thread of the call.
  void Hold() { self_ = shared_from_this(); }

  // Then one of these, on any thread.
  void Start(const Lease& force) {
    force_ = force;
    message_ = SerializeMessage(ToProto(force));
    StartWrite(&message_);
  }

  void Fail(const grpc::Status& status) {
    timer_.Done(status);
    Finish(status);
  }

  // Ends the stream; the force went first or goes with it.
  void End(const grpc::Status& status) {
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

  void OnWriteDone(bool ok) override {
    std::optional<grpc::Status> pending;
    {
      std::lock_guard lock(mutex_);
      writing_ = false;
      pending = std::exchange(pending_, std::nullopt);
    }
    if (pending) return Leave(*pending);
    if (!ok) OnCancel();
  }

  void OnCancel() override { End(grpc::Status(grpc::StatusCode::CANCELLED, "the holder left")); }

  void OnDone() override { self_.reset(); }

 private:
  void Leave(const grpc::Status& status) {
    policy_->End(force_.id, LeaseEnd::kHolderLeft, "", force_.holder);
    timer_.Done(status);
    Finish(status);
  }

  const CallTimer timer_;
  SelectionPolicy* const policy_;
  const OpenCalls::Ticket ticket_;
  Lease force_;
  grpc::ByteBuffer message_;
  std::shared_ptr<HoldStream> self_;
  std::mutex mutex_;
  bool writing_ = true;                  // guarded by mutex_; the first message, even before Start
  bool ended_ = false;                   // guarded by mutex_
  std::optional<grpc::Status> pending_;  // guarded by mutex_
};

template <typename Request>
Lease AdminService::AddForce(const Request& request, const std::string& peer,
                             SelectionPolicy::OnEnd on_end) {
  constexpr size_t kMaxReason = 256;
  if (request.reason().size() > kMaxReason) {
    throw InvalidField("reason",
                       "at most 256 bytes, got " + std::to_string(request.reason().size()));
  }
  const AttnBackend chosen = CoerceAttnBackend(request.backend(), "backend");
  std::optional<std::chrono::milliseconds> lifetime;
  if (request.has_ttl()) lifetime = FromProto(request.ttl(), "ttl");
  std::string parameters;
  if (request.has_parameters()) parameters = FromProto(request.parameters(), "parameters");
  if (const auto refused = engine().CheckForce(chosen, parameters)) throw *refused;
  LeaseRequest lease{chosen, parameters};
  lease.ttl = lifetime;
  lease.reason = request.reason();
  lease.holder = peer;
  lease.held = std::is_same_v<Request, v1::HoldBackendRequest>;
  return engine().policy().Force(std::move(lease), std::move(on_end));
}

grpc::ServerUnaryReactor* AdminService::ForceBackend(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* in,
                                                     grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::ForceBackendRequest>(
      context, with_.pool, in, out, with_.metrics, "ForceBackend",
      [this, peer = context->peer()](const v1::ForceBackendRequest& request) {
        return ToProto(AddForce(request, peer, {}));
      });
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* AdminService::HoldBackend(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* in) {
  const CallTimer timer(context, with_.metrics, "HoldBackend");
  std::shared_ptr<HoldStream> stream;
  const grpc::Status status = StatusOf([&] {
    stream = std::make_shared<HoldStream>(timer, &engine().policy(),
                                          with_.open_calls->Enter(context->peer()));
    stream->Hold();
  });
  if (!status.ok()) return new FailedStream(timer, status);
  const auto open = [this, stream, bytes = *in, peer = context->peer()] {
    const grpc::Status opened = StatusOf([&] {
      v1::HoldBackendRequest request;
      ParseMessage(bytes, &request);
      stream->Start(AddForce(request, peer, stream->Ender()));
    });
    if (!opened.ok()) stream->Fail(opened);
  };
  if (!with_.pool->Post(in->Length(), open)) stream->Fail(ToStatus(TooBusy()));
  return stream.get();
}

int AdminService::Release(const v1::ReleaseForceRequest& request, const std::string& peer) {
  const std::string& id = request.lease_id();
  if (request.all() != id.empty()) {
    throw InvalidField("lease_id", request.all() ? "must be empty with all" : "must not be empty");
  }
  int released = 1;
  if (request.all()) {
    released = engine().policy().Clear(peer);
  } else if (!engine().policy().Release(id, peer)) {
    throw Error(StatusCode::kNotFound, "no live force '" + id.substr(0, 64) + "'", "lease_id",
                "LEASE_NOT_FOUND");
  }
  return released;
}

grpc::ServerUnaryReactor* AdminService::ReleaseForce(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* in,
                                                     grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ReleaseForceRequest>(
      context, in, out, with_.metrics, "ReleaseForce",
      [this, context](const v1::ReleaseForceRequest& request) {
        v1::ReleaseForceResponse response;
        response.set_released(Release(request, context->peer()));
        return response;
      });
}

grpc::ServerUnaryReactor* AdminService::ListLeases(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in,
                                                   grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ListLeasesRequest>(context, in, out, with_.metrics, "ListLeases",
                                            [this](const v1::ListLeasesRequest&) {
                                              v1::ListLeasesResponse response;
                                              for (const Lease& force : engine().policy().List()) {
                                                *response.add_leases() = ToProto(force);
                                              }
                                              return response;
                                            });
}

grpc::ServerUnaryReactor* AdminService::ListBackends(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* in,
                                                     grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::ListBackendsRequest>(
      context, with_.pool, in, out, with_.metrics, "ListBackends",
      [this](const v1::ListBackendsRequest&) {
        v1::ListBackendsResponse response;
        for (const BackendInfo& backend : engine().ListBackends()) {
          *response.add_backends() = ToProto(backend);
        }
        return response;
      });
}

grpc::ServerUnaryReactor* AdminService::ExplainSelection(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* in,
                                                         grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::ExplainSelectionRequest>(
      context, with_.pool, in, out, with_.metrics, "ExplainSelection",
      [this](const v1::ExplainSelectionRequest& request) {
        v1::ExplainSelectionResponse response;
        for (const Explanation& role : engine().Explain(FromProto(request))) {
          *response.add_roles() = ToProto(role);
        }
        return response;
      });
}

grpc::ServerUnaryReactor* AdminService::Drain(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* in, grpc::ByteBuffer* out) {
  return AnswerUnary<v1::DrainRequest>(
      context, in, out, with_.metrics, "Drain", [this, context](const v1::DrainRequest&) {
        if (!engine().draining()) {
          engine().audit().Write({.who = context->peer(), .what = "drain", .subject = "server"});
        }
        drain_();
        v1::DrainResponse response;
        response.set_queued(engine().queue_depth());
        response.set_running(engine().running_jobs());
        return response;
      });
}

grpc::ServerUnaryReactor* AdminService::SetLogLevel(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* in,
                                                    grpc::ByteBuffer* out) {
  return AnswerUnary<v1::SetLogLevelRequest>(
      context, in, out, with_.metrics, "SetLogLevel",
      [this, context](const v1::SetLogLevelRequest& request) {
        const auto level = LogLevelFromName(request.level());
        if (!level) throw InvalidField("level", "one of debug, info, warning, error");
        v1::SetLogLevelResponse response;
        response.set_previous_level(std::string(LogLevelName(with_.logger->level())));
        SetLevel(*level, context->peer());
        return response;
      });
}

void AdminService::SetLevel(LogLevel level, const std::string& peer) {
  AuditEntry entry{.who = peer, .what = "log_level", .subject = "server"};
  entry.old_value = LogLevelName(with_.logger->level());
  entry.new_value = LogLevelName(level);
  with_.logger->set_level(level);
  if (Engine* const engine = with_.gate->engine()) {
    engine->audit().Write(std::move(entry));
  } else {
    LogAudit(entry, with_.logger);  // it loads, and has no audit yet
  }
}

}  // namespace denoised

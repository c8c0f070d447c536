#include "server/admin_service.h"

#include <utility>

#include "server/call.h"
#include "server/convert_attention.h"
#include "server/convert_lease.h"

namespace denoised {

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

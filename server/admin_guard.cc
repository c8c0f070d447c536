// The part of AdminService that rehearses faults and compares backends.
#include <utility>

#include "server/admin_service.h"
#include "server/call.h"
#include "server/convert_guard.h"

namespace denoised {
namespace {

AuditEntry EntryOf(const DrillRequest& drill) {
  AuditEntry entry{.who = drill.by, .what = "drill"};
  entry.subject = AttnBackendName(drill.backend);
  entry.new_value = FaultName(drill.fault);
  entry.reason = drill.reason;
  entry.ends_at = std::chrono::system_clock::now() + drill.ttl;
  return entry;
}

std::string Described(const ShadowRequest& shadow) {
  std::string text(AttnBackendName(shadow.candidate));
  if (!shadow.parameters.empty()) text += " with " + shadow.parameters;
  text += " against ";
  text += shadow.baseline ? AttnBackendName(*shadow.baseline) : "what runs";
  return text + ", " + ToText(shadow.scope) + ", " + PercentText(shadow.share) + " of calls";
}

AuditEntry EntryOf(const ShadowInfo& shadow, const std::string& peer) {
  AuditEntry entry{.who = peer, .what = "shadow"};
  entry.subject = shadow.id;
  if (!shadow.end.empty()) {
    entry.old_value = Described(shadow.request);
    entry.reason = shadow.end;
    return entry;
  }
  entry.new_value = Described(shadow.request);
  entry.reason = shadow.request.reason;
  if (shadow.remaining) entry.ends_at = std::chrono::system_clock::now() + *shadow.remaining;
  return entry;
}

}  // namespace

grpc::ServerUnaryReactor* AdminService::Drill(grpc::CallbackServerContext* context,
                                              const grpc::ByteBuffer* in, grpc::ByteBuffer* out) {
  return AnswerUnary<v1::DrillRequest>(
      context, in, out, with_.metrics, "Drill", [this, context](const v1::DrillRequest& request) {
        const DrillRequest drill = FromProto(request, context->peer());
        engine().Drill(drill);
        engine().audit().Write(EntryOf(drill));
        return v1::DrillResponse();
      });
}

grpc::ServerUnaryReactor* AdminService::Shadow(grpc::CallbackServerContext* context,
                                               const grpc::ByteBuffer* in, grpc::ByteBuffer* out) {
  return AnswerFromPool<v1::ShadowRequest>(
      context, with_.pool, in, out, with_.metrics, "Shadow",
      [this, peer = context->peer()](const v1::ShadowRequest& request) {
        const ShadowInfo shadow = engine().Shadow(FromProto(request));
        engine().audit().Write(EntryOf(shadow, peer));
        return ToProto(shadow);
      });
}

grpc::ServerUnaryReactor* AdminService::ListShadows(grpc::CallbackServerContext* context,
                                                    const grpc::ByteBuffer* in,
                                                    grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ListShadowsRequest>(
      context, in, out, with_.metrics, "ListShadows", [this](const v1::ListShadowsRequest&) {
        v1::ListShadowsResponse response;
        for (const ShadowInfo& shadow : engine().ListShadows()) {
          *response.add_shadows() = ToProto(shadow);
        }
        return response;
      });
}

grpc::ServerUnaryReactor* AdminService::StopShadow(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in,
                                                   grpc::ByteBuffer* out) {
  return AnswerUnary<v1::StopShadowRequest>(
      context, in, out, with_.metrics, "StopShadow",
      [this, context](const v1::StopShadowRequest& request) {
        if (request.id().empty()) throw InvalidField("id", "must not be empty");
        const ShadowInfo shadow = engine().StopShadow(request.id());
        engine().audit().Write(EntryOf(shadow, context->peer()));
        return ToProto(shadow);
      });
}

}  // namespace denoised

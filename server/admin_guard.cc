// The part of AdminService that rehearses faults.
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

}  // namespace denoised

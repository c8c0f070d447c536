#include "server/model_service.h"

#include "server/call.h"
#include "server/convert.h"

namespace denoised {

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in,
                                                   grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ListModelsRequest>(
      context, in, out, with_.metrics, "ListModels", [this](const v1::ListModelsRequest&) {
        const Engine& engine = with_.gate->Require();
        v1::ListModelsResponse response;
        for (const ModelInfo& model : engine.ListModels()) *response.add_models() = ToProto(model);
        for (const FailedModel& model : engine.ListFailedModels()) {
          *response.add_failed() = ToProto(model);
        }
        return response;
      });
}

}  // namespace denoised

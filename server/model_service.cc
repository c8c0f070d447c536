#include "server/model_service.h"

#include "server/call.h"
#include "server/convert.h"

namespace denoised {

grpc::ServerUnaryReactor* ModelService::ListModels(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* in,
                                                   grpc::ByteBuffer* out) {
  return AnswerUnary<v1::ListModelsRequest>(
      context, in, out, metrics_, "ListModels", [this](const v1::ListModelsRequest&) {
        v1::ListModelsResponse response;
        for (const ModelInfo& model : engine_->ListModels()) {
          *response.add_models() = ToProto(model);
        }
        for (const FailedModel& model : engine_->ListFailedModels()) {
          *response.add_failed() = ToProto(model);
        }
        return response;
      });
}

}  // namespace denoised
